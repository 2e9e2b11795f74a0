//! What a restore does with a local store: it uses what is there, or fills it from the topics.

use std::mem;

use millrace_shared::domain::Aggregate;

use super::{delete, open};
use crate::{
    partition::{Partition, RestoreError, kept::Snapshot, memory::Memory, snapshots::Snapshots},
    store::{self, Batch, Checkpoint, Store},
};

/// Changed states and outcomes that a restore gathers before it writes them.
const RESTORE_PORTION: usize = 100_000;
/// In a store that a restore is still filling: it is of no use to the next one.
const BEING_FILLED: i64 = -1;

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

    /// A snapshot was read back: it goes to the store, past the states in memory. False where there is no store.
    pub(in crate::partition) fn read_to_store(&mut self, id: &str, snapshot: &Snapshot<'_, A::State>) -> bool {
        let Some(local) = &mut self.local else { return false };
        local.read_back.push(id, |bytes| snapshot.to_store(bytes));
        true
    }

    /// While the partition is being restored: what is in memory goes to the store when it is much.
    pub(in crate::partition) fn store_while_restoring(&mut self) -> Result<(), RestoreError> {
        let Some(local) = &mut self.local else { return Ok(()) };
        if local.read_back.is_full() {
            return self.store_read_back();
        }
        if local.pending < RESTORE_PORTION {
            return Ok(());
        }
        let Some(batch) = self.store_batch(self.being_filled()) else { return Ok(()) };
        self.fill(|store| store.commit(batch))?;
        self.memory.stored();
        self.evict();
        Ok(())
    }

    /// All snapshots that were read back are in the store when it returns.
    pub(in crate::partition) fn store_read_back(&mut self) -> Result<(), RestoreError> {
        let batch = Batch::new(self.being_filled());
        let Some(local) = &mut self.local else { return Ok(()) };
        let mut snapshots = mem::take(&mut local.read_back);
        if snapshots.is_empty() {
            return Ok(());
        }
        // What the store stands at is still to be written.
        local.pending += 1;
        self.snapshots.count = self.fill(|store| {
            store.commit_sorted(snapshots.sorted(), &batch)?;
            store.states()
        })?;
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

    fn fill<T: Default>(&mut self, what: impl FnOnce(&Store) -> Result<T, store::Error>) -> Result<T, RestoreError> {
        let Some(local) = &mut self.local else { return Ok(T::default()) };
        what(&local.store).map_err(|error| {
            local.not_written(&self.settings);
            RestoreError(error.to_string())
        })
    }
}
