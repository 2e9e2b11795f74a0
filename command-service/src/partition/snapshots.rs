//! Snapshots: states that have changed are written to the snapshot topic in portions, inside the writer's ordinary
//! transactions, so that a zombie can never overwrite a newer one; behind them the checkpoint, which tells from where
//! on events are still to be read.
//!
//! A checkpoint begins with an offset of the event topic below which everything is in the states. What changes from
//! then on lies at that offset or beyond: it is read again after a restart, unless the snapshot's own sequence covers
//! it. So portions may take their time, and commands go on between them.

use std::collections::HashSet;

use jiff::Timestamp;
use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::names,
    kafka::topics::Topic,
    snapshot::{Checkpoint, CheckpointRecord, checkpoint_key, is_checkpoint_key},
};

use super::{
    Entry, Partition, RestoreError, Stored, caught,
    kept::{Unused, from_snapshot},
    personal::sealed,
};
use crate::{
    record::{OutRecord, Sink},
    types::CommandType,
};

/// States of one partition in one transaction, at most; about a megabyte of them.
const PORTION: usize = 256;
/// Largest snapshot: what the brokers' default lets into a topic, less the headers.
const MAX_SNAPSHOT_BYTES: usize = (1 << 20) - 4096;

/// How far the snapshots of a partition are.
#[derive(Default)]
pub(super) struct Snapshots {
    /// Aggregates that have changed since their snapshot.
    changed: Vec<Box<str>>,
    /// Events since the last checkpoint began.
    events: u64,
    /// Those of `changed` that the checkpoint under way still has to send, and its offset.
    flushing: Vec<Box<str>>,
    offset: Option<i64>,
    /// Sent by the transaction under way; and whether the checkpoint record was.
    sent: Vec<Sent>,
    closed: bool,
    /// Aggregates that have a snapshot.
    pub(super) count: u64,
    /// Aggregates whose last snapshot is of another release, or damaged: one of ours may have been there.
    unusable: HashSet<Box<str>>,
    /// The checkpoint that was read back.
    read: Option<Checkpoint>,
    /// A state can't be written: no checkpoint any more.
    given_up: bool,
}

/// A state that was sent.
struct Sent {
    id: Box<str>,
    /// What its last snapshot covered.
    covered: u64,
    /// Whether it was noted for the store because of it.
    noted: bool,
}

impl Snapshots {
    /// For taking changes back: how many are listed, and how many events were counted.
    pub(super) fn mark(&self) -> (usize, u64) {
        (self.changed.len(), self.events)
    }

    /// Takes back what came after the mark.
    pub(super) fn roll_back_to(&mut self, (changed, events): (usize, u64)) {
        self.changed.truncate(changed);
        self.events = events;
    }

    /// An aggregate has changed that had not since its snapshot.
    pub(super) fn changed(&mut self, id: &str) {
        self.changed.push(id.into());
    }

    /// There are no more checkpoints. What was sent stays what it is.
    pub(super) fn give_up(&mut self) {
        (self.given_up, self.offset) = (true, None);
        self.flushing.clear();
        self.changed.clear();
    }

    /// Events were accepted.
    pub(super) fn count_events(&mut self, events: usize) {
        self.events += events as u64;
    }
}

impl<A: Aggregate> Partition<A> {
    /// Events since the last checkpoint began; none while one is under way, or none can be.
    pub(super) fn events_since_checkpoint(&self) -> u64 {
        let snapshots = &self.snapshots;
        if snapshots.offset.is_some() || snapshots.given_up || self.unreadable { 0 } else { snapshots.events }
    }

    /// Begins a checkpoint: every event below `offset` is in the states.
    pub(super) fn begin_checkpoint(&mut self, offset: i64) {
        let snapshots = &mut self.snapshots;
        if snapshots.offset.is_none() {
            snapshots.flushing = std::mem::take(&mut snapshots.changed);
            (snapshots.offset, snapshots.events) = (Some(offset), 0);
            self.begin_covering();
        }
    }

    /// Whether a checkpoint is under way.
    pub(super) fn is_snapshotting(&self) -> bool {
        self.snapshots.offset.is_some()
    }

