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
/// New states and outcomes of a partition, at most, while any store is being written: the more, the fewer pages are written for
/// each, and the more memory it takes (an outcome some 270 bytes).
const MAX_UNSTORED: usize = 80_000;
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

/// Whether a partition's new states and outcomes are too many to get more before its store, or another one, is written.
pub(super) fn waits_for_stores(partition: &Served, served: &HashMap<Slot, Served>) -> bool {
    partition.store_ends.is_none() && partition.decider.unstored() > MAX_UNSTORED && is_storing(served)
}

/// Whether the store of any of these is being written.
fn is_storing(served: &HashMap<Slot, Served>) -> bool {
    served.values().any(|partition| partition.decider.is_storing())
}

impl Rhythm {
    /// Whose store is to be written next. One at a time, since what is being written is in memory twice; the one that lacks
    /// most comes first.
    pub(super) fn next_store(&self, served: &HashMap<Slot, Served>) -> Option<Slot> {
        let is_due = |(_, partition): &(&Slot, &Served)| {
            let (unstored, rested) = (partition.decider.unstored(), partition.stored_at.elapsed());
            let soon = unstored >= STORE_PORTION && Instant::now() >= partition.stored_at;
            unstored > 0 && partition.store_ends.is_none() && (soon || rested >= self.store_interval)
        };
        let due = served.iter().filter(is_due);
        let (slot, _) = due.max_by_key(|(_, partition)| partition.decider.unstored())?;
        (!is_storing(served)).then_some(*slot)
    }
}

impl Writer {
    /// Tends the partitions between two transactions, and begins the commit to a local store that is due. Returns the partitions
    /// whose store can't be used any more: they have to be taken over anew.
    pub(super) fn tend(&self, producer: &Producer, served: &mut HashMap<Slot, Served>) -> Vec<Slot> {
        let now = Timestamp::now();
        let tended = served.iter_mut().filter_map(|(slot, partition)| partition.decider.tend(now).then_some(*slot));
        let broken = tended.collect();
        if let Some(slot) = self.rhythm.next_store(served)
            && let Some(partition) = served.get_mut(&slot)
        {
            partition.stored_at = Instant::now();
            let kind = &self.types[slot.kind];
            let end = |topic| producer.end_of(kind.topic(topic), slot.partition);
            match end(Topic::Events).and_then(|events| Ok((events, end(Topic::Outcomes)?))) {
                Ok(ends) => partition.store_ends = Some(ends),
                Err(error) => {
                    tracing::debug!(partition = slot.partition, %error, "where the topics end is not known");
                    partition.stored_at += RETRY;
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
