//! What a writer and a restore know of a partition, and how a partition answers them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::Timestamp;
use millrace_shared::{
    codec::DecodeError,
    domain::Aggregate,
    envelope::CommandHeaders,
    kafka::{bulk::Record, partition_of, topics::Topic},
    panics::Quiet,
};

use super::{MAX_FORWARDED_BYTES, Partition, UNDECIDED, UNREADABLE, is_sweep, publish::Counts};
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

    /// Whether commands have to wait for answers to expire.
    fn is_full(&self) -> bool;

    /// How many new states and outcomes the local store lacks, when it can be written, or will be again.
    fn unstored(&self) -> usize;

    /// Whether the local store is being written.
    fn is_storing(&self) -> bool;

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

impl<A: Aggregate> Decider for Partition<A> {
    fn decide(&mut self, record: &CommandRecord, now: Timestamp, sink: &mut dyn Sink) -> Result<(), Held> {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        if A::IS_PERSONAL {
            if is_sweep(record.value(), record.headers().map(|(name, _)| name)) {
                return Ok(());
            }
            self.keys.command_came(self.settings.forget_within);
        }
        let headers = match CommandHeaders::read(record.headers()) {
            Ok(headers) => headers,
            Err(reason) => {
                self.dead_letter(record, &reason, true, now, sink);
                return Ok(());
            }
        };
        if let Some(key) = record.key().filter(|key| !key.is_empty()) {
            let partition = partition_of(key, self.settings.partitions);
            if partition != self.settings.slot.partition {
                let reason = "it lies in a partition that is not its aggregate's, though it was forwarded before";
                match headers.forwarded {
                    true => self.dead_letter(record, reason, true, now, sink),
                    false if record.size() > MAX_FORWARDED_BYTES => {
                        self.dead_letter(record, "it is too large to be forwarded to its partition", true, now, sink);
                    }
                    false => self.forward(record, partition, now, sink),
                }
                return Ok(());
            }
        }
        let command = match self.read(record, headers) {
            Ok(command) => command,
            Err(DecodeError::Unavailable(reason)) => return Err(Held(reason)),
            Err(error) => {
                // Such a text may quote what can't be read.
                let reason = if A::IS_PERSONAL { UNREADABLE.to_owned() } else { error.to_string() };
                self.dead_letter(record, &reason, true, now, sink);
                return Ok(());
            }
        };
        self.load(command.aggregate_id.as_str()).map_err(Held)?;
        if self.is_forged(&command) {
            let reason = "only a process may send this command, under the command id of one of its steps";
            self.dead_letter(record, reason, true, now, sink);
            self.refuse_as_internal(record, &command, now, sink);
            return Ok(());
        }
        let known = self.memory.recall(command.key(), now).map_err(|error| {
            if let Some(local) = &mut self.local {
                local.mark_broken();
            }
            Held(error.to_string())
        })?;
        let known = known.map(|known| (known.fingerprint, known.outcome.into_owned()));
        if let Err(cause) = self.handle(record, &command, known, now, sink) {
            let cause = if A::IS_PERSONAL { UNDECIDED.to_owned() } else { cause };
            tracing::error!(aggregate = %command.aggregate_id, command = command.command_id, cause, "a command can't be decided");
            self.dead_letter(record, &cause, true, now, sink);
            self.refuse_as_internal(record, &command, now, sink);
        }
        self.drop_unused_key(command.aggregate_id.as_str(), now, sink);
        Ok(())
    }

    fn condemn(&mut self, record: &CommandRecord, reason: &str, whole: bool, now: Timestamp, sink: &mut dyn Sink) {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        self.dead_letter(record, reason, whole, now, sink);
        let read = || {
            let headers = CommandHeaders::read(record.headers()).ok()?;
            self.read(record, headers).ok()
        };
        if let Ok(Some(command)) = catch_unwind(AssertUnwindSafe(read)) {
            // What can't be read is found out again by the next command.
            let loaded = self.load(command.aggregate_id.as_str());
            self.refuse_as_internal(record, &command, now, sink);
            if loaded.is_ok() {
                self.drop_unused_key(command.aggregate_id.as_str(), now, sink);
            }
        }
    }

