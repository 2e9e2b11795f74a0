//! When the states of a partition are written to the snapshot topic.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use millrace_shared::kafka::topics::Topic;

use super::{Producer, Writer, batch::Served};
use crate::grant::Slot;

/// Between two checkpoints of a partition, at least, however many events there are.
const MIN_REST: Duration = Duration::from_secs(1);
/// Until the next attempt when the end of the event topic could not be asked for.
const RETRY: Duration = Duration::from_secs(5);

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotRhythm {
    /// Events of a partition after which a checkpoint begins.
    pub events: u64,
    /// Time after which one begins when there were fewer, but some.
    pub interval: Duration,
}

impl Writer {
    /// Begins the checkpoints that are due, between two transactions: what is in the event topic now is in the states.
    pub(super) fn begin_checkpoints(&self, producer: &Producer, served: &mut HashMap<Slot, Served>) {
        for (slot, partition) in served {
            let (events, rested) = (partition.decider.events_since_checkpoint(), partition.checkpoint_at.elapsed());
            let enough = events >= self.snapshots.events && rested >= MIN_REST;
            if !enough && (events == 0 || rested < self.snapshots.interval) {
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
