//! A partition's local store: states, remembered outcomes and the checkpoint that they stand at, in one file.
//!
//! It is a cache of the topics that makes restarts fast and lets states outgrow memory, and it may be deleted at any time.
//! So whatever is wrong with a file is answered in one of two ways: [`Store::open`] puts a fresh one in its place, and a
//! [`Store`] that is open says that it can't be used any more. Never is anything read from it that was not written:
//! every page carries a checksum (`pages`). All that belongs together moves in one commit.

pub mod glance;
mod identity;
pub mod keeper;
mod pages;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, ErrorKind},
    mem,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{OnceLock, PoisonError, RwLock},
};

use redb::{
    Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use identity::difference;
pub use identity::{Identity, StatesOf};
use pages::CheckedPages;

/// Of what is written here; another one's store is foreign.
const FORMAT: u32 = 1;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const STATES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("states");
/// What must be known of each chunk in memory; the bodies are fetched one by one.
const OUTCOME_INDEX: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outcome-index");
const OUTCOMES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outcomes");
const UNSNAPSHOTTED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("unsnapshotted");

const IDENTITY_KEY: &str = "identity";
const CHECKPOINT_KEY: &str = "checkpoint";
const SEED_KEY: &str = "seed";

/// How far the topics are covered by a store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checkpoint {
    /// First event that is not in the states.
    pub events_offset: i64,
    /// First outcome that is not remembered.
    pub outcomes_offset: i64,
    /// First command that was not decided, when any was.
    pub decided_up_to: Option<i64>,
    /// How many aggregates have a snapshot.
    pub aggregates: u64,
}

impl Checkpoint {
    const BYTES: usize = 4 * 8;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        // What is not there is -1.
        let fields =
            [self.events_offset, self.outcomes_offset, self.decided_up_to.unwrap_or(-1), self.aggregates.cast_signed()];
        let mut bytes = [0; Self::BYTES];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (fields, []) = bytes.as_chunks::<8>() else { return None };
        let fields: Vec<i64> = fields.iter().map(|field| i64::from_le_bytes(*field)).collect();
        let &[events_offset, outcomes_offset, decided, aggregates] = fields.as_slice() else { return None };
        let given = |offset: i64| (offset >= 0).then_some(offset);
        Some(Self {
            events_offset,
            outcomes_offset,
            decided_up_to: given(decided),
            aggregates: aggregates.cast_unsigned(),
        })
    }
}

/// Some outcomes.
#[derive(Clone, Debug, PartialEq)]
pub struct OutcomeChunk {
    /// Counts on.
    pub number: u64,
    /// What is read of every chunk when the store is opened.
    pub index: Vec<u8>,
    /// What is read when one of its outcomes is asked for.
    pub body: Vec<u8>,
}

/// What is written at once.
#[derive(Clone, Debug)]
pub struct Batch {
    /// States by aggregate id, in any order; of several for one id the last counts.
    pub states: Vec<(Box<str>, Vec<u8>)>,
    /// Outcomes that are remembered.
    pub outcomes: Vec<OutcomeChunk>,
    /// Chunks of outcomes below this number are removed.
    pub outcomes_below: u64,
    /// Lists of aggregates whose state is newer than their snapshot, each with a number that counts on.
    pub unsnapshotted: Vec<(u64, Vec<u8>)>,
    /// Lists below this number are removed.
    pub unsnapshotted_below: u64,
    /// What the store stands at with all this.
    pub checkpoint: Checkpoint,
}

impl Batch {
    /// One that only moves the checkpoint.
    pub fn new(checkpoint: Checkpoint) -> Self {
        Self {
            states: Vec::new(),
            outcomes: Vec::new(),
            outcomes_below: 0,
            unsnapshotted: Vec::new(),
            unsnapshotted_below: 0,
            checkpoint,
        }
    }
}

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A predecessor in another process, or in this one, has it open: wait.
    #[error("{}: it is open elsewhere", .0.display())]
    Held(PathBuf),
    /// It can't be read or written, e.g. as the disk is full.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which store.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It holds something else than what was written: let it go and [`Store::delete`] it.
    #[error("{}: it is damaged: {reason}", path.display())]
    Damaged {
        /// Which store.
        path: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// An earlier call failed, so what it holds in memory may be wrong: let it go.
    #[error("{}: it can't be used since a call failed: {reason}", path.display())]
    Broken {
        /// Which store.
        path: PathBuf,
        /// How that call failed.
        reason: String,
    },
}

