//! The remembered outcomes of a partition: what makes a repeat harmless.
//!
//! The latest ones are in memory whole. With a [`Store`] the older ones lie in its chunks, and only a hash of each stays
//! here: about 20 bytes of what is some 250.

mod record;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::VecDeque,
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
    time::Duration,
};

use hashbrown::HashTable;
use jiff::Timestamp;
use millrace_shared::{fast_hash::SeededHash, fingerprint::Fingerprint};

use crate::store::{self, OutcomeChunk, Store};
use record::Record;

/// Expired outcomes removed after one batch, about: a batch is never held up by many.
const EXPIRE_AT_ONCE: usize = 10_000;
/// A chunk's body is no larger, unless one outcome alone is: reading it costs 75 us.
const CHUNK_BYTES: usize = 48 << 10;

/// What a command is known by. Its id belongs to its aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub struct CommandKey<'a> {
    /// Aggregate.
    pub aggregate_id: &'a str,
    /// Command.
    pub command_id: &'a str,
}

/// What shows that the hash function is still the one that a chunk's hashes were made with.
const PROBE: CommandKey<'_> = CommandKey { aggregate_id: "probe", command_id: "of the hash function" };

/// An outcome that is remembered.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered<'a> {
    /// Of the command that it answered.
    pub fingerprint: Fingerprint,
    /// The outcome as it was published.
    pub outcome: Cow<'a, [u8]>,
    /// When it was decided, in whole microseconds.
    pub at: Timestamp,
}

/// What is to be written with the store's next commit.
#[derive(Debug)]
pub struct Taken {
    /// New chunks.
    pub chunks: Vec<OutcomeChunk>,
    /// All chunks below this number have expired.
    pub below: u64,
}

/// Outcomes by aggregate and command id, for a window of time.
pub struct Memory {
    window: Duration,
    entries: Entries,
    /// The last 32 bits of the entries' numbers, by the hash of the key. A key that is remembered anew when its outcome in
    /// a chunk has expired is there twice, and the last counts.
    numbers: HashTable<u32>,
    hasher: SeededHash,
    /// How many of the last ones belong to the batch that is under way.
    uncommitted: usize,
    store: Option<Arc<Store>>,
    /// The first of the recent ones, as they are being written to the store.
    taken: Vec<Chunk>,
    next_chunk: u64,
    /// The chunk that was read last: repeats come in company.
    read: Option<(u64, Vec<u8>)>,
    bytes: u64,
}

/// In the order of their coming, each with a number that counts on.
#[derive(Default)]
struct Entries {
    /// Those in the store, the oldest first.
    chunks: VecDeque<Chunk>,
    /// Those that are younger.
    recent: VecDeque<Entry>,
    /// Number of the first recent one.
    recent_first: u64,
}

struct Entry {
    hash: u64,
    fingerprint: Fingerprint,
    at: Timestamp,
    /// Aggregate id, command id, outcome: in one piece, for there are millions.
    bytes: Box<[u8]>,
    aggregate_end: u16,
    command_end: u16,
}

/// What is known of outcomes whose bytes are in the store.
struct Chunk {
    /// In the store.
    number: u64,
    /// Number of its first entry.
    first: u64,
    /// Time of its youngest entry.
    newest: Timestamp,
    hashes: Box<[u64]>,
    /// Length of the body.
    bytes: u64,
}

impl Entry {
    fn is_of(&self, hash: u64, key: CommandKey<'_>) -> bool {
        self.hash == hash && self.record().is_of(key)
    }

    fn record(&self) -> Record<'_> {
        Record {
            fingerprint: self.fingerprint,
            at: self.at,
            aggregate_end: self.aggregate_end,
            command_end: self.command_end,
            bytes: &self.bytes,
        }
    }
}

impl Chunk {
    /// What is read of it when the store is opened: the probe, the newest time, the body's length, the hashes.
    fn index(&self, probe: u64) -> Vec<u8> {
        let head = [probe, self.newest.as_microsecond().cast_unsigned(), self.bytes];
        head.iter().chain(&self.hashes).flat_map(|number| number.to_le_bytes()).collect()
    }

