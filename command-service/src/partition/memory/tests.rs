//! Remembered outcomes, in memory and in a store.

use super::*;
use crate::store::{Batch, Checkpoint, Identity, StatesOf};

const KEY: CommandKey<'_> = CommandKey { aggregate_id: "acc-42", command_id: "c1" };
const OTHER: CommandKey<'_> = CommandKey { aggregate_id: "acc-4", command_id: "2c1" };
const WINDOW: Duration = Duration::from_secs(10);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn remembered(outcome: &[u8], seconds: i64) -> Remembered<'_> {
    Remembered { fingerprint: [1; 16], outcome: outcome.into(), at: at(seconds) }
}

fn outcome(memory: &mut Memory, key: CommandKey<'_>, seconds: i64) -> Option<Vec<u8>> {
    memory.recall(key, at(seconds)).unwrap().map(|known| known.outcome.into_owned())
}

/// A directory with a store, and what is remembered over it.
struct OnDisk {
    dir: tempfile::TempDir,
    memory: Memory,
    window: Duration,
}

impl OnDisk {
    fn new(window: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = Self::over(dir.path(), window);
        Self { dir, memory, window }
    }

    fn over(dir: &std::path::Path, window: Duration) -> Memory {
        let identity = Identity {
            states: StatesOf {
                aggregate_type: "bank-account".to_owned(),
                partition: 0,
                partitions: 1,
                events_topic_id: String::new(),
                state_version: 1,
            },
            outcomes_topic_id: String::new(),
            commands_topic_id: String::new(),
            window: Duration::from_secs(10),
            answers_forget: false,
        };
        let opened = Store::open(&dir.join("store"), &identity, 1 << 20).unwrap();
        Memory::open(window, Arc::new(opened.store)).unwrap()
    }

    fn store(&self) -> Arc<Store> {
        self.memory.store.clone().unwrap()
    }

    fn write(&self, chunks: Vec<OutcomeChunk>, below: u64) {
        let checkpoint = Checkpoint { events_offset: 0, outcomes_offset: 0, decided_up_to: None, aggregates: 0 };
        let batch = Batch { outcomes: chunks, outcomes_below: below, ..Batch::new(checkpoint) };
        self.store().commit(batch).unwrap();
    }

    /// All that is committed goes to the store.
    fn flush(&mut self) {
        let Taken { chunks, below } = self.memory.take_chunks();
        self.write(chunks, below);
        self.memory.stored();
    }

    /// What is not in the store is lost.
    fn reopen(&mut self) {
        self.memory = Memory::new(self.window);
        self.memory = Self::over(self.dir.path(), self.window);
    }

    fn remember(&mut self, key: CommandKey<'_>, outcome: &[u8], seconds: i64) {
        self.memory.remember(key, remembered(outcome, seconds));
        self.memory.commit();
    }
}

#[test]
fn g05_what_was_remembered_again_outlives_its_older_self() {
    let mut memory = Memory::new(WINDOW);
    memory.remember(KEY, remembered(b"old", 0));
    memory.commit();
    assert_eq!(memory.recall(KEY, at(11)).unwrap(), None);
    memory.remember(KEY, remembered(b"new", 11));
    memory.commit();
    memory.expire(at(12));
    assert_eq!(outcome(&mut memory, KEY, 12).unwrap(), b"new");
    assert_eq!(memory.len(), 1);
    memory.expire(at(22));
    assert_eq!((memory.len(), memory.bytes()), (0, 0));
}

#[test]
fn g05_in_the_store_what_was_remembered_again_outlives_its_older_self() {
    let mut disk = OnDisk::new(WINDOW);
    disk.remember(KEY, b"old", 0);
    // It keeps the chunk in the store when the older one has expired.
    disk.remember(OTHER, b"other", 9);
    disk.flush();
    assert_eq!(outcome(&mut disk.memory, KEY, 10).unwrap(), b"old");
    assert_eq!(outcome(&mut disk.memory, KEY, 11), None);
    disk.remember(KEY, b"new", 11);
    for stored in [false, true] {
        if stored {
            disk.flush();
            disk.reopen();
        }
        disk.memory.expire(at(12));
        assert_eq!(outcome(&mut disk.memory, KEY, 12).unwrap(), b"new");
        assert_eq!(outcome(&mut disk.memory, OTHER, 12).unwrap(), b"other");
    }
    disk.memory.expire(at(20));
    assert_eq!((outcome(&mut disk.memory, KEY, 20).unwrap(), disk.memory.len()), (b"new".to_vec(), 1));
    disk.memory.expire(at(22));
    assert_eq!((disk.memory.len(), disk.memory.bytes()), (0, 0));
    disk.flush();
    assert_eq!(disk.store().outcome_index().unwrap(), []);
}