    fn commit(&mut self, now: Timestamp) {
        std::mem::take(&mut self.counts).publish(A::TYPE);
        self.before.clear();
        self.marks = None;
        self.memory.commit();
        self.schedule.commit();
        if self.keys.commit() {
            let partition = self.settings.slot.partition;
            tracing::info!(aggregate_type = A::TYPE, partition, "all keys are encrypted with the present master key");
        }
        self.commit_snapshots();
        for (awaited, answer) in self.answers.drain(..) {
            self.settings.waiters.answer(&awaited, &answer);
        }
        self.memory.expire(now);
    }

    fn rollback(&mut self) {
        while let Some((id, before)) = self.before.pop() {
            match before {
                Some(entry) => self.aggregates.insert(id, entry),
                None => self.aggregates.remove(&id),
            };
        }
        self.roll_snapshots_back();
        self.roll_lists_back();
        self.keys.rollback();
        self.memory.rollback();
        self.schedule.rollback();
        self.answers.clear();
        self.counts = Counts::default();
    }

    fn events_since_checkpoint(&self) -> u64 {
        self.events_since_checkpoint()
    }

    fn begin_checkpoint(&mut self, offset: i64) {
        self.begin_checkpoint(offset);
    }

    fn is_snapshotting(&self) -> bool {
        self.is_snapshotting() || self.keys.is_due()
    }

    fn send_snapshots(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        self.send_snapshots(now, sink);
        self.renew_keys(now, sink);
        self.send_sweep(now, sink);
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.next_due()
    }

    fn release_due(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        self.release_due(now, sink);
    }

    fn is_full(&self) -> bool {
        self.is_full
    }

    fn unstored(&self) -> usize {
        self.unstored()
    }

    fn is_storing(&self) -> bool {
        self.is_storing()
    }

    fn begin_store_commit(&mut self, next: i64, events: i64, outcomes: i64) {
        self.begin_store_commit(next, events, outcomes);
    }

    fn tend(&mut self, now: Timestamp) -> bool {
        self.end_store_commit();
        self.schedule.tell(A::TYPE, &self.settings.room);
        self.bound_memory(now);
        self.is_store_broken()
    }

    fn stored_up_to(&mut self, events: (i64, i64), outcomes_end: i64) -> Option<(i64, i64)> {
        self.stored_up_to(events, outcomes_end)
    }

    fn give_snapshots_up(&mut self, reason: &str) {
        let partition = self.settings.slot.partition;
        tracing::error!(partition, reason, "snapshots can't be written: there are no more until the next take-over");
        self.snapshots.give_up();
    }

    fn restore(&mut self, topic: Topic, record: &Stored<'_>, now: Timestamp) -> Result<(), RestoreError> {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        self.store_while_restoring()?;
        match topic {
            Topic::Snapshots => self.read_snapshot_back(record),
            Topic::Events => self.read_event_back(record),
            Topic::Outcomes => self.read_outcome_back(record, now),
            Topic::Scheduled => self.read_scheduled_back(record),
            Topic::Keys => self.read_key_back(record),
            Topic::Commands | Topic::DeadLetters => Ok(()),
        }
    }

    fn end_keys(&mut self) -> Result<(), RestoreError> {
        self.end_keys()
    }

    fn first_event_to_read(&mut self, first: i64, end: i64) -> Result<i64, RestoreError> {
        self.first_event_to_read(first, end)
    }

    fn decided_up_to(&self) -> Option<i64> {
        self.decided_up_to
    }

    fn sizes(&self) -> (usize, usize) {
        (self.aggregates.len().max(self.snapshots.count as usize), self.memory.len())
    }

    fn scheduled(&self) -> (usize, usize) {
        (self.schedule.len(), self.schedule.bytes())
    }
}
