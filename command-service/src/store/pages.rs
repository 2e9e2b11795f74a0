//! Pages with checksums under redb.
//!
//! redb keeps a checksum of each page in the page above, but verifies them only when it is asked to check the whole file.
//! In daily reading a flipped byte in a branch leads to the wrong leaf, which looks like "there is no such key", and one in
//! the header may bring back an older commit. So every page is verified here when it comes from the file.
//!
//! In the file a page of checksums comes before each 512 pages. They are kept in memory once touched (2 MiB for each GiB)
//! and written at each sync, before redb's header can name the pages that they are of: redb never overwrites a page that
//! the last commit needs, so a process may be killed between the two. Only the header is overwritten in place; its checksum
//! lies in the same sector.

use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::{BackendError, DatabaseError, StorageBackend, backends::FileBackend};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(super) const PAGE: usize = 4096;
/// What redb reads and writes of its first page.
pub(super) const HEADER: usize = 320;
/// Written as one, so that header and checksum agree whenever the process ends.
const SECTOR: usize = 512;
const SUM: usize = size_of::<u64>();
/// Pages whose checksums fill a page.
const GROUP: u64 = (PAGE / SUM) as u64;

/// A file with a checksum for each page.
#[derive(Debug)]
pub struct CheckedPages {
    file: FileBackend,
    groups: Mutex<Vec<Option<Group>>>,
}

/// Checksums of 512 pages; 0 means that the page was never written.
#[derive(Debug)]
struct Group {
    sums: Vec<u64>,
    dirty: bool,
}

/// Pages that lie side by side in the file, all of one group.
struct Run {
    group: usize,
    /// First page, counted from the first of the group.
    first: usize,
    pages: usize,
    /// Where they begin in the file.
    at: u64,
}

impl CheckedPages {
    /// Over a file that is open for reading and writing.
    pub fn new(file: File) -> std::result::Result<Self, DatabaseError> {
        Ok(Self { file: FileBackend::new(file)?, groups: Mutex::default() })
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Option<Group>>> {
        // What it guards is right after each step, also when the thread panicked elsewhere.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The checksums of a group, from the file when they are asked for the first time.
    fn group<'a>(&self, groups: &'a mut Vec<Option<Group>>, number: usize) -> Result<&'a mut Group> {
        if groups.len() <= number {
            groups.resize_with(number + 1, || None);
        }
        let place = &mut groups[number];
        if place.is_none() {
            let mut page = [0; PAGE];
            self.file.read(sums_at(number), &mut page)?;
            let (sums, _) = page.as_chunks::<SUM>();
            *place = Some(Group { sums: sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect(), dirty: false });
        }
        place.as_mut().ok_or_else(|| Error::other("a group was just put there"))
    }

    fn read_header(&self, out: &mut [u8]) -> Result<()> {
        let mut sector = [0; SECTOR];
        self.file.read(0, &mut sector)?;
        let (header, sum) = sector.split_at(SECTOR - SUM);
        // All zero: the file was just made.
        if sector.iter().any(|byte| *byte != 0) && xxh3_64(header).to_le_bytes() != *sum {
            return Err(damaged("the header's checksum does not agree"));
        }
        out.copy_from_slice(&header[..out.len()]);
        Ok(())
    }

    fn write_header(&self, data: &[u8]) -> Result<()> {
        let mut sector = [0; SECTOR];
        let (header, sum) = sector.split_at_mut(SECTOR - SUM);
        header[..data.len()].copy_from_slice(data);
        sum.copy_from_slice(&xxh3_64(header).to_le_bytes());
        self.file.write(0, &sector)
    }
}

