//! When the states of a partition are written to its local store, and when to the snapshot topic.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use millrace_shared::kafka::topics::Topic;

use super::{Producer, Writer, batch::Served};
use crate::grant::Slot;

/// Between two checkpoints of a partition, at least, however many events there are.
const MIN_REST: Duration = Duration::from_secs(1);
/// New states and outcomes of a partition that don't wait for the next time its local store is written.
const STORE_PORTION: usize = 20_000;
/// Until the next attempt when the end of the event topic could not be asked for.
const RETRY: Duration = Duration::from_secs(5);

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// Events of a partition after which a checkpoint of its snapshots begins.
    pub snapshot_events: u64,
    /// Time after which one begins when there were fewer, but some.
    pub snapshot_interval: Duration,
    /// Time after which a local store is written, when there is anything new.
    pub store_interval: Duration,
}

impl Writer {
    /// Tends the partitions between two transactions, and begins the commits to local stores that are due. Returns the partitions whose store
    /// can't be used any more: they have to be taken over anew.
    pub(super) fn tend(&self, producer: &Producer, served: &mut HashMap<Slot, Served>) -> Vec<Slot> {
        let (now, mut broken, mut answers) = (Timestamp::now(), Vec::new(), true);
        for (slot, partition) in served {
            if partition.decider.tend(now) {
                broken.push(*slot);
                continue;
            }
            let (unstored, rested) = (partition.decider.unstored(), partition.stored_at.elapsed());
            let soon = unstored >= STORE_PORTION && Instant::now() >= partition.stored_at;
            if !answers
                || unstored == 0
                || partition.store_ends.is_some()
                || (!soon && rested < self.rhythm.store_interval)
            {
                continue;
            }
            partition.stored_at = Instant::now();
            let kind = &self.types[slot.kind];
            let end = |topic| producer.end_of(kind.topic(topic), slot.partition);
            match end(Topic::Events).and_then(|events| Ok((events, end(Topic::Outcomes)?))) {
                Ok(ends) => partition.store_ends = Some(ends),
                Err(error) => {
                    tracing::debug!(partition = slot.partition, %error, "where the topics end is not known");
                    partition.stored_at += RETRY;
                    // One question in vain is enough: the others wait for the answer.
                    answers = false;
                }
            }
        }
        broken
    }

    /// Begins the checkpoints that are due, between two transactions: what is in the event topic now is in the states.
    pub(super) fn begin_checkpoints(&self, producer: &Producer, served: &mut HashMap<Slot, Served>) {
        for (slot, partition) in served {
            let (events, rested) = (partition.decider.events_since_checkpoint(), partition.checkpoint_at.elapsed());
            let enough = events >= self.rhythm.snapshot_events && rested >= MIN_REST;
            if !enough && (events == 0 || rested < self.rhythm.snapshot_interval) {
                continue;
            }
            partition.checkpoint_at = Instant::now();
            match producer.end_of(self.types[slot.kind].topic(Topic::Events), slot.partition) {
                Ok(end) => partition.decider.begin_checkpoint(end),
                Err(error) => {
                    tracing::warn!(partition = slot.partition, %error, "no checkpoint yet: where the events end is not known");
                    partition.checkpoint_at += RETRY;
                }
            }
        }
    }
}
