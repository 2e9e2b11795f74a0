//! Snapshots and checkpoints, without Kafka: what is sent, and what is made of it.

use millrace_shared::{
    domain::Aggregate,
    snapshot::{Checkpoint, CheckpointRecord},
};

use super::*;

const DEPOSIT: &str = r#"{"amount_minor": 100}"#;

impl Bench {
    /// Sends what a checkpoint at this offset consists of, in as many batches as it takes.
    pub(super) fn checkpoint(&mut self, offset: i64) -> Vec<Sent> {
        self.partition.begin_checkpoint(offset);
        let mut sink = Collect::default();
        while self.partition.is_snapshotting() {
            self.partition.send_snapshots(self.now, &mut sink);
            self.partition.commit(self.now);
        }
        sink.0
    }

    /// Another partition, restored from records of the snapshot topic and then from events; with the first event read.
    fn restored(&self, snapshots: &[Sent], events: &[Sent]) -> (Partition<BankAccount>, i64) {
        let mut partition = Partition::new(self.kind.clone(), settings(&self.runtime, &self.waiters));
        for (offset, record) in snapshots.iter().enumerate() {
            record.restore(&mut partition, offset as i64, self.now);
        }
        let from = partition.first_event_to_read(0, 100).unwrap();
        for (offset, record) in events.iter().enumerate().filter(|(offset, _)| *offset as i64 >= from) {
            record.restore(&mut partition, offset as i64, self.now);
        }
        (partition, from)
    }

    pub(super) fn read_checkpoint(&self, sent: &Sent) -> Checkpoint {
        let value = sent.value.as_deref().unwrap();
        let decoded = self.kind.checkpoints.decode(value, Foreign::Refuse, self.runtime.handle());
        let CheckpointRecord::Checkpoint(checkpoint) = decoded.unwrap();
        checkpoint
    }
}

fn events(sent: Vec<Sent>) -> Vec<Sent> {
    sent.into_iter().filter(|record| record.topic == Topic::Events).collect()
}

/// An account with three events, of which the first two are below the checkpoint, and the snapshot topic.
fn scene() -> (Bench, Vec<Sent>, Vec<Sent>) {
    let mut bench = Bench::new();
    let mut log = events(bench.send("open", OPEN, &[]));
    log.extend(events(bench.send("deposit", DEPOSIT, &[])));
    let snapshots = bench.checkpoint(2);
    log.extend(events(bench.send("deposit", DEPOSIT, &[])));
    (bench, snapshots, log)
}