#[test]
fn g05_a_batch_that_is_rolled_back_is_forgotten_and_no_other() {
    let mut memory = Memory::new(WINDOW);
    memory.remember(KEY, remembered(b"first", 0));
    memory.commit();
    let bytes = memory.bytes();
    memory.remember(OTHER, remembered(b"second", 0));
    memory.rollback();
    assert_eq!((outcome(&mut memory, KEY, 1).unwrap(), outcome(&mut memory, OTHER, 1)), (b"first".to_vec(), None));
    assert_eq!(memory.bytes(), bytes);
}

#[test]
fn g02_a_batch_that_is_not_committed_does_not_get_into_the_store() {
    let mut disk = OnDisk::new(WINDOW);
    disk.remember(KEY, b"first", 0);
    disk.memory.remember(OTHER, remembered(b"second", 0));
    let taken = disk.memory.take_chunks();
    disk.write(taken.chunks, taken.below);
    // The batch ends while the store is writing.
    disk.memory.rollback();
    disk.memory.stored();
    for _ in 0..2 {
        assert_eq!(outcome(&mut disk.memory, KEY, 1).unwrap(), b"first");
        assert_eq!(outcome(&mut disk.memory, OTHER, 1), None);
        disk.reopen();
    }
}

#[test]
fn g05_what_a_failed_commit_took_stays_and_is_taken_again() {
    let mut disk = OnDisk::new(WINDOW);
    disk.remember(KEY, b"first", 0);
    let lost = disk.memory.take_chunks();
    disk.memory.not_stored();
    disk.remember(OTHER, b"second", 1);
    assert_eq!(outcome(&mut disk.memory, KEY, 1).unwrap(), b"first");
    let again = disk.memory.take_chunks();
    assert!(again.chunks[0].body.starts_with(&lost.chunks[0].body));
    disk.flush();
    disk.reopen();
    assert_eq!(outcome(&mut disk.memory, KEY, 1).unwrap(), b"first");
    assert_eq!(outcome(&mut disk.memory, OTHER, 1).unwrap(), b"second");
}

#[test]
fn g05_what_is_being_written_does_not_expire() {
    let mut disk = OnDisk::new(WINDOW);
    disk.remember(KEY, b"first", 0);
    let taken = disk.memory.take_chunks();
    disk.memory.expire(at(20));
    disk.write(taken.chunks, taken.below);
    disk.memory.stored();
    assert_eq!(disk.memory.len(), 1);
    disk.memory.expire(at(20));
    assert_eq!((disk.memory.len(), disk.memory.bytes()), (0, 0));
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
            let found = memory.recall(CommandKey { command_id: &id, ..KEY }, at(second)).unwrap();
            assert_eq!(found, Some(remembered(id.as_bytes(), known)));
        }
        assert_eq!(memory.len() as i64, second - oldest + 1);
    }
}

