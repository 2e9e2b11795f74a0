//! The remembered outcomes of a partition: what makes a repeat harmless.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hash},
    time::Duration,
};

use hashbrown::HashTable;
use jiff::Timestamp;
use millrace_shared::{fast_hash::FastHash, fingerprint::Fingerprint};

/// Expired outcomes removed after one batch, at most: a batch is never held up by many.
const EXPIRE_AT_ONCE: usize = 10_000;

/// What a command is known by. Its id belongs to its aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub struct CommandKey<'a> {
    /// Aggregate.
    pub aggregate_id: &'a str,
    /// Command.
    pub command_id: &'a str,
}

/// An outcome that is remembered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Remembered<'a> {
    /// Of the command that it answered.
    pub fingerprint: Fingerprint,
    /// The outcome as it was published.
    pub outcome: &'a [u8],
    /// When it was decided.
    pub at: Timestamp,
}

/// Outcomes by aggregate and command id, for a window of time.
pub struct Memory {
    window: Duration,
    /// In the order of their coming, each with a number that counts on.
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    /// Numbers by the hash of the key.
    numbers: HashTable<u64>,
    hasher: FastHash,
    /// How many of the last ones belong to the batch that is under way.
    uncommitted: usize,
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

impl Entry {
    fn is_of(&self, hash: u64, key: CommandKey<'_>) -> bool {
        let (aggregate, command) = (usize::from(self.aggregate_end), usize::from(self.command_end));
        self.hash == hash
            && self.bytes[..aggregate] == *key.aggregate_id.as_bytes()
            && self.bytes[aggregate..command] == *key.command_id.as_bytes()
    }
}

impl Memory {
    /// An empty one.
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            entries: VecDeque::new(),
            first: 0,
            numbers: HashTable::new(),
            hasher: FastHash::default(),
            uncommitted: 0,
        }
    }

    /// What is remembered of a command.
    pub fn recall(&self, key: CommandKey<'_>, now: Timestamp) -> Option<Remembered<'_>> {
        let hash = self.hasher.hash_one(key);
        let number = self.numbers.find(hash, |number| self.entry(*number).is_of(hash, key))?;
        let entry = self.entry(*number);
        (!self.is_past(entry.at, now)).then(|| Remembered {
            fingerprint: entry.fingerprint,
            outcome: &entry.bytes[usize::from(entry.command_end)..],
            at: entry.at,
        })
    }

    /// Remembers; counts as part of the batch until [`Memory::commit`].
    ///
    /// Ids of aggregates and commands have a few hundred bytes at most; longer ones are not remembered.
    pub fn remember(&mut self, key: CommandKey<'_>, remembered: Remembered<'_>) {
        let (aggregate, command) = (key.aggregate_id.as_bytes(), key.command_id.as_bytes());
        let ends = (u16::try_from(aggregate.len()), u16::try_from(aggregate.len() + command.len()));
        let (Ok(aggregate_end), Ok(command_end)) = ends else { return };
        let hash = self.hasher.hash_one(key);
        let (entries, first) = (&self.entries, self.first);
        let of = |number: &u64| &entries[(number - first) as usize];
        // An older one is past the window, or it would have been recalled.
        if let Ok(older) = self.numbers.find_entry(hash, |number| of(number).is_of(hash, key)) {
            older.remove();
        }
        self.numbers.insert_unique(hash, first + entries.len() as u64, |number| of(number).hash);
        self.entries.push_back(Entry {
            hash,
            fingerprint: remembered.fingerprint,
            at: remembered.at,
            bytes: [aggregate, command, remembered.outcome].concat().into(),
            aggregate_end,
            command_end,
        });
        self.uncommitted += 1;
    }

    /// The batch is in the log.
    pub fn commit(&mut self) {
        self.uncommitted = 0;
    }

    /// The batch is not in the log.
    pub fn rollback(&mut self) {
        for _ in 0..std::mem::take(&mut self.uncommitted) {
            if let Some(entry) = self.entries.pop_back() {
                self.forget(self.first + self.entries.len() as u64, entry.hash);
            }
        }
    }

    /// Removes what has expired, in bounded steps.
    pub fn expire(&mut self, now: Timestamp) {
        for _ in 0..EXPIRE_AT_ONCE {
            if self.entries.front().is_none_or(|oldest| !self.is_past(oldest.at, now)) {
                return;
            }
            if let Some(entry) = self.entries.pop_front() {
                self.forget(self.first, entry.hash);
                self.first += 1;
            }
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether an outcome of this time is past the window.
    pub fn is_past(&self, at: Timestamp, now: Timestamp) -> bool {
        now > at && now.duration_since(at).unsigned_abs() > self.window
    }

    fn entry(&self, number: u64) -> &Entry {
        &self.entries[(number - self.first) as usize]
    }

    /// Takes a number out of the table; it is not there when its id was remembered anew.
    fn forget(&mut self, number: u64, hash: u64) {
        if let Ok(entry) = self.numbers.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: CommandKey<'_> = CommandKey { aggregate_id: "acc-42", command_id: "c1" };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn remembered(outcome: &[u8], seconds: i64) -> Remembered<'_> {
        Remembered { fingerprint: [1; 16], outcome, at: at(seconds) }
    }

    #[test]
    fn g05_what_was_remembered_again_outlives_its_older_self() {
        let mut memory = Memory::new(Duration::from_secs(10));
        memory.remember(KEY, remembered(b"old", 0));
        memory.commit();
        assert_eq!(memory.recall(KEY, at(11)), None);
        memory.remember(KEY, remembered(b"new", 11));
        memory.commit();
        memory.expire(at(12));
        assert_eq!(memory.recall(KEY, at(12)).unwrap().outcome, b"new");
        assert_eq!(memory.len(), 1);
        memory.expire(at(22));
        assert_eq!(memory.len(), 0);
    }

    #[test]
    fn g05_a_batch_that_is_rolled_back_is_forgotten_and_no_other() {
        let mut memory = Memory::new(Duration::from_secs(10));
        let other = CommandKey { aggregate_id: "acc-4", command_id: "2c1" };
        memory.remember(KEY, remembered(b"first", 0));
        memory.commit();
        memory.remember(other, remembered(b"second", 0));
        memory.rollback();
        assert_eq!((memory.recall(KEY, at(1)).unwrap().outcome, memory.recall(other, at(1))), (&b"first"[..], None));
    }

    #[test]
    fn g05_thousands_are_told_apart_while_the_oldest_expire() {
        let mut memory = Memory::new(Duration::from_secs(100));
        for second in 0..1000 {
            let id = second.to_string();
            memory.remember(CommandKey { command_id: &id, ..KEY }, remembered(id.as_bytes(), second));
            memory.commit();
            memory.expire(at(second));
            let oldest = (second - 100).max(0);
            for known in oldest..=second {
                let id = known.to_string();
                let found = memory.recall(CommandKey { command_id: &id, ..KEY }, at(second));
                assert_eq!(found, Some(remembered(id.as_bytes(), known)));
            }
            assert_eq!(memory.len() as i64, second - oldest + 1);
        }
    }
}
