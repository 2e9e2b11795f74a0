//! The store on a real file: reopened, moved, damaged, killed, on a full disk.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{Batch, Checkpoint, Error, Identity, Opened, OutcomeChunk, StatesOf, Store, glance::glance};

const CACHE: usize = 1 << 20;
/// Tells a process that a test started where its store is.
const PATH: &str = "STORE_TEST_PATH";

fn identity() -> Identity {
    Identity {
        states: StatesOf {
            aggregate_type: "bank-account".to_owned(),
            partition: 3,
            partitions: 12,
            events_topic_id: "events-1".to_owned(),
            state_version: 1,
        },
        outcomes_topic_id: "outcomes-1".to_owned(),
        commands_topic_id: "commands-1".to_owned(),
        window: std::time::Duration::from_secs(60),
        answers_forget: false,
    }
}

fn at(events_offset: i64) -> Checkpoint {
    Checkpoint { events_offset, outcomes_offset: 7, decided_up_to: None, aggregates: 2 }
}

fn open(path: &Path) -> Opened {
    Store::open(path, &identity(), CACHE).unwrap()
}

fn a_path() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    (dir, path)
}

fn state_of(id: usize, round: i64) -> Vec<u8> {
    format!("state of {id} in round {round};").repeat(20).into_bytes()
}

/// States, chunks and lists, all of one round.
fn batch(ids: usize, round: i64) -> Batch {
    let number = round as u64;
    Batch {
        states: (0..ids).map(|id| (format!("acc-{id}").into(), state_of(id, round))).collect(),
        outcomes: vec![OutcomeChunk { number, index: vec![1; 800], body: number.to_le_bytes().repeat(6000) }],
        unsnapshotted: vec![(number, number.to_le_bytes().repeat(50))],
        ..Batch::new(at(round))
    }
}

#[test]
fn g05_what_was_committed_is_there_after_reopening() {
    let (_dir, path) = a_path();
    let Opened { store, checkpoint } = open(&path);
    assert_eq!((checkpoint, store.state("acc-1").unwrap()), (None, None));
    let seed = store.seed();
    store.commit(batch(100, 1)).unwrap();
    store.commit(batch(50, 2)).unwrap();
    let mut last = batch(0, 3);
    last.states = vec![("acc-7".into(), b"older".to_vec()), ("acc-7".into(), b"newer".to_vec())];
    (last.outcomes_below, last.unsnapshotted_below) = (2, 3);
    last.checkpoint.decided_up_to = Some(0);
    store.commit(last).unwrap();
    let check = |store: &Store| {
        assert_eq!(store.state("acc-7").unwrap().unwrap(), b"newer");
        assert_eq!(store.state("acc-8").unwrap().unwrap(), state_of(8, 2));
        assert_eq!(store.state("acc-99").unwrap().unwrap(), state_of(99, 1));
        assert_eq!(store.state("acc-100").unwrap(), None);
        let index = store.outcome_index().unwrap();
        assert_eq!(index, [(2, vec![1; 800]), (3, vec![1; 800])]);
        assert_eq!(store.outcomes(3).unwrap(), 3_u64.to_le_bytes().repeat(6000));
        assert_eq!(store.unsnapshotted().unwrap(), [(3, 3_u64.to_le_bytes().repeat(50))]);
        assert!(store.size().unwrap() > 100_000);
    };
    check(&store);
    drop(store);
    let Opened { store, checkpoint } = open(&path);
    assert_eq!(checkpoint, Some(Checkpoint { decided_up_to: Some(0), ..at(3) }));
    assert_eq!(store.seed(), seed);
    check(&store);
    assert!(matches!(store.outcomes(1), Err(Error::Damaged { .. })));
}

#[test]
fn g05_a_foreign_store_is_replaced_by_a_fresh_one() {
    let changes: [fn(&mut Identity); 9] = [
        |identity| identity.states.aggregate_type = "user".to_owned(),
        |identity| identity.states.partition = 4,
        |identity| identity.states.partitions = 24,
        |identity| identity.states.events_topic_id = "events-2".to_owned(),
        |identity| identity.outcomes_topic_id = "outcomes-2".to_owned(),
        |identity| identity.commands_topic_id = "commands-2".to_owned(),
        |identity| identity.states.state_version = 2,
        |identity| identity.window *= 2,
        |identity| identity.answers_forget = true,
    ];
    for (at, change) in changes.iter().enumerate() {
        let (_dir, path) = a_path();
        open(&path).store.commit(batch(10, 1)).unwrap();
        let mut other = identity();
        change(&mut other);
        let Opened { store, checkpoint } = Store::open(&path, &other, CACHE).unwrap();
        assert_eq!((checkpoint, store.state("acc-1").unwrap()), (None, None), "change {at}");
        drop(store);
        assert_eq!(open(&path).checkpoint, None, "change {at}: now it is the other's");
    }
}

