//! What a writer and a restore know of a partition.

use jiff::Timestamp;
use millrace_shared::kafka::{bulk::Record, topics::Topic};

use crate::record::{CommandRecord, Sink};

/// A command that can't be decided now, and why; nothing was done with it.
#[derive(Debug)]
pub struct Held(pub String);

/// A partition behind a face without the aggregate's Rust types.
pub trait Decider: Send {
    /// Decides one command and hands the records that follow to the sink.
    fn decide(&mut self, record: &CommandRecord, now: Timestamp, sink: &mut dyn Sink) -> Result<(), Held>;

    /// Makes a dead letter of a record that can't be decided or written, with its value or without; a command that can
    /// be read also gets an outcome, so that nobody waits for ever.
    fn condemn(&mut self, record: &CommandRecord, reason: &str, whole: bool, now: Timestamp, sink: &mut dyn Sink);

    /// The batch is in the log: keep its effects, and answer who waits.
    fn commit(&mut self, now: Timestamp);

    /// The batch is not in the log: forget its effects.
    fn rollback(&mut self);

    /// Events since the last checkpoint began; none while one is under way.
    fn events_since_checkpoint(&self) -> u64;

    /// Begins a checkpoint. No transaction is under way, and everything below `offset` in the event topic is decided.
    fn begin_checkpoint(&mut self, offset: i64);

    /// Whether there are snapshots to be sent, or what goes with them.
    fn is_snapshotting(&self) -> bool;

    /// Hands a portion of the snapshots to the sink, as part of a batch.
    fn send_snapshots(&mut self, now: Timestamp, sink: &mut dyn Sink);

    /// When the first of those that wait is due.
    fn next_due(&self) -> Option<Timestamp>;

    /// Hands what is due to the sink, as part of a batch; a portion of it, when it is much.
    fn release_due(&mut self, now: Timestamp, sink: &mut dyn Sink);

    /// Whether commands have to wait: for the local store, which is far behind, or for answers to expire.
    fn must_wait(&self) -> bool;

    /// How much the local store lacks; nothing while it is being written.
    fn unstored(&self) -> usize;

    /// Has the local store written. No transaction is under way; events and outcomes below these offsets are our own, as a
    /// transaction has proven since they were asked for, and the commands below `next` are decided.
    fn begin_store_commit(&mut self, next: i64, events: i64, outcomes: i64);

    /// Between two transactions: takes note of what became of the last commit to the store, and of answers that are too
    /// many. Returns whether the partition has to be taken over anew, since the store can't be used any more.
    fn tend(&mut self, now: Timestamp) -> bool;

    /// From where on events and outcomes have to be restored, given the first and the last offset of the former and the
    /// last of the latter, when the local store has the rest.
    fn stored_up_to(&mut self, events: (i64, i64), outcomes_end: i64) -> Option<(i64, i64)>;

    /// The broker refuses what was sent of the snapshots: there are no more of them.
    fn give_snapshots_up(&mut self, reason: &str);

    /// Restores from a record of the key, snapshot, event, outcome or scheduled topic: all keys before anything else, and all
    /// snapshots before any event.
    fn restore(&mut self, topic: Topic, record: &Stored<'_>, now: Timestamp) -> Result<(), RestoreError>;

    /// All keys are restored.
    ///
    /// # Errors
    /// When one can't be used.
    fn end_keys(&mut self) -> Result<(), RestoreError> {
        Ok(())
    }

    /// All snapshots are restored: where events have to be read from, given the topic's first offset and its end.
    ///
    /// # Errors
    /// When the local store can't be written.
    fn first_event_to_read(&mut self, first: i64, end: i64) -> Result<i64, RestoreError>;

    /// Offset behind the last command whose outcome was restored, when there was one of this command topic.
    fn decided_up_to(&self) -> Option<i64>;

    /// How many aggregates and outcomes are kept in memory.
    fn sizes(&self) -> (usize, usize);

    /// How many commands and deadlines wait until they are due, and the bytes that they take, about.
    fn scheduled(&self) -> (usize, usize);
}

/// A record read back.
#[derive(Debug)]
pub struct Stored<'a> {
    /// Offset.
    pub offset: i64,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

impl<'a> From<&'a Record<'a>> for Stored<'a> {
    fn from(record: &'a Record<'a>) -> Self {
        Self { offset: record.offset(), key: record.key(), value: record.value(), headers: record.headers().collect() }
    }
}

/// Why the restore has to begin again: the registry can't be asked, or the local store can't be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(pub String);