    /// Sends some states, and behind the last one the checkpoint.
    pub(super) fn send_snapshots(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        let Some(offset) = self.snapshots.offset else { return };
        self.mark();
        let mut bytes = 0;
        for _ in 0..PORTION {
            if bytes > MAX_SNAPSHOT_BYTES {
                return;
            }
            let Some(id) = self.snapshots.flushing.pop() else {
                return self.close_checkpoint(offset, now, sink);
            };
            // The partition is about to be taken over anew.
            let Ok(()) = self.load(&id) else { return };
            // Nothing new: sent before, or what had changed it was rolled back.
            let Some(entry) = self.aggregates.get_mut(&id) else { continue };
            if entry.version <= entry.covered {
                entry.changed = false;
                continue;
            }
            let mut value = Vec::with_capacity(32);
            let encode = || {
                let state = sealed::<A>(&self.keys, &id, &entry.state)?;
                let encoded = self.context.snapshots.encode(&state, &mut value);
                encoded.map_err(|error| error.to_string())
            };
            let result = match caught(encode) {
                Ok(()) if value.len() > MAX_SNAPSHOT_BYTES => Err(format!("it has {} bytes", value.len())),
                result => result,
            };
            if let Err(cause) = result {
                tracing::error!(
                    aggregate = &*id,
                    cause,
                    "a state can't be written to the snapshot topic: there are no more checkpoints of its partition, and \
                     restarts take longer and longer"
                );
                self.snapshots.give_up();
                return;
            }
            bytes += value.len();
            entry.changed = false;
            let covered = std::mem::replace(&mut entry.covered, entry.version);
            self.snapshots.count += u64::from(covered == 0);
            let noted = self.local.is_some() && !entry.unstored;
            if let Some(local) = &mut self.local {
                local.note(&id, &mut entry.unstored);
            }
            let mut digits = itoa::Buffer::new();
            self.headers.clear();
            self.headers.push_joined(names::SEQUENCE, &[digits.format(entry.version)]);
            self.headers.push_joined(names::TIME, &[self.time.text(entry.last_time)]);
            self.headers.push_joined(names::TOPIC_ID, &[&self.settings.events_topic_id]);
            self.headers.push_joined(names::STATE_VERSION, &[digits.format(A::STATE_VERSION)]);
            sink.send(OutRecord {
                topic: Topic::Snapshots,
                partition: self.settings.slot.partition,
                key: Some(id.as_bytes()),
                value: Some(&value),
                headers: &self.headers,
                timestamp_ms: now.as_millisecond(),
            });
            self.snapshots.sent.push(Sent { id, covered, noted });
        }
    }

    fn close_checkpoint(&mut self, offset: i64, now: Timestamp, sink: &mut dyn Sink) {
        let checkpoint = CheckpointRecord::Checkpoint(Checkpoint {
            events_topic_id: self.settings.events_topic_id.clone(),
            offset,
            state_version: A::STATE_VERSION as i32,
            aggregates: self.snapshots.count as i64,
            at: now.as_microsecond(),
        });
        let mut value = Vec::with_capacity(64);
        if let Err(error) = self.context.checkpoints.encode(&checkpoint, &mut value) {
            tracing::error!(%error, "a checkpoint can't be written");
            self.snapshots.give_up();
            return;
        }
        self.headers.clear();
        sink.send(OutRecord {
            topic: Topic::Snapshots,
            partition: self.settings.slot.partition,
            key: Some(checkpoint_key(self.settings.slot.partition).as_bytes()),
            value: Some(&value),
            headers: &self.headers,
            timestamp_ms: now.as_millisecond(),
        });
        self.snapshots.closed = true;
    }

    /// What was sent is in the log.
    pub(super) fn commit_snapshots(&mut self) {
        let snapshots = &mut self.snapshots;
        metrics::counter!("millrace_snapshots_total", "type" => A::TYPE).increment(snapshots.sent.len() as u64);
        snapshots.sent.clear();
        if std::mem::take(&mut snapshots.closed) {
            snapshots.offset = None;
            metrics::counter!("millrace_checkpoints_total", "type" => A::TYPE).increment(1);
            self.end_covering();
        }
    }

    /// What was sent is not in the log. To be called when the states are what they were.
    pub(super) fn roll_snapshots_back(&mut self) {
        let snapshots = &mut self.snapshots;
        snapshots.closed = false;
        for Sent { id, covered, noted } in snapshots.sent.drain(..) {
            if let Some(entry) = self.aggregates.get_mut(&id) {
                (entry.changed, entry.covered) = (true, covered);
                entry.unstored &= !noted;
            }
            snapshots.count -= u64::from(covered == 0);
            snapshots.flushing.push(id);
        }
    }