#[test]
fn g05_a_store_that_is_open_elsewhere_is_left_alone() {
    let (_dir, path) = a_path();
    let Opened { store, .. } = open(&path);
    store.commit(batch(10, 1)).unwrap();
    let mut other = identity();
    other.states.partition = 4;
    assert!(matches!(Store::open(&path, &identity(), CACHE), Err(Error::Held(_))));
    assert!(matches!(Store::open(&path, &other, CACHE), Err(Error::Held(_))));
    drop(store);
    assert_eq!(open(&path).checkpoint, Some(at(1)));
}

#[test]
fn g05_a_glance_takes_no_part() {
    let (_dir, path) = a_path();
    assert_eq!(glance(&path, "acc-1").unwrap(), None);
    let Opened { store, .. } = open(&path);
    for round in 1..5 {
        store.commit(batch(10, round)).unwrap();
        let before = fs::read(&path).unwrap();
        let found = glance(&path, "acc-1").unwrap().unwrap();
        assert_eq!((found.checkpoint, found.state), (Some(at(round)), Some(state_of(1, round))));
        assert_eq!(identity().states.differs_from(&found.identity), None);
        assert_eq!(glance(&path, "acc-10").unwrap().unwrap().state, None);
        assert_eq!(fs::read(&path).unwrap(), before, "nothing is written");
    }
    let mut other = identity().states;
    other.partition = 4;
    let difference = other.differs_from(&glance(&path, "acc-1").unwrap().unwrap().identity).unwrap();
    assert!(difference.contains("partition 3 of 12, not partition 4 of 12"), "{difference}");
    drop(store);
    assert_eq!(open(&path).checkpoint, Some(at(4)));
}

#[test]
fn g05_a_glance_at_a_store_that_is_written_sees_one_commit_or_nothing() {
    let (_dir, path) = a_path();
    let mut child = process("commits_until_it_is_killed", &path).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.starts_with("committed")).expect("it commits");
    let mut seen = std::collections::BTreeSet::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for look in 0.. {
        assert!(std::time::Instant::now() < deadline, "{seen:?}");
        if seen.len() == 10 {
            break;
        }
        let id = look % 200;
        // Busy: it commits all the time, a hundred times as often as a service.
        let Ok(Some(found)) = glance(&path, &format!("acc-{id}")) else { continue };
        let round = found.checkpoint.unwrap().events_offset;
        assert_eq!(found.state, Some(state_of(id, round)), "look {look}");
        seen.insert(round);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn g16_a_store_that_cannot_be_made_is_an_error() {
    let (dir, _) = a_path();
    let path = dir.path().join("no such directory").join("store");
    assert!(matches!(Store::open(&path, &identity(), CACHE), Err(Error::Io { .. })));
}

/// How a damaged store was answered.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Seen {
    /// The damage lies where nothing is read.
    Right,
    Fresh,
    Error,
}

const IDS: usize = 3000;
const ROUNDS: i64 = 3;

/// Opens a store that was damaged and reads all of it: whatever it gives must be right.
fn read_damaged(path: &Path, what: &str) -> Seen {
    let Opened { store, checkpoint } = open(path);
    let Some(checkpoint) = checkpoint else {
        assert_eq!(store.state("acc-1").unwrap(), None, "{what}");
        return Seen::Fresh;
    };
    assert_eq!(checkpoint, at(ROUNDS), "{what}");
    let read = || {
        for id in 0..IDS {
            assert_eq!(store.state(&format!("acc-{id}"))?, Some(state_of(id, ROUNDS)), "{what}");
        }
        let numbers: Vec<u64> = store.outcome_index()?.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 2, 3], "{what}");
        for number in numbers {
            assert_eq!(store.outcomes(number)?, number.to_le_bytes().repeat(6000), "{what}");
        }
        assert_eq!(store.unsnapshotted()?.len(), 3, "{what}");
        // What is written next to the damage is right as well.
        store.commit(Batch { states: vec![("acc-1".into(), b"new".to_vec())], ..Batch::new(at(9)) })?;
        assert_eq!(store.state("acc-1")?.as_deref(), Some(&b"new"[..]), "{what}");
        Ok(())
    };
    match read() {
        Ok(()) => Seen::Right,
        Err(Error::Damaged { .. }) => {
            assert!(matches!(store.state("acc-1"), Err(Error::Broken { .. })), "{what}: it must not be used any more");
            Seen::Error
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// A store as it is when it was closed, and as a kill leaves it.
fn closed_and_killed(dir: &Path) -> [PathBuf; 2] {
    let [closed, killed] = ["closed", "killed"].map(|name| dir.join(name));
    let Opened { store, .. } = open(&closed);
    for round in 1..=ROUNDS {
        store.commit(batch(IDS, round)).unwrap();
    }
    fs::copy(&closed, &killed).unwrap();
    [closed, killed]
}

#[test]
fn g05_a_flipped_byte_never_gives_a_wrong_answer() {
    let (dir, path) = a_path();
    for original in closed_and_killed(dir.path()) {
        let len = fs::metadata(&original).unwrap().len();
        assert!(len > 2 << 20, "more than one group of checksums");
        // The header's sector closely, the rest here and there; a fixed stride so that a failure comes again.
        let places = (0..64).chain((64..512).step_by(7)).chain((0..150).map(|at| at * 7_919_777 % len));
        let mut seen = BTreeMap::<Seen, u32>::new();
        for place in places {
            fs::copy(&original, &path).unwrap();
            let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << (place % 8))], place).unwrap();
            drop(file);
            *seen.entry(read_damaged(&path, &format!("byte {place} of {}", original.display()))).or_default() += 1;
        }
        println!("{}: {seen:?}", original.display());
        // Where redb checks itself (debug builds) it reads all as it opens, and no error is left for later.
        let found = |how: Seen| seen.get(&how).copied().unwrap_or_default();
        assert!(found(Seen::Fresh) >= 128 && found(Seen::Fresh) + found(Seen::Error) > 150, "{seen:?}");
    }
}