/// Version and balance as the next command sees them.
fn judge(bench: &mut Bench, partition: Partition<BankAccount>) -> (i64, String) {
    bench.partition = partition;
    let sent = bench.send("withdraw", r#"{"amount_minor": 1000000}"#, &[]);
    let outcome = bench.outcome(&sent[0]);
    (outcome.version, outcome.detail.unwrap_or_default())
}

#[test]
fn g03_a_state_comes_from_its_snapshot_and_the_events_behind_the_checkpoint() {
    let (mut bench, snapshots, log) = scene();
    assert_eq!(topics(&snapshots), [Topic::Snapshots, Topic::Snapshots]);
    assert_eq!(snapshots[0].key.as_deref(), Some(ID.as_bytes()));
    assert_eq!(snapshots[0].header("ce_sequence").as_deref(), Some("2"));
    let checkpoint = bench.read_checkpoint(&snapshots[1]);
    assert_eq!((checkpoint.offset, checkpoint.aggregates), (2, 1));
    assert_eq!(checkpoint.events_topic_id, "events-id");
    let (partition, from) = bench.restored(&snapshots, &log);
    assert_eq!(from, 2);
    let (version, detail) = judge(&mut bench, partition);
    assert!(version == 3 && detail.contains("200"), "{version} {detail}");
}

#[test]
fn g03_events_that_a_snapshot_covers_are_not_applied_again() {
    let (mut bench, mut snapshots, log) = scene();
    // Its snapshot is newer than the checkpoint: the state was sent again before the next one was complete.
    bench.partition.begin_checkpoint(3);
    let mut sink = Collect::default();
    bench.partition.send_snapshots(bench.now, &mut sink);
    bench.partition.rollback();
    assert!(bench.partition.is_snapshotting(), "it begins again");
    snapshots.push(sink.0.remove(0));
    let (partition, from) = bench.restored(&snapshots, &log);
    assert_eq!(from, 2);
    let (version, detail) = judge(&mut bench, partition);
    assert!(version == 3 && detail.contains("200"), "{version} {detail}");
}

#[test]
fn g03_what_was_sent_in_an_aborted_transaction_is_sent_again() {
    let (mut bench, _, _) = scene();
    bench.partition.begin_checkpoint(3);
    let send = |bench: &mut Bench| {
        let mut sink = Collect::default();
        bench.partition.send_snapshots(bench.now, &mut sink);
        sink.0
    };
    let first = send(&mut bench);
    bench.partition.rollback();
    let second = send(&mut bench);
    bench.partition.commit(bench.now);
    assert_eq!(first, second);
    assert_eq!(second.len(), 2);
    assert!(!bench.partition.is_snapshotting());
    assert_eq!(bench.read_checkpoint(&second[1]).aggregates, 1, "counted once");
}

#[test]
fn g03_a_change_after_a_batch_that_was_rolled_back_is_in_the_next_checkpoint() {
    let (mut bench, _, _) = scene();
    bench.checkpoint(3);
    // Listed once more than needed, as after an aborted batch or a restart.
    bench.partition.snapshots.changed(ID);
    bench.partition.begin_checkpoint(3);
    let value = bench.value("deposit", DEPOSIT);
    let record = bench.record(Some(&value), &[]);
    bench.decide(&record);
    bench.partition.send_snapshots(bench.now, &mut Collect::default());
    bench.partition.rollback();
    while bench.partition.is_snapshotting() {
        bench.partition.send_snapshots(bench.now, &mut Collect::default());
        bench.partition.commit(bench.now);
    }
    bench.send("deposit", DEPOSIT, &[]);
    let next = bench.checkpoint(4);
    assert_eq!((next.len(), next[0].header("ce_sequence").as_deref()), (2, Some("4")));
}

#[test]
fn g03_an_aggregate_that_changes_while_a_checkpoint_is_under_way_is_in_the_next_one() {
    let (mut bench, _, _) = scene();
    bench.partition.begin_checkpoint(3);
    let mut sink = Collect::default();
    bench.partition.send_snapshots(bench.now, &mut sink);
    bench.send("deposit", DEPOSIT, &[]);
    let next = bench.checkpoint(4);
    assert_eq!(next[0].header("ce_sequence").as_deref(), Some("4"));
    assert_eq!(bench.checkpoint(5).len(), 1, "nothing has changed since, so there is a checkpoint alone");
}

#[test]
fn g03_snapshots_that_cannot_be_trusted_are_not_used() {
    let (mut bench, snapshots, log) = scene();
    let with = |at: usize, name: &str, value: &str| {
        let mut altered = snapshots.clone();
        let header = altered[at].headers.iter_mut().find(|(header, _)| header == name).unwrap();
        header.1 = Some(value.as_bytes().to_vec());
        altered
    };
    let garbage = |at: usize, value: Option<&[u8]>| {
        let mut altered = snapshots.clone();
        altered[at].value = value.map(<[u8]>::to_vec);
        altered
    };
    let mut deleted = bench.read_checkpoint(&snapshots[1]);
    deleted.events_topic_id = "another".into();
    let mut of_deleted = Vec::new();
    bench.kind.checkpoints.encode(&CheckpointRecord::Checkpoint(deleted), &mut of_deleted).unwrap();
    for altered in [
        snapshots[1..].to_vec(),
        snapshots[..1].to_vec(),
        with(0, names::TOPIC_ID, "another"),
        with(0, names::STATE_VERSION, &(BankAccount::STATE_VERSION + 1).to_string()),
        with(0, names::SEQUENCE, "many"),
        garbage(0, Some(b"\0\0\0\0\x01")),
        garbage(0, None),
        garbage(1, Some(b"garbage")),
        garbage(1, Some(&of_deleted)),
    ] {
        let (partition, from) = bench.restored(&altered, &log);
        assert_eq!(from, 0, "{altered:?}");
        let (version, detail) = judge(&mut bench, partition);
        assert!(version == 3 && detail.contains("200"), "{version} {detail}");
    }
    let mut partition = bench.restored(&snapshots, &[]).0;
    assert_eq!(partition.first_event_to_read(0, 0).unwrap(), 0, "nothing was read anew");
}

#[test]
fn g12_a_history_that_cannot_be_read_is_covered_by_no_checkpoint() {
    let (bench, _, mut log) = scene();
    log[1].value = Some(b"garbage".to_vec());
    let (partition, _) = bench.restored(&[], &log);
    assert_eq!(partition.events_since_checkpoint(), 0, "a later release may read it");
}