    /// None when it is malformed; the probe that it was written with is given as well.
    fn from_index(number: u64, first: u64, index: &[u8]) -> Option<(Self, u64)> {
        let (numbers, []) = index.as_chunks::<8>() else { return None };
        let [probe, newest, bytes, hashes @ ..] = numbers else { return None };
        let newest = Timestamp::from_microsecond(i64::from_le_bytes(*newest)).ok()?;
        let hashes = hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        let bytes = u64::from_le_bytes(*bytes);
        Some((Self { number, first, newest, hashes, bytes }, u64::from_le_bytes(*probe)))
    }
}

/// Where an entry is.
enum Place<'a> {
    Recent(&'a Entry),
    /// At which place of which chunk.
    Stored(&'a Chunk, usize),
}

impl Entries {
    /// Number of the next one.
    fn end(&self) -> u64 {
        self.recent_first + self.recent.len() as u64
    }

    fn recent(&self, number: u32) -> Option<&Entry> {
        self.recent.get(number.wrapping_sub(self.recent_first as u32) as usize)
    }

    fn place(&self, number: u32) -> Place<'_> {
        if let Some(entry) = self.recent(number) {
            return Place::Recent(entry);
        }
        let number = self.recent_first - u64::from((self.recent_first as u32).wrapping_sub(number));
        let chunk = &self.chunks[self.chunks.partition_point(|chunk| chunk.first <= number) - 1];
        Place::Stored(chunk, (number - chunk.first) as usize)
    }

    fn hash(&self, number: u32) -> u64 {
        match self.place(number) {
            Place::Recent(entry) => entry.hash,
            Place::Stored(chunk, at) => chunk.hashes[at],
        }
    }
}

impl Memory {
    /// An empty one that keeps everything in memory.
    pub fn new(window: Duration) -> Self {
        Self::with(window, None, RandomState::new().hash_one(window))
    }

    /// One that knows what is in a store.
    ///
    /// # Errors
    /// When that can't be read.
    pub fn open(window: Duration, store: Arc<Store>) -> Result<Self, store::Error> {
        let index = store.outcome_index()?;
        let mut memory = Self::with(window, Some(store.clone()), store.seed());
        let probe = memory.hasher.hash_one(PROBE);
        for (number, index) in index {
            let first = memory.entries.recent_first;
            let malformed = || store.damaged(format!("the index of chunk {number} is malformed"));
            let (mut chunk, written_with) = Chunk::from_index(number, first, &index).ok_or_else(malformed)?;
            if written_with != probe {
                chunk.hashes = memory.hash_again(&store, number)?;
            }
            memory.entries.recent_first += chunk.hashes.len() as u64;
            memory.next_chunk = number + 1;
            memory.bytes += chunk.bytes;
            memory.entries.chunks.push_back(chunk);
        }
        let Self { numbers, entries, .. } = &mut memory;
        numbers.reserve(entries.recent_first as usize, |number| entries.hash(*number));
        for chunk in &entries.chunks {
            for (number, hash) in (chunk.first..).zip(&chunk.hashes) {
                numbers.insert_unique(*hash, number as u32, |number| entries.hash(*number));
            }
        }
        Ok(memory)
    }

    fn with(window: Duration, store: Option<Arc<Store>>, seed: u64) -> Self {
        Self {
            window,
            entries: Entries::default(),
            numbers: HashTable::new(),
            hasher: SeededHash::with_seed(seed),
            uncommitted: 0,
            store,
            taken: Vec::new(),
            next_chunk: 0,
            read: None,
            bytes: 0,
        }
    }

    /// The hashes of a chunk that was written with another hash function.
    fn hash_again(&self, store: &Store, number: u64) -> Result<Box<[u64]>, store::Error> {
        let body = store.outcomes(number)?;
        let mut rest = body.as_slice();
        let mut hashes = Vec::new();
        while !rest.is_empty() {
            let key = Record::read(&mut rest).and_then(|record| record.key());
            let key = key.ok_or_else(|| store.damaged(format!("chunk {number} is malformed")))?;
            hashes.push(self.hasher.hash_one(key));
        }
        Ok(hashes.into())
    }