/// What [`Store::open`] gives.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What it stands at; none when it is fresh.
    pub checkpoint: Option<Checkpoint>,
}

/// See the [module](self). All calls block, for as long as the disk takes.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// None only while it is dropped.
    open: Option<Box<Open>>,
    /// Why it can't be used any more.
    broken: OnceLock<String>,
    seed: u64,
}

struct Open {
    database: Database,
    /// As the last commit left them. Readers are not held up by a commit that is under way.
    tables: RwLock<Tables>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Open").finish_non_exhaustive()
    }
}

struct Tables {
    states: ReadOnlyTable<&'static [u8], &'static [u8]>,
    outcome_index: ReadOnlyTable<u64, &'static [u8]>,
    outcomes: ReadOnlyTable<u64, &'static [u8]>,
    unsnapshotted: ReadOnlyTable<u64, &'static [u8]>,
}

/// What lies at a path.
enum Found {
    Ours(Opened),
    /// And why it is not ours.
    Foreign(Database, String),
}

impl Store {
    /// Opens the store at a path; one that is foreign or damaged is replaced by a fresh one, with a warning that says why.
    ///
    /// `cache_bytes` bounds the pages that are kept in memory, read and not yet written ones together. A further 2 MiB
    /// for each GiB of the file hold checksums.
    ///
    /// # Errors
    /// [`Error::Held`] while somebody else has it open; [`Error::Io`] when it can't be read or made.
    pub fn open(path: &Path, identity: &Identity, cache_bytes: usize) -> Result<Opened, Error> {
        if fs::metadata(path).is_ok_and(|file| file.len() > 0) {
            match guarded(path, || Self::look(path, identity, cache_bytes)) {
                Ok(Found::Ours(opened)) => return Ok(opened),
                Ok(Found::Foreign(database, reason)) => {
                    tracing::warn!(path = %path.display(), reason, "a foreign store is replaced by a fresh one");
                    // While it is locked, so that nobody else's is deleted.
                    Self::delete(path)?;
                    close(path, database);
                }
                Err(Error::Damaged { reason, .. }) => {
                    tracing::warn!(path = %path.display(), reason, "a damaged store is replaced by a fresh one");
                    Self::delete(path)?;
                }
                Err(error) => return Err(error),
            }
        }
        let store = guarded(path, || Self::create(path, identity, cache_bytes))?;
        Ok(Opened { store, checkpoint: None })
    }

