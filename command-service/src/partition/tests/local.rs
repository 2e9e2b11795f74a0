//! Partitions with a local store: what they know after a restart, and what they keep in memory.

use std::{fs, path::Path, thread};

use tempfile::TempDir;

use super::*;
use crate::{failpoints::FailPoints, partition::StoreSettings, store::keeper::Keeper};

const DEPOSIT: &str = r#"{"amount_minor": 100}"#;
/// Where the topics end, as far as these tests are concerned.
const EVENTS: (i64, i64) = (0, 1000);
const OUTCOMES_END: i64 = 1000;

/// A bench whose partition has a store in a directory, with room for so many bytes of states in memory.
struct Kept {
    bench: Bench,
    keeper: Keeper,
    dir: TempDir,
    states_bytes: usize,
}

impl Kept {
    fn new(states_bytes: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let (keeper, keeping) = Keeper::new(dir.path().to_owned(), FailPoints::default());
        thread::spawn(move || keeping.run());
        let mut kept = Self { bench: Bench::new(), keeper, dir, states_bytes };
        kept.restart();
        kept
    }

    /// Another partition in place of the present one, as after a restart.
    fn restart(&mut self) {
        let without = Settings { store: None, ..settings(&self.bench.runtime, &self.bench.waiters) };
        // First the old one lets go of its store.
        self.bench.partition = Partition::new(self.bench.kind.clone(), without.clone());
        let store = StoreSettings { keeper: self.keeper.clone(), states_bytes: self.states_bytes };
        let with = Settings { store: Some(store), ..without };
        self.bench.partition = Partition::new(self.bench.kind.clone(), with);
    }

    /// Writes the store, up to these offsets.
    fn store(&mut self, events: i64, outcomes: i64) {
        assert!(self.bench.partition.unstored() > 0, "there is something to be written");
        self.bench.partition.begin_store_commit(self.bench.offset, events, outcomes);
        self.bench.partition.local.as_mut().unwrap().may_evict();
        while self.bench.partition.is_storing() {
            thread::sleep(Duration::from_millis(1));
            assert!(!self.bench.partition.tend(self.bench.now), "it works");
        }
    }

    fn stored_up_to(&mut self) -> Option<(i64, i64)> {
        self.bench.partition.stored_up_to(EVENTS, OUTCOMES_END)
    }

    fn file(&self) -> std::path::PathBuf {
        self.keeper.path("bank-account", self.bench.partition.settings.slot.partition)
    }