impl StorageBackend for CheckedPages {
    fn len(&self) -> Result<u64> {
        let len = self.file.len()?;
        let page = PAGE as u64;
        if !len.is_multiple_of(page) {
            return Err(damaged("the file ends within a page"));
        }
        let Some(pages) = (len / page).checked_sub(1) else { return Ok(0) };
        Ok((1 + pages - pages.div_ceil(GROUP + 1)) * page)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if offset == 0 && out.len() <= HEADER {
            return self.read_header(out);
        }
        let mut rest = out;
        for run in runs(offset, rest.len())? {
            let part;
            (part, rest) = rest.split_at_mut(run.pages * PAGE);
            self.file.read(run.at, part)?;
            let mut groups = self.groups();
            let sums = &self.group(&mut groups, run.group)?.sums[run.first..];
            for (at, (page, sum)) in part.chunks_exact(PAGE).zip(sums).enumerate() {
                let right = match sum {
                    0 => page.iter().all(|byte| *byte == 0),
                    sum => *sum == sum_of(&run, at, page),
                };
                if !right {
                    return Err(damaged("a page's checksum does not agree"));
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        if offset == 0 && data.len() == HEADER {
            return self.write_header(data);
        }
        let mut rest = data;
        for run in runs(offset, rest.len())? {
            let part;
            (part, rest) = rest.split_at(run.pages * PAGE);
            self.file.write(run.at, part)?;
            let mut groups = self.groups();
            let group = self.group(&mut groups, run.group)?;
            group.dirty = true;
            for (at, (page, sum)) in part.chunks_exact(PAGE).zip(&mut group.sums[run.first..]).enumerate() {
                *sum = sum_of(&run, at, page);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let pages = (len / PAGE as u64).saturating_sub(1);
        let mut groups = self.groups();
        let (whole, part) = ((pages / GROUP) as usize, (pages % GROUP) as usize);
        // Pages that are cut off come back as never written.
        if part > 0 && self.len()? > len {
            let group = self.group(&mut groups, whole)?;
            group.sums[part..].fill(0);
            group.dirty = true;
        }
        groups.truncate(whole + usize::from(part > 0));
        let bytes = match len {
            0 => 0,
            _ => (1 + pages + pages.div_ceil(GROUP)) * PAGE as u64,
        };
        self.file.set_len(bytes)
    }

    fn sync_data(&self) -> Result<()> {
        let mut groups = self.groups();
        for (number, group) in groups.iter_mut().enumerate() {
            if let Some(group) = group.as_mut().filter(|group| group.dirty) {
                let page: Vec<u8> = group.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
                self.file.write(sums_at(number), &page)?;
                group.dirty = false;
            }
        }
        drop(groups);
        self.file.sync_data()
    }

    fn close(&self) -> Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

/// Its place is part of it: a page that was written elsewhere is not taken for this one.
fn sum_of(run: &Run, at: usize, page: &[u8]) -> u64 {
    let number = run.group as u64 * GROUP + (run.first + at) as u64;
    // 0 is kept for "never written".
    xxh3_64_with_seed(page, number).max(1)
}

/// Where the page of a group's checksums begins in the file.
fn sums_at(group: usize) -> u64 {
    (1 + group as u64 * (GROUP + 1)) * PAGE as u64
}

/// Where bytes of the database lie in the file.
fn runs(offset: u64, len: usize) -> Result<impl Iterator<Item = Run>> {
    if !offset.is_multiple_of(PAGE as u64) || !len.is_multiple_of(PAGE) || offset == 0 {
        return Err(Error::new(ErrorKind::Unsupported, "the database reads or writes something else than pages"));
    }
    let (mut next, mut left) = (offset / PAGE as u64 - 1, (len / PAGE) as u64);
    Ok(std::iter::from_fn(move || {
        let (group, first) = (next / GROUP, next % GROUP);
        let pages = left.min(GROUP - first);
        let at = sums_at(group as usize) + (1 + first) * PAGE as u64;
        (next, left) = (next + pages, left - pages);
        let run = Run { group: group as usize, first: first as usize, pages: pages as usize, at };
        (pages > 0).then_some(run)
    }))
}

fn damaged(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}