    /// What is remembered of a command.
    ///
    /// # Errors
    /// When the store can't be read: then nobody knows.
    pub fn recall(&mut self, key: CommandKey<'_>, now: Timestamp) -> Result<Option<Remembered<'_>>, store::Error> {
        let window = self.window;
        let found = self.find(key)?;
        Ok(found.filter(|found| !is_past(found.at, now, window)))
    }

    /// What there is of a command, expired or not.
    fn find(&mut self, key: CommandKey<'_>) -> Result<Option<Remembered<'_>>, store::Error> {
        let hash = self.hasher.hash_one(key);
        let Self { entries, numbers, store, read, .. } = self;
        let recent = numbers.find(hash, |number| entries.recent(*number).is_some_and(|entry| entry.is_of(hash, key)));
        if let Some(entry) = recent.and_then(|number| entries.recent(*number)) {
            return Ok(Some(entry.record().remembered()));
        }
        let Some(store) = store.as_ref().filter(|_| !entries.chunks.is_empty()) else { return Ok(None) };
        let stored = numbers.iter_hash(hash).filter_map(|number| match entries.place(*number) {
            Place::Stored(chunk, at) if chunk.hashes[at] == hash => Some((chunk.number, at)),
            _ => None,
        });
        let mut stored: Vec<(u64, usize)> = stored.collect();
        stored.sort_unstable();
        // The youngest first.
        while let Some((number, at)) = stored.pop() {
            let record = stored_record(store, read, number, at)?;
            if record.is_of(key) {
                let Remembered { fingerprint, outcome, at } = record.remembered();
                return Ok(Some(Remembered { fingerprint, outcome: outcome.into_owned().into(), at }));
            }
        }
        Ok(None)
    }

    /// Remembers; counts as part of the batch until [`Memory::commit`]. What is remembered of the command has expired.
    ///
    /// Ids of aggregates and commands have a few hundred bytes at most; longer ones are not remembered.
    pub fn remember(&mut self, key: CommandKey<'_>, remembered: Remembered<'_>) {
        let (aggregate, command) = (key.aggregate_id.as_bytes(), key.command_id.as_bytes());
        let ends = (u16::try_from(aggregate.len()), u16::try_from(aggregate.len() + command.len()));
        let (Ok(aggregate_end), Ok(command_end)) = ends else { return };
        let hash = self.hasher.hash_one(key);
        let Self { entries, numbers, .. } = self;
        // An older one is past the window, or it would have been recalled.
        let older =
            numbers.find_entry(hash, |number| entries.recent(*number).is_some_and(|entry| entry.is_of(hash, key)));
        if let Ok(older) = older {
            older.remove();
        }
        numbers.insert_unique(hash, entries.end() as u32, |number| entries.hash(*number));
        let entry = Entry {
            hash,
            fingerprint: remembered.fingerprint,
            at: remembered.at,
            bytes: [aggregate, command, &remembered.outcome].concat().into(),
            aggregate_end,
            command_end,
        };
        self.bytes += entry.record().size() as u64;
        entries.recent.push_back(entry);
        self.uncommitted += 1;
    }

    /// Remembers an outcome that was read back from the log, if it is not yet remembered.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn read_back(&mut self, key: CommandKey<'_>, remembered: Remembered<'_>) -> Result<(), store::Error> {
        if self.find(key)?.is_none_or(|known| known.at != remembered.at) {
            self.remember(key, remembered);
            self.commit();
        }
        Ok(())
    }

    /// The batch is in the log.
    pub fn commit(&mut self) {
        self.uncommitted = 0;
    }

    /// The batch is not in the log.
    pub fn rollback(&mut self) {
        for _ in 0..std::mem::take(&mut self.uncommitted) {
            if let Some(entry) = self.entries.recent.pop_back() {
                self.bytes -= entry.record().size() as u64;
                self.forget(self.entries.end() as u32, entry.hash);
            }
        }
    }

    /// All outcomes of committed batches that are not in the store yet, as chunks, and what has expired there: for the
    /// store's next commit. Until [`Memory::stored`] they also stay in memory; when that is not called, since the commit
    /// failed, the next call gives them again.
    pub fn take_chunks(&mut self) -> Taken {
        self.taken.clear();
        let below = self.entries.chunks.front().map_or(self.next_chunk, |chunk| chunk.number);
        let probe = self.hasher.hash_one(PROBE);
        let mut chunks = Vec::new();
        let mut first = self.entries.recent_first;
        let committed = self.entries.recent.len() - self.uncommitted;
        let mut entries = self.entries.recent.iter().take(committed).peekable();
        while let Some(oldest) = entries.peek() {
            let (mut body, mut hashes, mut newest) = (Vec::new(), Vec::new(), oldest.at);
            while let Some(entry) =
                entries.next_if(|entry| body.is_empty() || body.len() + entry.record().size() <= CHUNK_BYTES)
            {
                entry.record().write(&mut body);
                hashes.push(entry.hash);
                newest = newest.max(entry.at);
            }
            let number = self.next_chunk + chunks.len() as u64;
            let chunk = Chunk { number, first, newest, hashes: hashes.into(), bytes: body.len() as u64 };
            first += chunk.hashes.len() as u64;
            chunks.push(OutcomeChunk { number, index: chunk.index(probe), body });
            self.taken.push(chunk);
        }
        Taken { chunks, below }
    }

    /// What was taken last is in the store.
    pub fn stored(&mut self) {
        for chunk in self.taken.drain(..) {
            self.entries.recent.drain(..chunk.hashes.len());
            self.entries.recent_first += chunk.hashes.len() as u64;
            self.next_chunk = chunk.number + 1;
            self.entries.chunks.push_back(chunk);
        }
    }

    /// What was taken last did not get into the store.
    pub fn not_stored(&mut self) {
        self.taken.clear();
    }

    /// Removes what has expired, in bounded steps. A chunk goes as a whole, when its last outcome has expired.
    pub fn expire(&mut self, now: Timestamp) {
        self.remove_oldest(|memory, newest| memory.is_past(newest, now));
    }

    /// Removes the oldest, expired or not, until no more bytes than these are left, in bounded steps.
    pub fn forget_beyond(&mut self, bytes: u64) {
        self.remove_oldest(|memory, _| memory.bytes > bytes);
    }

    fn remove_oldest(&mut self, goes: impl Fn(&Self, Timestamp) -> bool) {
        let mut left = EXPIRE_AT_ONCE;
        while left > 0 {
            if let Some(oldest) = self.entries.chunks.front() {
                if !goes(self, oldest.newest) {
                    return;
                }
                let Some(chunk) = self.entries.chunks.pop_front() else { return };
                for (number, hash) in (chunk.first..).zip(&chunk.hashes) {
                    self.forget(number as u32, *hash);
                }
                self.bytes -= chunk.bytes;
                left = left.saturating_sub(chunk.hashes.len());
            } else {
                // What is being written stays until it is.
                let gone = self.entries.recent.front().is_some_and(|oldest| goes(self, oldest.at));
                if !gone || !self.taken.is_empty() {
                    return;
                }
                let Some(entry) = self.entries.recent.pop_front() else { return };
                self.forget(self.entries.recent_first as u32, entry.hash);
                self.bytes -= entry.record().size() as u64;
                self.entries.recent_first += 1;
                left -= 1;
            }
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Bytes of all that is remembered, in memory or in the store.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether an outcome of this time is past the window.
    pub fn is_past(&self, at: Timestamp, now: Timestamp) -> bool {
        is_past(at, now, self.window)
    }

    /// Takes a number out of the table; it is not there when its id was remembered anew.
    fn forget(&mut self, number: u32, hash: u64) {
        if let Ok(entry) = self.numbers.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
    }
}

fn is_past(at: Timestamp, now: Timestamp, window: Duration) -> bool {
    now > at && now.duration_since(at).unsigned_abs() > window
}

/// An outcome of a chunk, which is read unless it was the last.
fn stored_record<'a>(
    store: &Store,
    read: &'a mut Option<(u64, Vec<u8>)>,
    number: u64,
    at: usize,
) -> Result<Record<'a>, store::Error> {
    if read.as_ref().is_none_or(|(last, _)| *last != number) {
        *read = Some((number, store.outcomes(number)?));
    }
    let mut rest = read.as_ref().map_or(&[][..], |(_, body)| body);
    let record = (0..=at).map(|_| Record::read(&mut rest)).last().flatten();
    record.ok_or_else(|| store.damaged(format!("chunk {number} is malformed")))
}
