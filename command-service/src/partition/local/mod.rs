//! The local store behind the states in memory: what changed goes there every few seconds, what is not in memory is read
//! from there. What the store holds is never more than the log: it is written after the commit that it covers.

mod read_back;
mod refill;

use std::{
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use millrace_shared::domain::Aggregate;

use super::{
    Entry, Partition, Settings, caught,
    kept::{Open, from_store, to_store},
    memory::Memory,
    personal::sealed,
    snapshots::Snapshots,
};
use crate::store::{self, Batch, Checkpoint, Identity, StatesOf, Store, keeper::Done};
use read_back::ReadBack;

/// Pages of a store that are kept in memory.
const PAGE_CACHE_BYTES: usize = 4 << 20;
/// How long a predecessor in this or another process may take to let go of a store.
const MAX_HELD: Duration = Duration::from_secs(10);
const HELD_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at what can leave memory: each goes over all states.
const EVICT_REST: Duration = Duration::from_millis(500);
/// What an allocation takes beside what is in it, about.
const ALLOCATION_BYTES: usize = 16;

/// A partition's local store, and what is not in it yet.
pub(super) struct Local {
    store: Arc<Store>,
    /// What it stood at when it was opened.
    opened_at: Option<Checkpoint>,
    /// Aggregates whose state is newer than the one in the store.
    changed: Vec<Box<str>>,
    /// Changes of states and outcomes since the last commit began.
    pending: usize,
    lists: Lists,
    /// Snapshots that are not in the store yet, while the partition is restored.
    read_back: ReadBack,
    under_way: Option<Done>,
    /// It can't be read or written any more.
    broken: bool,
    /// A state can't be encoded: nothing is written any more, nothing leaves memory.
    given_up: bool,
    /// Bytes of the states in memory, at most, about.
    limit: usize,
    evicted_at: Instant,
}

/// Lists of aggregates that are newer than their snapshot: a restart has to know them.
#[derive(Default)]
struct Lists {
    /// In no list yet.
    open: Vec<Box<str>>,
    /// Not in the store yet.
    closed: Vec<(u64, Vec<u8>)>,
    next: u64,
    /// Those below are covered by the snapshots' checkpoint, or will be when the one under way is complete.
    covered_below: u64,
    to_be_covered_below: u64,
}

impl Lists {
    fn close(&mut self) {
        if !self.open.is_empty() {
            self.closed.push((self.next, mem::take(&mut self.open).join("\n").into_bytes()));
            self.next += 1;
        }
    }
}

/// For taking the changes of a batch back: how many were listed before it.
pub(super) struct Marks {
    snapshots: (usize, u64),
    changed: usize,
    pending: usize,
    open: usize,
}

impl Local {
    /// Opens the store of a partition, if it is to have one and can.
    fn open<A: Aggregate>(settings: &Settings) -> Option<Self> {
        let wanted = settings.store.as_ref()?;
        let identity = Identity {
            states: StatesOf {
                aggregate_type: A::TYPE.to_owned(),
                partition: settings.slot.partition,
                partitions: settings.partitions,
                events_topic_id: settings.events_topic_id.clone(),
                state_version: A::STATE_VERSION,
            },
            outcomes_topic_id: settings.outcomes_topic_id.clone(),
            commands_topic_id: settings.topic_id.clone(),
            window: settings.window,
            answers_forget: settings.answers_forget,
        };
        let started = Instant::now();
        let partition = settings.slot.partition;
        let path = wanted.keeper.path(A::TYPE, partition);
        if let Err(error) = wanted.keeper.prepare(&path) {
            tracing::warn!(partition, path = %path.display(), %error, "no local store: all states are kept in memory");
            return None;
        }
        let opened = loop {
            match Store::open(&path, &identity, PAGE_CACHE_BYTES) {
                Ok(opened) => break opened,
                Err(store::Error::Held(_)) if started.elapsed() < MAX_HELD => thread::sleep(HELD_PAUSE),
                Err(error) => {
                    tracing::warn!(partition, %error, "no local store: all states are kept in memory");
                    return None;
                }
            }
        };
        Some(Self {
            store: Arc::new(opened.store),
            opened_at: opened.checkpoint,
            changed: Vec::new(),
            pending: 0,
            lists: Lists::default(),
            read_back: ReadBack::default(),
            under_way: None,
            broken: false,
            given_up: false,
            limit: wanted.states_bytes,
            evicted_at: started,
        })
    }

    /// An outcome is to be written some time.
    pub(super) fn count_outcome(&mut self) {
        self.pending += 1;
    }

    /// What is known of an aggregate, or of its snapshot, has changed.
    pub(super) fn note(&mut self, id: &str, unstored: &mut bool) {
        if !mem::replace(unstored, true) {
            self.changed.push(id.into());
            self.pending += 1;
        }
    }

    /// It can't be used any more.
    pub(super) fn mark_broken(&mut self) {
        self.broken = true;
    }

    /// It can't be written, and other stores neither, most likely.
    fn not_written(&mut self, settings: &Settings) {
        self.broken = true;
        if let Some(wanted) = &settings.store {
            wanted.keeper.rest();
        }
    }

    /// Of how many aggregates the store has a state.
    #[cfg(test)]
    pub(super) fn stored(&self) -> u64 {
        self.store.states().unwrap()
    }

    /// As if nothing had left memory for a while.
    #[cfg(test)]
    pub(super) fn may_evict(&mut self) {
        self.evicted_at -= EVICT_REST;
    }

    fn is_writable(&self) -> bool {
        !self.broken && !self.given_up
    }
}

/// An aggregate's state has changed: it is to be written to the snapshot topic and to the store.
pub(super) fn note<S>(snapshots: &mut Snapshots, local: Option<&mut Local>, id: &str, entry: &mut Entry<S>) {
    let newer_than_snapshot = !mem::replace(&mut entry.changed, true);
    if newer_than_snapshot {
        snapshots.changed(id);
    }
    if let Some(local) = local {
        if newer_than_snapshot {
            local.lists.open.push(id.into());
        }
        local.note(id, &mut entry.unstored);
    }
}

/// The parts of a partition that come from its store.
pub(super) fn open<A: Aggregate>(settings: &Settings) -> (Option<Local>, Memory, Snapshots) {
    // Once more when what is there can't be read: then with a fresh one.
    for _ in 0..2 {
        let Some(mut local) = Local::open::<A>(settings) else { break };
        let read = || {
            let memory = Memory::open(settings.window, local.store.clone())?;
            Ok::<_, store::Error>((memory, local.store.unsnapshotted()?))
        };
        match read() {
            Ok((memory, lists)) => {
                let mut snapshots = Snapshots::default();
                local.lists.next = lists.last().map_or(0, |(number, _)| number + 1);
                for (_, list) in lists {
                    String::from_utf8_lossy(&list).lines().for_each(|id| snapshots.changed(id));
                }
                snapshots.count = local.opened_at.map_or(0, |checkpoint| checkpoint.aggregates);
                return (Some(local), memory, snapshots);
            }
            Err(error) => {
                tracing::warn!(partition = settings.slot.partition, %error, "the local store is thrown away");
                drop(local);
                if !delete::<A>(settings) {
                    break;
                }
            }
        }
    }
    (None, Memory::new(settings.window), Snapshots::default())
}

/// Deletes the file of a store. Returns whether it is gone.
fn delete<A: Aggregate>(settings: &Settings) -> bool {
    let Some(wanted) = &settings.store else { return true };
    let deleted = Store::delete(&wanted.keeper.path(A::TYPE, settings.slot.partition));
    if let Err(error) = &deleted {
        tracing::warn!(%error, "a local store can't be deleted");
    }
    deleted.is_ok()
}

impl<A: Aggregate> Partition<A> {
    /// Has an aggregate in memory, if there is any of that id.
    ///
    /// # Errors
    /// When the store can't be read: then nobody knows.
    pub(super) fn load(&mut self, id: &str) -> Result<(), String> {
        let Some(local) = &mut self.local else { return Ok(()) };
        if let Some(entry) = self.aggregates.get_mut(id) {
            entry.used = true;
            return Ok(());
        }
        let read = local.store.state(id).and_then(|found| match found {
            None => Ok(None),
            Some(bytes) => {
                let open: Open<'_, A> = &|snapshot, id| self.keys.open_snapshot::<A>(snapshot, id);
                match from_store::<A>(&self.context.snapshots, &bytes, id, open) {
                    Some((kept, covered)) => Ok(Some(Entry { covered, bytes: bytes.len() as u32, ..Entry::of(kept) })),
                    None => Err(local.store.damaged(format!("the state of {id} can't be read"))),
                }
            }
        });
        match read {
            Ok(Some(entry)) => {
                self.aggregates.insert(id.into(), entry);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                local.broken = true;
                Err(error.to_string())
            }
        }
    }

    /// The store can't be used any more: the partition is to be taken over anew.
    pub(super) fn is_store_broken(&self) -> bool {
        self.local.as_ref().is_some_and(|local| local.broken)
    }

    /// A batch is about to change something.
    pub(super) fn mark(&mut self) {
        if self.marks.is_none() {
            let of = |what: fn(&Local) -> usize| self.local.as_ref().map_or(0, what);
            self.marks = Some(Marks {
                snapshots: self.snapshots.mark(),
                changed: of(|local| local.changed.len()),
                pending: of(|local| local.pending),
                open: of(|local| local.lists.open.len()),
            });
        }
    }

    /// The batch is not in the log: nothing has changed.
    pub(super) fn roll_lists_back(&mut self) {
        let Some(marks) = self.marks.take() else { return };
        self.snapshots.roll_back_to(marks.snapshots);
        if let Some(local) = &mut self.local {
            local.changed.truncate(marks.changed);
            local.pending = marks.pending;
            local.lists.open.truncate(marks.open);
        }
    }

    /// How much the store lacks; nothing when it must not be written: it would cover events that this release can't read, and
    /// the next one that can would never see them.
    pub(super) fn unstored(&self) -> usize {
        let local = self.local.as_ref().filter(|local| local.is_writable() && !self.unreadable);
        local.map_or(0, |local| local.pending)
    }

    /// Whether the store is being written.
    pub(super) fn is_storing(&self) -> bool {
        self.local.as_ref().is_some_and(|local| local.under_way.is_some())
    }

    /// Has the store written: events and outcomes below these offsets, and the commands below `next`, are in the states.
    pub(super) fn begin_store_commit(&mut self, next: i64, events: i64, outcomes: i64) {
        let checkpoint = Checkpoint {
            events_offset: events,
            outcomes_offset: outcomes,
            decided_up_to: Some(next),
            aggregates: self.snapshots.count,
        };
        if let Some(batch) = self.store_batch(checkpoint)
            && let (Some(local), Some(wanted)) = (&mut self.local, &self.settings.store)
        {
            local.under_way = Some(wanted.keeper.commit(local.store.clone(), batch));
        }
    }

    /// What has changed. From here on it counts as being in the store.
    fn store_batch(&mut self, checkpoint: Checkpoint) -> Option<Batch> {
        let at_rest = |local: &&mut Local| local.under_way.is_none() && local.is_writable();
        let local = self.local.as_mut().filter(at_rest).filter(|_| !self.unreadable)?;
        let mut batch = Batch::new(checkpoint);
        for id in mem::take(&mut local.changed) {
            // Not changed: what had changed it was rolled back.
            let Some(entry) = self.aggregates.get_mut(&id).filter(|entry| entry.unstored) else { continue };
            let encode = || {
                let state = sealed::<A>(&self.keys, &id, &entry.state)?;
                to_store::<A>(&self.context.snapshots, (&state, entry.version, entry.last_time), entry.covered)
            };
            match caught(encode) {
                Ok(bytes) => {
                    (entry.unstored, entry.bytes) = (false, bytes.len() as u32);
                    batch.states.push((id, bytes));
                }
                Err(cause) => {
                    tracing::error!(
                        aggregate = &*id,
                        cause,
                        "a state can't be written: the local store is not written any more"
                    );
                    local.given_up = true;
                    return None;
                }
            }
        }
        local.pending = 0;
        let taken = self.memory.take_chunks();
        (batch.outcomes, batch.outcomes_below) = (taken.chunks, taken.below);
        local.lists.close();
        batch.unsnapshotted = mem::take(&mut local.lists.closed);
        batch.unsnapshotted_below = local.lists.covered_below;
        Some(batch)
    }

    /// Takes note of a commit to the store that has ended.
    pub(super) fn end_store_commit(&mut self) {
        let Some(local) = &mut self.local else { return };
        if let Some(done) = &local.under_way {
            let Some(result) = done.get() else { return };
            match result {
                Ok(()) => self.memory.stored(),
                Err(error) => {
                    let partition = self.settings.slot.partition;
                    tracing::error!(partition, %error, "the local store can't be written; taking the partition over without it");
                    local.not_written(&self.settings);
                }
            }
            local.under_way = None;
        }
        // Only now: what is being written is not in the store yet.
        self.evict();
    }

    /// Lets go of states that are in the store and were not used lately, when there are too many.
    fn evict(&mut self) {
        let Some(local) = &mut self.local else { return };
        // Of a store that was given up nobody knows how much it has.
        if local.broken || local.given_up || local.evicted_at.elapsed() < EVICT_REST {
            return;
        }
        let entry_bytes = size_of::<(Box<str>, Entry<A::State>)>() + 1;
        // All are counted only when there may be too many.
        if self.aggregates.capacity() * entry_bytes * 2 < local.limit {
            return;
        }
        local.evicted_at = Instant::now();
        // What a state has outside of its entry is about what it takes encoded.
        let outside = |id: &str, entry: &Entry<A::State>| 2 * ALLOCATION_BYTES + id.len() + entry.bytes as usize;
        let all: usize = self.aggregates.iter().map(|(id, entry)| outside(id, entry)).sum();
        let most = most_entries(local.limit, entry_bytes, all / self.aggregates.len().max(1));
        if self.aggregates.len() <= most {
            return;
        }
        // Some more, so that the table does not grow until the next look: it doubles, and stays so.
        let mut excess = self.aggregates.len() - (most - most / 16);
        self.aggregates.retain(|_, entry| {
            let goes =
                excess > 0 && !entry.unstored && entry.unreadable.is_none() && !mem::replace(&mut entry.used, false);
            excess -= usize::from(goes);
            !goes
        });
    }

    /// The snapshots' checkpoint begins: all that changed until now is in it.
    pub(super) fn begin_covering(&mut self) {
        if let Some(local) = &mut self.local {
            local.lists.close();
            local.lists.to_be_covered_below = local.lists.next;
        }
    }

    /// It is complete.
    pub(super) fn end_covering(&mut self) {
        if let Some(local) = &mut self.local {
            local.lists.covered_below = local.lists.to_be_covered_below;
            local.pending += 1;
        }
    }
}

/// How many entries a table may have that takes no more than these bytes, with what they have outside of it. A table has a
/// power of two of places, of which an eighth stays empty.
fn most_entries(limit: usize, entry: usize, outside: usize) -> usize {
    let of_table = |places: usize| (places / 8 * 7).min(limit.saturating_sub(places * entry) / outside.max(1));
    (4..usize::BITS / 2).map(|bits| of_table(1 << bits)).max().unwrap_or_default()
}

impl<A: Aggregate> Drop for Partition<A> {
    fn drop(&mut self) {
        if self.is_full {
            self.settings.waiters.set_full(self.settings.slot, false);
            metrics::gauge!("millrace_partitions_full").decrement(1.0);
        }
        mem::take(&mut self.schedule).gone(A::TYPE, &self.settings.room);
        // What can't be read or written is not opened again.
        if self.is_store_broken() {
            delete::<A>(&self.settings);
        }
    }
}