    /// Deletes what lies at a path, if anything does.
    ///
    /// # Errors
    /// When it can't be deleted.
    pub fn delete(path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(Error::Io { path: path.to_owned(), cause }),
            _ => Ok(()),
        }
    }

    /// A secret number of this store, the same for its whole life.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The state of an aggregate.
    ///
    /// # Errors
    /// When it can't be read; then this can't be used any more.
    pub fn state(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        self.read(|tables| Ok(tables.states.get(id.as_bytes())?.map(|state| state.value().to_vec())))
    }

    /// Of how many aggregates there is a state.
    ///
    /// # Errors
    /// When that can't be read; then this can't be used any more.
    pub fn states(&self) -> Result<u64, Error> {
        self.read(|tables| Ok(tables.states.len()?))
    }

    /// The body of a chunk of outcomes.
    ///
    /// # Errors
    /// When it can't be read, or is not there; then this can't be used any more.
    pub fn outcomes(&self, number: u64) -> Result<Vec<u8>, Error> {
        self.read(|tables| {
            let body = tables.outcomes.get(number)?.map(|body| body.value().to_vec());
            body.ok_or_else(|| redb::Error::Corrupted(format!("chunk {number} of the outcomes is missing")))
        })
    }

    /// Number and index of each chunk of outcomes, in order.
    ///
    /// # Errors
    /// When they can't be read; then this can't be used any more.
    pub fn outcome_index(&self) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        self.read(|tables| all(&tables.outcome_index))
    }

    /// Number and bytes of each list of aggregates whose state is newer than their snapshot, in order.
    ///
    /// # Errors
    /// When they can't be read; then this can't be used any more.
    pub fn unsnapshotted(&self) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        self.read(|tables| all(&tables.unsnapshotted))
    }

    /// Writes all of a batch or nothing, and returns when it is on the disk. One at a time: others wait.
    ///
    /// # Errors
    /// When it can't be written; then this can't be used any more, and opened anew it is as before the batch or, when
    /// only the last answer of the disk was lost, as after it.
    pub fn commit(&self, mut batch: Batch) -> Result<(), Error> {
        let mut states = mem::take(&mut batch.states);
        // Neighbours share their pages: in order this costs a third of what it costs at random. Stable, so the last counts.
        states.sort_by(|(one, _), (other, _)| one.cmp(other));
        states.dedup_by(|next, kept| {
            next.0 == kept.0 && {
                mem::swap(next, kept);
                true
            }
        });
        self.commit_sorted(states.iter().map(|(id, state)| (id.as_bytes(), state.as_slice())), &batch)
    }

    /// The same of a batch without states, with these: in order, each of another id.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_sorted<'a>(
        &self,
        states: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        batch: &Batch,
    ) -> Result<(), Error> {
        self.guarded(|open| {
            let transaction = begin(&open.database)?;
            {
                let mut known = transaction.open_table(STATES)?;
                for (id, state) in states {
                    known.insert(id, state)?;
                }
                let mut index = transaction.open_table(OUTCOME_INDEX)?;
                let mut outcomes = transaction.open_table(OUTCOMES)?;
                index.retain_in(..batch.outcomes_below, |_, _| false)?;
                outcomes.retain_in(..batch.outcomes_below, |_, _| false)?;
                for chunk in &batch.outcomes {
                    index.insert(chunk.number, chunk.index.as_slice())?;
                    outcomes.insert(chunk.number, chunk.body.as_slice())?;
                }
                let mut unsnapshotted = transaction.open_table(UNSNAPSHOTTED)?;
                unsnapshotted.retain_in(..batch.unsnapshotted_below, |_, _| false)?;
                for (number, list) in &batch.unsnapshotted {
                    unsnapshotted.insert(number, list.as_slice())?;
                }
                let mut meta = transaction.open_table(META)?;
                meta.insert(CHECKPOINT_KEY, batch.checkpoint.to_bytes().as_slice())?;
            }
            transaction.commit()?;
            let tables = Tables::of(&open.database)?;
            *open.tables.write().unwrap_or_else(PoisonError::into_inner) = tables;
            Ok(())
        })
    }

    /// To be said by who finds that what was read from it can't be what was written.
    pub fn damaged(&self, reason: String) -> Error {
        self.broken.get_or_init(|| reason.clone());
        Error::Damaged { path: self.path.clone(), reason }
    }

    /// What it takes on the disk, in bytes.
    ///
    /// # Errors
    /// When the file system can't be asked.
    pub fn size(&self) -> Result<u64, Error> {
        // The file has holes.
        let file = fs::metadata(&self.path);
        file.map(|file| file.blocks() * 512).map_err(|cause| Error::Io { path: self.path.clone(), cause })
    }

    /// Opens what lies at the path, and tells whose it is.
    fn look(path: &Path, identity: &Identity, cache_bytes: usize) -> Result<Found, redb::Error> {
        let database = database(path, cache_bytes)?;
        let meta = database.begin_read()?.open_table(META)?;
        let get = |key| {
            let value = meta.get(key)?.map(|value| value.value().to_vec());
            Ok::<_, redb::Error>(value)
        };
        let corrupted = || redb::Error::Corrupted("what it says of itself can't be read".to_owned());
        let found = get(IDENTITY_KEY)?.and_then(|text| String::from_utf8(text).ok()).ok_or_else(corrupted)?;
        let expected = identity.text();
        if found != expected {
            return Ok(Found::Foreign(database, difference(&found, &expected)));
        }
        let seed =
            get(SEED_KEY)?.and_then(|seed| seed.try_into().ok()).map(u64::from_le_bytes).ok_or_else(corrupted)?;
        let checkpoint = match get(CHECKPOINT_KEY)? {
            Some(bytes) => Some(Checkpoint::from_bytes(&bytes).ok_or_else(corrupted)?),
            None => None,
        };
        drop(meta);
        Ok(Found::Ours(Opened { store: Self::new(path, database, seed)?, checkpoint }))
    }

    fn create(path: &Path, identity: &Identity, cache_bytes: usize) -> Result<Self, redb::Error> {
        let database = database(path, cache_bytes)?;
        let seed = RandomState::new().hash_one(path);
        let transaction = begin(&database)?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert(IDENTITY_KEY, identity.text().as_bytes())?;
            meta.insert(SEED_KEY, seed.to_le_bytes().as_slice())?;
            // So that they are there for who reads.
            transaction.open_table(STATES)?;
            transaction.open_table(OUTCOME_INDEX)?;
            transaction.open_table(OUTCOMES)?;
            transaction.open_table(UNSNAPSHOTTED)?;
        }
        transaction.commit()?;
        Self::new(path, database, seed)
    }

    fn new(path: &Path, database: Database, seed: u64) -> Result<Self, redb::Error> {
        let tables = RwLock::new(Tables::of(&database)?);
        Ok(Self {
            path: path.to_owned(),
            open: Some(Box::new(Open { database, tables })),
            broken: OnceLock::new(),
            seed,
        })
    }

    fn read<T>(&self, what: impl FnOnce(&Tables) -> Result<T, redb::Error>) -> Result<T, Error> {
        self.guarded(|open| what(&open.tables.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Does something with the database; when it fails, that was the last time.
    fn guarded<T>(&self, what: impl FnOnce(&Open) -> Result<T, redb::Error>) -> Result<T, Error> {
        let broken = |reason: &String| Error::Broken { path: self.path.clone(), reason: reason.clone() };
        if let Some(reason) = self.broken.get() {
            return Err(broken(reason));
        }
        let open = self.open.as_ref().ok_or_else(|| broken(&"it is closed".to_owned()))?;
        let result = guarded(&self.path, || what(open));
        if let Err(error) = &result {
            self.broken.get_or_init(|| error.to_string());
        }
        result
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let open = self.open.take();
        close(&self.path, open);
    }
}

impl Tables {
    fn of(database: &Database) -> Result<Self, redb::Error> {
        let reading = database.begin_read()?;
        Ok(Self {
            states: reading.open_table(STATES)?,
            outcome_index: reading.open_table(OUTCOME_INDEX)?,
            outcomes: reading.open_table(OUTCOMES)?,
            unsnapshotted: reading.open_table(UNSNAPSHOTTED)?,
        })
    }
}

fn all(table: &ReadOnlyTable<u64, &'static [u8]>) -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
    let mut found = Vec::new();
    for entry in table.range::<u64>(..)? {
        let (number, bytes) = entry?;
        found.push((number.value(), bytes.value().to_vec()));
    }
    Ok(found)
}

/// Opens or makes a file; it is locked as long as the database is open.
fn database(path: &Path, cache_bytes: usize) -> Result<Database, redb::Error> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    Ok(Builder::new().set_cache_size(cache_bytes).create_with_backend(CheckedPages::new(file)?)?)
}

fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    // The table of free pages is written as well, so that a store opens at once after a kill (0.5 ms; else the whole file
    // is read), and the header changes hands only when all else is on the disk.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Does something with redb, which may panic where a file is not as it left it.
fn guarded<T>(path: &Path, what: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Error> {
    let path = || path.to_owned();
    match catch_unwind(AssertUnwindSafe(what)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch)) => Err(Error::Held(path())),
        Ok(Err(redb::Error::Io(cause))) => Err(match cause.kind() {
            // The first is from us, the second from a file that ends too early.
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                Error::Damaged { path: path(), reason: cause.to_string() }
            }
            _ => Error::Io { path: path(), cause },
        }),
        // Whatever else redb says is about what it found in the file.
        Ok(Err(error)) => Err(Error::Damaged { path: path(), reason: error.to_string() }),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            Err(Error::Damaged { path: path(), reason: format!("redb panicked: {message}") })
        }
    }
}

/// Closes what is open; what is damaged must not take the process down at that, either.
fn close<T>(path: &Path, open: T) {
    let closed = guarded(path, || {
        drop(open);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "a store can't be closed");
    }
}
