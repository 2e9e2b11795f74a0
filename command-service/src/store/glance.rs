//! A look at a store without taking part in it: its owner may be at work, and nothing is locked or written.
//!
//! redb never overwrites a page that its last commit needs before the next one is complete. So as long as the header is
//! the same before and after the look, what was found is what that commit holds; else the look is repeated.

use std::{
    collections::HashMap,
    fs::File,
    io::{ErrorKind, Result},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::{Builder, ReadableDatabase, StorageBackend};

use super::{
    CHECKPOINT_KEY, Checkpoint, Error, IDENTITY_KEY, META, STATES, guarded,
    pages::{CheckedPages, HEADER, PAGE},
};

/// The owner commits every few seconds, and a look takes milliseconds.
const LOOKS: usize = 20;
const CACHE_BYTES: usize = 1 << 20;

/// What a store holds of one aggregate.
#[derive(Debug, PartialEq)]
pub struct Glance {
    /// What the store says of itself; see [`StatesOf::differs_from`](super::StatesOf::differs_from).
    pub identity: String,
    /// How far it has got; none when it is fresh.
    pub checkpoint: Option<Checkpoint>,
    /// The aggregate's state.
    pub state: Option<Vec<u8>>,
}

/// Looks an aggregate up; `None` when there is no store at the path.
///
/// # Errors
/// When it can't be read, or is damaged.
pub fn glance(path: &Path, id: &str) -> std::result::Result<Option<Glance>, Error> {
    let mut looked = look(path, id);
    for _ in 1..LOOKS {
        match looked {
            Ok(Look::Moved) | Err(Error::Damaged { .. }) => looked = look(path, id),
            Ok(Look::NotThere | Look::Found(_)) | Err(_) => break,
        }
    }
    match looked? {
        Look::NotThere => Ok(None),
        Look::Found(found) => Ok(Some(found)),
        Look::Moved => Err(Error::Io { path: path.to_owned(), cause: ErrorKind::ResourceBusy.into() }),
    }
}

enum Look {
    NotThere,
    /// The owner has committed meanwhile.
    Moved,
    Found(Glance),
}

fn look(path: &Path, id: &str) -> std::result::Result<Look, Error> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Look::NotThere),
        file => file.map_err(|cause| Error::Io { path: path.to_owned(), cause })?,
    };
    guarded(path, || {
        let header = || {
            let mut header = [0; HEADER];
            CheckedPages::new(file.try_clone()?)?.read(0, &mut header)?;
            Ok::<_, redb::Error>(header)
        };
        let before = header()?;
        let overlay = Overlay { pages: CheckedPages::new(file.try_clone()?)?, written: Mutex::default() };
        let database = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(overlay)?;
        let reading = database.begin_read()?;
        let meta = reading.open_table(META)?;
        let identity = meta.get(IDENTITY_KEY)?.map(|text| String::from_utf8_lossy(text.value()).into_owned());
        let checkpoint = meta.get(CHECKPOINT_KEY)?.and_then(|bytes| Checkpoint::from_bytes(bytes.value()));
        let state = reading.open_table(STATES)?.get(id.as_bytes())?.map(|state| state.value().to_vec());
        if header()? != before {
            return Ok(Look::Moved);
        }
        Ok(Look::Found(Glance { identity: identity.unwrap_or_default(), checkpoint, state }))
    })
}

/// The pages of a file, and over them what was written since: in memory only.
#[derive(Debug)]
struct Overlay {
    pages: CheckedPages,
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    len: Option<u64>,
    header: Option<Vec<u8>>,
    pages: HashMap<u64, Vec<u8>>,
}

impl Overlay {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> Result<u64> {
        self.written().len.map_or_else(|| self.pages.len(), Ok)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let written = self.written();
        if offset == 0
            && let Some(header) = &written.header
        {
            out.copy_from_slice(&header[..out.len()]);
            return Ok(());
        }
        if offset == 0 {
            return self.pages.read(offset, out);
        }
        for (at, page) in out.chunks_mut(PAGE).enumerate() {
            let offset = offset + (at * PAGE) as u64;
            match written.pages.get(&offset) {
                Some(written) => page.copy_from_slice(written),
                None => self.pages.read(offset, page)?,
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut written = self.written();
        if offset == 0 {
            written.header = Some(data.to_vec());
            return Ok(());
        }
        for (at, page) in data.chunks(PAGE).enumerate() {
            written.pages.insert(offset + (at * PAGE) as u64, page.to_vec());
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.written().len = Some(len);
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
