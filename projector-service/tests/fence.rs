//! Who may write to a partition, on a real Redis.

use std::{
    process::{Child, Command as Program, Stdio},
    time::{Duration, Instant},
};

use millrace_shared::views::{Keys, address::Address};
use projector_service::{
    command::Command,
    loan::{self, Loan},
    store::{Applied, Claim, Error, Meta, Store, Write},
};

/// A Redis of one test.
struct Redis {
    process: Child,
    client: redis::Client,
    dir: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let socket = dir.path().join("redis");
        let process = Program::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (deploy/local/install)");
        let client = redis::Client::open(format!("unix:{}", socket.display())).expect("a path is a URL");
        let redis = Self { process, client, dir };
        until("Redis", || redis.client.get_connection().ok());
        redis
    }

    fn store(&self) -> Store {
        assert!(self.dir.path().exists());
        Store::new(Address::One(self.client.clone()), Duration::from_secs(5))
    }

    fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.client.get_connection().expect("Redis answers");
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection).expect("the command is right")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[track_caller]
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {what} in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn keys() -> Keys {
    Keys::projection("", "bank-accounts", 1, 7)
}

#[track_caller]
fn granted(claim: Claim) -> Meta {
    match claim {
        Claim::Granted(meta) => meta,
        other => panic!("{other:?}"),
    }
}

/// Writes one counter, from a checkpoint to the next.
fn write(store: &mut Store, epoch: u64, expected: Option<i64>, next: i64) -> Applied {
    let commands = [Command::new("HINCRBY", keys().counters()).with("written").with("1")];
    let write = Write { epoch, topic_id: "topic", expected, next, commands: &commands };
    store.apply(&keys(), &write).expect("Redis answers")
}

fn written(redis: &Redis) -> i64 {
    redis.ask::<Option<i64>>(&["HGET", &keys().counters(), "written"]).unwrap_or(0)
}

#[test]
fn g07_an_epoch_is_never_given_again_not_even_by_an_older_redis() {
    let redis = Redis::start();
    let mut store = redis.store();
    let first = granted(store.claim(&keys(), None).unwrap());
    assert!(!first.live && first.offset.is_none());
    let dump: Vec<u8> = redis.ask(&["DUMP", &keys().meta()]);
    let second = granted(store.claim(&keys(), None).unwrap());
    let mut connection = redis.client.get_connection().unwrap();
    let () = redis::cmd("RESTORE").arg(keys().meta()).arg(0).arg(dump).arg("REPLACE").query(&mut connection).unwrap();
    let third = granted(store.claim(&keys(), None).unwrap());
    let () = redis.ask(&["FLUSHALL"]);
    // What was freed does not come back by itself.
    assert_eq!(store.claim(&keys(), Some(third.epoch)).unwrap(), Claim::Gone);
    let fourth = granted(store.claim(&keys(), None).unwrap());
    let epochs = [first.epoch, second.epoch, third.epoch, fourth.epoch];
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    // A clock that was set back.
    let ahead = fourth.epoch + 3_600_000_000;
    let _: i64 = redis.ask(&["HSET", &keys().meta(), "epoch", &ahead.to_string()]);
    assert_eq!(granted(store.claim(&keys(), None).unwrap()).epoch, ahead + 1);
}

#[test]
fn g07_who_lost_a_partition_writes_nothing_and_does_not_take_it_back() {
    let redis = Redis::start();
    let (mut a, mut b) = (redis.store(), redis.store());
    let old = granted(a.claim(&keys(), None).unwrap()).epoch;
    assert_eq!(write(&mut a, old, None, 10), Applied::Written);
    // Nothing has changed: it is still its own.
    assert_eq!(granted(a.claim(&keys(), Some(old)).unwrap()).epoch, old);
    let found = granted(b.claim(&keys(), None).unwrap());
    assert_eq!((found.offset, found.topic_id.as_deref()), (Some(10), Some("topic")));
    // Its checkpoint is right, and still it may not.
    assert_eq!(write(&mut a, old, Some(10), 20), Applied::OtherOwner);
    assert_eq!(a.claim(&keys(), Some(old)).unwrap(), Claim::OtherOwner);
    assert_eq!(write(&mut b, found.epoch, Some(5), 20), Applied::OtherCheckpoint);
    assert_eq!(write(&mut b, found.epoch, Some(10), 20), Applied::Written);
    assert_eq!(written(&redis), 2);
}

#[test]
fn g07_a_tool_borrows_a_partition_and_its_projector_goes_on_afterwards() {
    let redis = Redis::start();
    let (mut before, mut projector, mut tool) = (redis.store(), redis.store(), redis.store());
    assert!(matches!(Loan::take(&mut tool, keys(), 1), Err(loan::Error::Empty)));
    let lost = granted(before.claim(&keys(), None).unwrap()).epoch;
    let ours = granted(projector.claim(&keys(), None).unwrap()).epoch;
    assert_eq!(write(&mut projector, ours, None, 10), Applied::Written);

    let _: i64 = redis.ask(&["HSET", &keys().meta(), "fold", "1"]);
    assert!(matches!(Loan::take(&mut tool, keys(), 2), Err(loan::Error::OtherFold(1, 2))));
    let mut loan = Loan::take(&mut tool, keys(), 1).unwrap();
    assert_eq!(loan.checkpoint, 10);
    assert_eq!(write(&mut projector, ours, Some(10), 20), Applied::OtherOwner);
    for epoch in [Some(ours), Some(lost), None] {
        assert_eq!(projector.claim(&keys(), epoch).unwrap(), Claim::Lent);
    }
    assert_eq!(before.borrow(&keys(), loan::TIME).unwrap(), Claim::Lent);
    loan.write(&[Command::new("HINCRBY", keys().counters()).with("written").with("1")]).unwrap();
    drop(loan);

    // Who had lost it before still has.
    assert_eq!(before.claim(&keys(), Some(lost)).unwrap(), Claim::OtherOwner);
    let again = granted(projector.claim(&keys(), Some(ours)).unwrap());
    assert_eq!(again.offset, Some(10), "a tool moves no checkpoint");
    assert_eq!(write(&mut projector, again.epoch, Some(10), 20), Applied::Written);
    assert_eq!(written(&redis), 3);
}