    /// Version and reason, as a command that is refused sees them.
    fn judge(&mut self) -> (i64, String) {
        let sent = self.bench.send("withdraw", r#"{"amount_minor": 1000000}"#, &[]);
        let outcome = self.bench.outcome(&sent[0]);
        (outcome.version, outcome.detail.unwrap_or_default())
    }
}

#[test]
fn g03_g05_a_restart_knows_states_and_answers_without_reading_the_log() {
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    let first = kept.bench.send("deposit", DEPOSIT, &[(names::ID, "c1")]);
    kept.store(2, 2);
    let after = kept.bench.send("deposit", DEPOSIT, &[(names::ID, "c2")]);
    kept.restart();
    assert_eq!(kept.stored_up_to(), Some((2, 2)));
    assert_eq!(kept.bench.partition.decided_up_to(), Some(2));
    // What lies behind is read from the log, and a little more, which changes nothing.
    for (offset, record) in first.iter().chain(&after).enumerate() {
        record.restore(&mut kept.bench.partition, offset as i64, kept.bench.now);
    }
    let (version, detail) = kept.judge();
    assert!(version == 3 && detail.contains("200"), "{version} {detail}");
    for (id, sent) in [("c1", &first), ("c2", &after)] {
        let repeated = kept.bench.send("deposit", DEPOSIT, &[(names::ID, id)]);
        assert_eq!((repeated.len(), &repeated[0].value), (1, &sent[1].value), "{id}");
    }
}

#[test]
fn g03_snapshots_go_to_a_fresh_store_which_is_of_no_use_until_it_is_filled() {
    const ACCOUNTS: usize = 2000;
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    let old = kept.bench.checkpoint(1);
    kept.bench.send("deposit", DEPOSIT, &[]);
    let new = kept.bench.checkpoint(2);
    let account = |number: usize| format!("other-{number}");
    let fill = |kept: &mut Kept| {
        kept.restart();
        assert_eq!(kept.stored_up_to(), None);
        for (round, record) in [&old[0], &new[0]].into_iter().enumerate() {
            for number in 0..ACCOUNTS {
                let record = Sent { key: Some(account(number).into_bytes()), ..record.clone() };
                record.restore(&mut kept.bench.partition, (round * ACCOUNTS + number) as i64, kept.bench.now);
            }
        }
        // It takes several portions, and memory has none of them.
        let local = kept.bench.partition.local.as_ref().unwrap();
        assert!(local.stored() > 0 && kept.bench.partition.aggregates.is_empty());
    };
    fill(&mut kept);
    new[1].restore(&mut kept.bench.partition, 2 * ACCOUNTS as i64, kept.bench.now);
    assert_eq!(kept.bench.partition.first_event_to_read(0, 100).unwrap(), 2);
    assert_eq!(kept.bench.partition.snapshots.count, ACCOUNTS as u64);
    for number in (0..ACCOUNTS).step_by(97) {
        kept.bench.partition.load(&account(number)).unwrap();
        assert_eq!(kept.bench.partition.aggregates[&*account(number)].version, 2, "the last one counts");
    }
    // What a kill in the middle of it leaves is not used, nor what was filled but not brought up to date.
    fill(&mut kept);
    kept.restart();
    assert_eq!(kept.stored_up_to(), None);
}

#[test]
fn g03_g05_what_was_not_stored_before_a_kill_is_not_there_after_it() {
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    kept.store(1, 1);
    kept.bench.send("deposit", DEPOSIT, &[]);
    kept.restart();
    assert_eq!(kept.stored_up_to(), Some((1, 1)));
    assert_eq!(kept.judge().0, 1);
}

#[test]
fn g03_g05_a_batch_that_is_rolled_back_never_gets_into_the_store() {
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    kept.store(1, 1);
    let value = kept.bench.value("deposit", DEPOSIT);
    let record = kept.bench.record(Some(&value), &[(names::ID, "c1")]);
    kept.bench.decide(&record);
    kept.bench.partition.rollback();
    assert_eq!(kept.bench.partition.unstored(), 0, "nothing has changed");
    assert_eq!(kept.judge().0, 1);
    kept.store(1, 1);
    kept.restart();
    assert_eq!(kept.judge().0, 1);
    assert_eq!(topics(&kept.bench.send("deposit", DEPOSIT, &[(names::ID, "c1")])), [Topic::Events, Topic::Outcomes]);
}

#[test]
fn g16_states_that_are_not_in_use_wait_in_the_store() {
    let mut kept = Kept::new(20_000);
    let ids: Vec<String> = (0..)
        .map(|n| format!("acc-{n}"))
        .filter(|id| partition_of(id.as_bytes(), PARTITIONS) == kept.bench.partition.settings.slot.partition)
        .take(500)
        .collect();
    let command = |kept: &mut Kept, id: &str, command: &str, body: &str| {
        let value = kept.bench.value(command, body);
        kept.bench.offset += 1;
        let time = Some(kept.bench.now.as_millisecond());
        let record =
            CommandRecord::new(kept.bench.offset - 1, time, Some(id.as_bytes()), Some(&value), std::iter::empty());
        let sent = kept.bench.decide(&record);
        kept.bench.partition.commit(kept.bench.now);
        kept.bench.outcome(sent.last().unwrap())
    };
    for round in 1..4 {
        for (at, id) in ids.iter().enumerate() {
            let (name, body) = if round == 1 { ("open", OPEN) } else { ("deposit", DEPOSIT) };
            assert_eq!(command(&mut kept, id, name, body).version, round, "{id}");
            if at % 100 == 99 {
                kept.store(0, 0);
            }
        }
        // Twice, since what was used since the last time stays for once.
        command(&mut kept, &ids[0], "withdraw", r#"{"amount_minor": 1000000}"#);
        kept.store(0, 0);
        let in_memory = kept.bench.partition.aggregates.len();
        assert!(in_memory < 250, "{in_memory} of {}", ids.len());
    }
}

#[test]
fn g03_g05_a_store_that_does_not_fit_the_topics_is_not_used() {
    for (events, outcomes, ends) in [(7, 1, ((0, 6), 10)), (1, 7, ((0, 10), 6)), (1, 1, ((2, 10), 10))] {
        let mut kept = Kept::new(1 << 20);
        kept.bench.send("open", OPEN, &[(names::ID, "c1")]);
        kept.store(events, outcomes);
        kept.restart();
        assert_eq!(kept.bench.partition.stored_up_to(ends.0, ends.1), None, "{ends:?}");
        assert_eq!(kept.judge().0, 0, "nothing is known");
        assert_eq!(topics(&kept.bench.send("open", OPEN, &[(names::ID, "c1")])), [Topic::Events, Topic::Outcomes]);
    }
}

#[test]
fn g03_g05_another_partitions_store_is_not_used() {
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    kept.store(1, 1);
    let stolen = fs::read(kept.file()).unwrap();
    kept.bench.partition.settings.store = None;
    let other = kept.bench.partition.settings.slot.partition + 1;
    let path = kept.keeper.path("bank-account", other);
    fs::write(&path, stolen).unwrap();
    let store = StoreSettings { keeper: kept.keeper.clone(), states_bytes: 1 << 20 };
    let mut with = settings(&kept.bench.runtime, &kept.bench.waiters);
    (with.store, with.slot.partition) = (Some(store), other);
    let mut partition = Partition::<BankAccount>::new(kept.bench.kind.clone(), with);
    assert_eq!(partition.stored_up_to(EVENTS, OUTCOMES_END), None);
    assert_eq!(partition.sizes(), (0, 0));
}

#[test]
fn g03_g05_a_damaged_store_gives_no_wrong_answer() {
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    kept.store(1, 1);
    kept.restart();
    // The file changes under its feet.
    spoil(&kept.file());
    let value = kept.bench.value("deposit", DEPOSIT);
    let record = kept.bench.record(Some(&value), &[]);
    let mut sink = Collect::default();
    match kept.bench.partition.decide(&record, kept.bench.now, &mut sink) {
        // It had been read before.
        Ok(()) => assert_eq!(kept.bench.outcome(&sink.0[1]).version, 2),
        Err(_) => assert!(kept.bench.partition.tend(kept.bench.now), "to be taken over anew"),
    }
    kept.restart();
    match kept.stored_up_to() {
        Some(_) => assert_eq!(kept.judge().0, 1),
        None => assert_eq!(kept.judge().0, 0, "a fresh one, to be restored from the topics"),
    }
}

#[test]
fn g12_a_history_that_cannot_be_read_is_covered_by_no_store() {
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    kept.store(1, 1);
    let mut deposited = kept.bench.send("deposit", DEPOSIT, &[]);
    kept.restart();
    assert_eq!(kept.stored_up_to(), Some((1, 1)));
    let readable = deposited[0].clone();
    deposited[0].value = Some(b"of a later release".to_vec());
    deposited[0].restore(&mut kept.bench.partition, 1, kept.bench.now);
    assert_eq!(kept.judge().0, 1, "refused");
    assert_eq!(kept.bench.partition.unstored(), 0);
    kept.bench.partition.begin_store_commit(3, 3, 3);
    // The later release begins where this one could not go on.
    kept.restart();
    assert_eq!(kept.stored_up_to(), Some((1, 1)));
    readable.restore(&mut kept.bench.partition, 1, kept.bench.now);
    let (version, detail) = kept.judge();
    assert!(version == 2 && detail.contains("100"), "{version} {detail}");
}

fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes.iter_mut().skip(4096).for_each(|byte| *byte ^= 0x55);
    fs::write(path, bytes).unwrap();
}

#[test]
fn g03_g05_what_is_newer_than_its_snapshot_is_known_after_a_restart() {
    let mut kept = Kept::new(1 << 20);
    kept.bench.send("open", OPEN, &[]);
    kept.store(1, 1);
    kept.restart();
    let checkpoint = kept.bench.checkpoint(1);
    assert_eq!(topics(&checkpoint), [Topic::Snapshots, Topic::Snapshots], "it was in no snapshot");
    kept.store(1, 1);
    kept.restart();
    assert_eq!(kept.bench.checkpoint(1).len(), 1, "now it is");
    kept.bench.send("deposit", DEPOSIT, &[]);
    kept.store(2, 2);
    kept.restart();
    let checkpoint = kept.bench.checkpoint(2);
    assert_eq!(checkpoint[0].header("ce_sequence").as_deref(), Some("2"));
    assert_eq!(kept.bench.read_checkpoint(&checkpoint[1]).aggregates, 1);
    drop(kept.dir);
}