    /// A record of the snapshot topic; a later one of the same key counts instead of it.
    pub(super) fn read_snapshot_back(&mut self, record: &Stored<'_>) -> Result<(), RestoreError> {
        let (context, offset) = (self.context.clone(), record.offset);
        let unreadable = |error: &dyn std::fmt::Display| {
            let topic = context.topic(Topic::Snapshots);
            tracing::warn!(topic, offset, %error, "a snapshot can't be read; the partition is restored from events");
        };
        let value = record.value.unwrap_or_default();
        if record.key.is_some_and(|key| is_checkpoint_key(key, self.settings.slot.partition)) {
            let decoded = self.context.checkpoints.decode(value, Foreign::Refuse, &self.settings.runtime);
            self.snapshots.read = match decoded {
                Ok(CheckpointRecord::Checkpoint(checkpoint)) => Some(checkpoint),
                Err(DecodeError::Unavailable(reason)) => return Err(RestoreError(reason)),
                Err(error) => {
                    unreadable(&error);
                    None
                }
            };
            return Ok(());
        }
        let Ok(id) = AggregateId::from_key(record.key) else {
            unreadable(&"its key is no aggregate's id");
            return Ok(());
        };
        match from_snapshot::<A>(
            &self.context.snapshots,
            &self.settings.events_topic_id,
            (id.as_str(), record),
            &|snapshot, id| self.keys.open_snapshot::<A>(snapshot, id),
            &self.settings.runtime,
        ) {
            Ok(snapshot) => {
                // Mostly there is none, and to look for one costs a hash for each record.
                if !self.snapshots.unusable.is_empty() {
                    self.snapshots.unusable.remove(id.as_str());
                }
                if !self.read_to_store(id.as_str(), &snapshot) {
                    let entry = Entry { covered: snapshot.kept.version, ..Entry::of(snapshot.kept) };
                    let known = self.aggregates.insert(id.as_str().into(), entry);
                    self.snapshots.count += u64::from(known.is_none());
                }
            }
            Err(Unused::OtherTopic) => {}
            Err(Unused::Unavailable(reason)) => return Err(RestoreError(reason)),
            Err(Unused::Unreadable(reason)) => {
                unreadable(&reason);
                self.snapshots.unusable.insert(id.as_str().into());
            }
        }
        Ok(())
    }

    /// All snapshots are read: the first event that they may not cover. Without a checkpoint that can be trusted they are
    /// forgotten, and all events count.
    pub(super) fn first_event_to_read(&mut self, first: i64, end: i64) -> Result<i64, RestoreError> {
        self.store_read_back()?;
        let checkpoint = self.snapshots.read.take();
        let found = self.snapshots.count;
        let unusable = std::mem::take(&mut self.snapshots.unusable);
        let distrust = match &checkpoint {
            None if found == 0 => None,
            None => Some("no checkpoint was written yet"),
            Some(checkpoint) if checkpoint.events_topic_id != self.settings.events_topic_id => {
                Some("they are of an event topic that was deleted")
            }
            Some(checkpoint) if checkpoint.state_version != A::STATE_VERSION as i32 => {
                Some("they are of a release whose states mean something else")
            }
            Some(checkpoint) if (found as i64) < checkpoint.aggregates || !unusable.is_empty() => {
                Some("some are missing, or can't be read by this release")
            }
            Some(checkpoint) if checkpoint.offset > end => Some("the event topic ends before them"),
            Some(_) => None,
        };
        let partition = self.settings.slot.partition;
        match (distrust, checkpoint) {
            (None, Some(checkpoint)) => {
                if checkpoint.offset < first {
                    tracing::error!(partition, checkpoint.offset, first, "events behind the snapshots were deleted");
                }
                tracing::debug!(partition, aggregates = found, offset = checkpoint.offset, "snapshots read");
                return Ok(checkpoint.offset.max(first));
            }
            (None, None) => {}
            (Some(reason), _) => {
                tracing::info!(partition, snapshots = found, reason, "snapshots are not used; all events are read");
                self.aggregates.clear();
                self.snapshots = Snapshots::default();
                self.forget_store();
            }
        }
        Ok(first)
    }
}
