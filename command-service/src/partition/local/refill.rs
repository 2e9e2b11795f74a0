//! What a restore does with a local store: it uses what is there, or fills it from the topics.

use std::mem;

use millrace_shared::domain::Aggregate;

use super::{Local, delete, open};
use crate::{
    partition::{Partition, RestoreError, memory::Memory, snapshots::Snapshots},
    store::{Batch, Checkpoint},
};

/// Changed states and outcomes that a restore gathers before it writes them.
const RESTORE_PORTION: usize = 100_000;
/// Bytes of snapshots that it gathers: the more the fewer pages are written several times. Eight partitions at most are read
/// at a time.
const SNAPSHOTS_PORTION: usize = 32 << 20;
/// What one takes beside its id and its state, about.
const SNAPSHOT_BYTES: usize = 80;
/// In a store that a restore is still filling: it is of no use to the next one.
const BEING_FILLED: i64 = -1;

impl Local {
    /// A snapshot was read back: it goes to the store, past the states in memory.
    pub(in crate::partition) fn read_snapshot(&mut self, id: &str, state: Vec<u8>) {
        self.read_back_bytes += SNAPSHOT_BYTES + id.len() + state.len();
        self.read_back.push((id.into(), state));
    }
}

impl<A: Aggregate> Partition<A> {
    /// From where on events and outcomes have to be read, when the store can be trusted; else it is made anew.
    pub(in crate::partition) fn stored_up_to(&mut self, events: (i64, i64), outcomes_end: i64) -> Option<(i64, i64)> {
        let checkpoint = self.local.as_ref()?.opened_at?;
        let (from, outcomes) = (checkpoint.events_offset, checkpoint.outcomes_offset);
        let distrust = if from == BEING_FILLED {
            Some("a restore had not filled it yet")
        } else if from > events.1 || outcomes > outcomes_end {
            Some("the topics end before it")
        } else if from < events.0 {
            Some("events behind it were deleted")
        } else {
            None
        };
        let partition = self.settings.slot.partition;
        if let Some(reason) = distrust {
            tracing::info!(partition, reason, "the local store is not used; the partition is restored from the topics");
            self.forget_store();
            return None;
        }
        self.decided_up_to = checkpoint.decided_up_to;
        tracing::debug!(partition, events = from, outcomes, "local store opened");
        Some((from, outcomes))
    }

    /// Throws the store away, and all that is known, and begins with a fresh one.
    pub(in crate::partition) fn forget_store(&mut self) {
        let Some(local) = self.local.take() else { return };
        self.memory = Memory::new(self.settings.window);
        drop(local);
        self.aggregates.clear();
        self.snapshots = Snapshots::default();
        // What can't be deleted must not be used.
        if delete::<A>(&self.settings) {
            (self.local, self.memory, self.snapshots) = open::<A>(&self.settings);
        }
    }

    /// While the partition is being restored: what is in memory goes to the store when it is much.
    pub(in crate::partition) fn store_while_restoring(&mut self) -> Result<(), RestoreError> {
        let Some(local) = &self.local else { return Ok(()) };
        if local.read_back_bytes > SNAPSHOTS_PORTION {
            return self.store_read_back();
        }
        if local.pending < RESTORE_PORTION {
            return Ok(());
        }
        let Some(batch) = self.store_batch(self.being_filled()) else { return Ok(()) };
        self.fill(batch)?;
        self.memory.stored();
        self.evict();
        Ok(())
    }

    /// All snapshots that were read back are in the store when it returns.
    pub(in crate::partition) fn store_read_back(&mut self) -> Result<(), RestoreError> {
        let checkpoint = self.being_filled();
        let Some(local) = &mut self.local else { return Ok(()) };
        local.read_back_bytes = 0;
        let states = mem::take(&mut local.read_back);
        if states.is_empty() {
            return Ok(());
        }
        self.fill(Batch { states, ..Batch::new(checkpoint) })?;
        if let Some(local) = &mut self.local {
            // What the store stands at is still to be written.
            local.pending += 1;
            self.snapshots.count = local.store.states().map_err(|error| RestoreError(error.to_string()))?;
        }
        Ok(())
    }

    fn being_filled(&self) -> Checkpoint {
        Checkpoint {
            events_offset: BEING_FILLED,
            outcomes_offset: 0,
            decided_up_to: None,
            aggregates: self.snapshots.count,
        }
    }

    fn fill(&mut self, batch: Batch) -> Result<(), RestoreError> {
        let Some(local) = &mut self.local else { return Ok(()) };
        local.store.commit(batch).map_err(|error| {
            local.not_written(&self.settings);
            RestoreError(error.to_string())
        })
    }
}