#[test]
fn g07_a_tool_that_was_frozen_for_too_long_writes_nothing() {
    let redis = Redis::start();
    let (mut projector, mut tool) = (redis.store(), redis.store());
    let ours = granted(projector.claim(&keys(), None).unwrap()).epoch;
    assert_eq!(write(&mut projector, ours, None, 10), Applied::Written);
    let mut loan = Loan::take(&mut tool, keys(), 1).unwrap();
    // As if its time were over.
    let _: i64 = redis.ask(&["HSET", &keys().meta(), "lent_until", "1"]);
    let again = granted(projector.claim(&keys(), Some(ours)).unwrap()).epoch;
    let late = loan.write(&[Command::new("HINCRBY", keys().counters()).with("written").with("1")]);
    assert!(matches!(late, Err(loan::Error::Over)), "{late:?}");
    drop(loan);
    assert_eq!(write(&mut projector, again, Some(10), 20), Applied::Written, "it is not lent any more");
    assert_eq!(written(&redis), 2);
}

/// A batch as ever: something comes first, then something goes. (A full Redis refuses a script's first write, if it needs
/// memory; after one that needs none it takes all of them.)
fn batch(store: &mut Store, epoch: u64, expected: i64) -> Result<Applied, Error> {
    let commands = [
        Command::new("HINCRBY", keys().counters()).with("written").with("1"),
        Command::new("ZREM", keys().sort("id", false)).with("gone"),
    ];
    store.apply(
        &keys(),
        &Write { epoch, topic_id: "topic", expected: Some(expected), next: expected + 1, commands: &commands },
    )
}

/// Counter, checkpoint, and whether what is to go is there.
fn state(redis: &Redis) -> (i64, i64, bool) {
    let there: Option<i64> = redis.ask(&["ZSCORE", &keys().sort("id", false), "gone"]);
    (written(redis), redis.ask(&["HGET", &keys().meta(), "offset"]), there.is_some())
}

#[test]
fn g07_a_batch_is_written_whole_or_not_at_all_whatever_redis_says() {
    let redis = Redis::start();
    let mut store = redis.store();
    let epoch = granted(store.claim(&keys(), None).unwrap()).epoch;
    assert_eq!(write(&mut store, epoch, None, 10), Applied::Written);
    let _: i64 = redis.ask(&["ZADD", &keys().sort("id", false), "0", "gone"]);
    let before = (1, 10, true);
    let hurt: [(&str, &[&str], &[&str]); 3] = [
        ("used memory", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
        ("read only replica", &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
        ("", &["CLIENT", "KILL", "TYPE", "normal"], &["PING"]),
    ];
    for (why, hurt, heal) in hurt {
        let () = redis.ask(hurt);
        match batch(&mut store, epoch, 10) {
            Err(Error::Again(reason)) if reason.contains(why) => {}
            other => panic!("{hurt:?}: {other:?}"),
        }
        let () = redis.ask(heal);
        assert_eq!(state(&redis), before, "after {hurt:?}");
        // It pauses before it asks again.
        let found = until("claim", || store.claim(&keys(), Some(epoch)).ok());
        assert_eq!((granted(found).epoch, state(&redis)), (epoch, before), "after {hurt:?}");
    }
    assert_eq!(batch(&mut store, epoch, 10).unwrap(), Applied::Written);
    assert_eq!(state(&redis), (2, 11, false));
}

#[test]
fn g07_whether_a_write_that_timed_out_was_done_is_told_by_the_next_compare() {
    let redis = Redis::start();
    let epoch = granted(redis.store().claim(&keys(), None).unwrap()).epoch;
    assert_eq!(write(&mut redis.store(), epoch, None, 10), Applied::Written);
    let mut hasty = Store::new(Address::One(redis.client.clone()), Duration::from_millis(50));
    let () = redis.ask(&["CLIENT", "PAUSE", "600", "WRITE"]);
    let unknown = batch(&mut hasty, epoch, 10);
    assert!(matches!(unknown, Err(Error::Again(_))), "{unknown:?}");
    assert_eq!(state(&redis).0, 1, "Redis has not looked at it yet");
    // The same batch again, as after every doubt: it is there once, whoever was first.
    let again = until("answer", || batch(&mut hasty, epoch, 10).ok());
    until("write", || (state(&redis).0 > 1).then_some(()));
    assert!(matches!(again, Applied::Written | Applied::OtherCheckpoint), "{again:?}");
    assert_eq!((written(&redis), state(&redis).1), (2, 11));
}