#[test]
fn g05_thousands_are_told_apart_in_the_store_while_the_oldest_expire() {
    let mut disk = OnDisk::new(Duration::from_secs(100));
    // Ten seconds make several chunks.
    let long = "x".repeat(3000);
    let bytes = |id: &str| format!("{id} {long}").into_bytes();
    for second in 0..400 {
        for nth in 0..5 {
            let id = format!("{second}.{nth}");
            disk.remember(CommandKey { command_id: &id, ..KEY }, &bytes(&id), second);
        }
        disk.memory.expire(at(second));
        match second % 10 {
            // What was not flushed is read back from the log, with some that was.
            7 => {
                disk.reopen();
                for again in (second - 15).max(0)..=second {
                    for nth in 0..5 {
                        let id = format!("{again}.{nth}");
                        let key = CommandKey { command_id: &id, ..KEY };
                        disk.memory.read_back(key, remembered(&bytes(&id), again)).unwrap();
                    }
                }
                disk.memory.expire(at(second));
            }
            3 => disk.flush(),
            _ => continue,
        }
        for known in 0..=second + 1 {
            let id = format!("{known}.{}", known % 5);
            let found = disk.memory.recall(CommandKey { command_id: &id, ..KEY }, at(second)).unwrap();
            let outcome = bytes(&id);
            let expected = (second - 100..=second).contains(&known).then(|| remembered(&outcome, known));
            assert_eq!(found, expected, "{id} at {second}");
        }
        // A chunk outlives its first outcomes, by less than ten seconds.
        let in_window = (second.min(100) + 1) * 5;
        let most = in_window + if second > 100 { 50 } else { 0 };
        assert!((in_window..=most).contains(&(disk.memory.len() as i64)), "{} at {second}", disk.memory.len());
    }
    assert!(disk.store().outcome_index().unwrap().iter().map(|(_, index)| index.len()).max() < Some(200));
    disk.memory.expire(at(600));
    assert_eq!((disk.memory.len(), disk.memory.bytes()), (0, 0));
    disk.flush();
    assert_eq!(disk.store().outcome_index().unwrap(), []);
}

#[test]
fn g05_what_is_read_back_twice_is_there_once() {
    let mut disk = OnDisk::new(WINDOW);
    for _ in 0..2 {
        disk.memory.read_back(KEY, remembered(b"first", 0)).unwrap();
        assert_eq!(disk.memory.len(), 1);
    }
    disk.flush();
    disk.reopen();
    let bytes = disk.memory.bytes();
    disk.memory.read_back(KEY, remembered(b"first", 0)).unwrap();
    assert_eq!((disk.memory.len(), disk.memory.bytes(), disk.memory.take_chunks().chunks.len()), (1, bytes, 0));
    // Another one of the same id, after the window.
    disk.memory.read_back(KEY, remembered(b"second", 20)).unwrap();
    assert_eq!(outcome(&mut disk.memory, KEY, 20).unwrap(), b"second");
}

#[test]
fn g02_what_cannot_be_read_is_not_taken_for_unknown() {
    let mut disk = OnDisk::new(WINDOW);
    disk.remember(KEY, b"first", 0);
    disk.flush();
    // Behind its back.
    disk.write(Vec::new(), 1);
    assert!(disk.memory.recall(KEY, at(1)).is_err());
    assert!(disk.memory.read_back(KEY, remembered(b"first", 0)).is_err());
    assert_eq!(disk.memory.recall(OTHER, at(1)).unwrap(), None);
}

#[test]
fn g05_a_hash_function_that_has_changed_is_noticed() {
    let mut disk = OnDisk::new(WINDOW);
    disk.remember(KEY, b"first", 0);
    disk.remember(OTHER, b"second", 1);
    let Taken { mut chunks, below } = disk.memory.take_chunks();
    // Another probe, and hashes as another function makes them.
    chunks[0].index[..8].fill(9);
    chunks[0].index[24..].fill(9);
    disk.write(chunks, below);
    disk.reopen();
    assert_eq!(outcome(&mut disk.memory, KEY, 1).unwrap(), b"first");
    assert_eq!(outcome(&mut disk.memory, OTHER, 1).unwrap(), b"second");
}

#[test]
fn g02_two_commands_of_one_hash_are_told_apart_in_the_store() {
    let mut disk = OnDisk::new(WINDOW);
    disk.remember(KEY, b"first", 0);
    disk.remember(OTHER, b"second", 1);
    let Taken { mut chunks, below } = disk.memory.take_chunks();
    let hash = disk.memory.hasher.hash_one(KEY).to_le_bytes();
    chunks[0].index[32..40].copy_from_slice(&hash);
    disk.write(chunks, below);
    disk.reopen();
    assert_eq!(outcome(&mut disk.memory, KEY, 1).unwrap(), b"first");
    assert_eq!(disk.memory.len(), 2);
}