#[test]
fn g05_a_truncated_file_never_gives_a_wrong_answer() {
    let (dir, path) = a_path();
    for original in closed_and_killed(dir.path()) {
        let len = fs::metadata(&original).unwrap().len();
        let lengths = (0..30).map(|at| at * 7_919_777 % len).chain((0..30).map(|at| at * 7_919 % (len / 4096) * 4096));
        for length in lengths.chain([1, 511, 512, 4095, 4096, 8192, len - 4096, len - 1]) {
            fs::copy(&original, &path).unwrap();
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
            read_damaged(&path, &format!("the first {length} bytes of {}", original.display()));
        }
        fs::copy(&original, &path).unwrap();
        assert_eq!(read_damaged(&path, "not truncated"), Seen::Right);
    }
}

/// A process that runs one of the tests below with a store of its own.
fn process(helper: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("store::tests::{helper}");
    command.args(["--ignored", "--exact", "--nocapture", &name]).env(PATH, path).stdout(Stdio::piped());
    command
}

fn path_of_the_process() -> PathBuf {
    std::env::var_os(PATH).expect("this is run by another test").into()
}

#[test]
#[ignore = "a process that another test starts and kills"]
fn commits_until_it_is_killed() {
    let Opened { store, checkpoint } = open(&path_of_the_process());
    for round in checkpoint.map_or(1, |checkpoint| checkpoint.events_offset + 1).. {
        store.commit(batch(200, round)).unwrap();
        println!("\ncommitted {round}");
    }
}

#[test]
fn g02_g05_a_kill_between_any_two_writes_leaves_the_last_commit_whole() {
    let (_dir, path) = a_path();
    let mut last = 0;
    for run in 0..12 {
        let mut child = process("commits_until_it_is_killed", &path).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let rounds = lines.filter_map(|line| line.strip_prefix("committed ")?.parse::<i64>().ok());
        // Each run is killed at another instant of the commit that follows.
        for (nth, round) in rounds.enumerate() {
            last = round;
            if nth == 3 {
                std::thread::sleep(std::time::Duration::from_micros(700 * run));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let Opened { store, checkpoint } = open(&path);
        let found = checkpoint.expect("what a kill leaves is whole").events_offset;
        assert!(found == last || found == last + 1, "run {run}: {found} after {last}");
        for id in 0..200 {
            assert_eq!(store.state(&format!("acc-{id}")).unwrap(), Some(state_of(id, found)), "run {run}");
        }
        assert_eq!(store.outcome_index().unwrap().len() as i64, found, "run {run}");
    }
    assert!(last >= 12 * 4);
}

#[test]
#[ignore = "a process that another test starts on a small disk"]
fn fills_a_small_disk() {
    let path = path_of_the_process();
    let Opened { store, .. } = open(&path);
    let mut last = 0;
    let error = loop {
        match store.commit(batch(200, last + 1)) {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Io { cause, .. } if cause.kind() == std::io::ErrorKind::StorageFull), "{error}");
    assert!(matches!(store.state("acc-1"), Err(Error::Broken { .. })));
    drop(store);
    // No room for another one, either.
    assert!(matches!(Store::open(&path.with_extension("2"), &identity(), CACHE), Err(Error::Io { .. })));
    let Opened { store, checkpoint } = open(&path);
    assert_eq!(checkpoint, Some(at(last)));
    for id in 0..200 {
        assert_eq!(store.state(&format!("acc-{id}")).unwrap(), Some(state_of(id, last)));
    }
    println!("\nfull after {last}");
}

#[test]
fn g05_g16_a_full_disk_is_an_error_and_what_was_committed_stays() {
    let (dir, path) = a_path();
    let program = process("fills_a_small_disk", &path);
    // A mount that nobody else sees, and that ends with the process.
    let mut shell = Command::new("unshare");
    shell.args(["--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o size=4m tmpfs \"$0\" && exec \"$@\""]);
    shell.arg(dir.path()).arg(program.get_program()).args(program.get_args()).env(PATH, &path);
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("\nfull after "), "{output:?}");
}
