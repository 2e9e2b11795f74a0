//! The HTTP requests that wait for an outcome.
//!
//! A request waits under aggregate, command id and fingerprint: a repeat of the id with another body must not take the
//! first one's answer. Whoever learns an outcome first (the writer after its commit, or the follower of the outcome
//! topic) answers it; a request that goes away takes its place in the list with it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use millrace_shared::{fingerprint::Fingerprint, outcome::Outcome};
use tokio::sync::{Notify, oneshot};

use crate::grant::Slot;

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Awaited {
    /// Partition of the aggregate.
    pub slot: Slot,
    /// Aggregate id.
    pub aggregate_id: String,
    /// Command id.
    pub command_id: String,
    /// Of the command.
    pub fingerprint: Fingerprint,
}

/// An outcome as it reaches a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was decided.
    pub outcome: Arc<Outcome>,
    /// Whether it was published for a repeat.
    pub replayed: bool,
    /// Offset of the command that it answers, in the aggregate's partition, where known: where it lay before it had to wait.
    pub command_offset: Option<i64>,
}

/// All waiting requests. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Waiters {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Saves the lock, and the making of answers, while nobody waits.
    waiting: AtomicUsize,
    /// Told when a partition is no longer being restored.
    restored: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    requests: HashMap<Awaited, BTreeMap<u64, Request>>,
    /// Partitions whose outcomes the writers of this process answer, and from where in the outcome topic a request
    /// that comes now would have to look should the partition go.
    served_here: HashMap<Slot, i64>,
    /// Those of them in which as many answers are remembered as may be.
    full: HashSet<Slot>,
    /// Partitions that are ours and can't be served yet.
    restoring: HashSet<Slot>,
}

#[derive(Debug)]
struct Request {
    answer: oneshot::Sender<Answer>,
    look_from: Option<i64>,
}

/// A request's place; gone when dropped.
#[derive(Debug)]
pub struct Waiting {
    waiters: Waiters,
    awaited: Awaited,
    number: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Waiting {
    /// Waits; `None` should the process be ending.
    pub async fn answer(&mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.waiters.lock();
        if let Some(requests) = state.requests.get_mut(&self.awaited) {
            if requests.remove(&self.number).is_some() {
                self.waiters.inner.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            if requests.is_empty() {
                state.requests.remove(&self.awaited);
            }
        }
    }
}

impl Waiters {
    /// Takes a place. The flag says whether this process serves the partition; if it doesn't, the caller has to see
    /// that the outcome topic is followed before it produces the command.
    pub fn register(&self, awaited: Awaited) -> (Waiting, bool) {
        let (sender, answer) = oneshot::channel();
        let mut state = self.lock();
        let look_from = state.served_here.get(&awaited.slot).copied();
        state.next += 1;
        let number = state.next;
        state.requests.entry(awaited.clone()).or_default().insert(number, Request { answer: sender, look_from });
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        drop(state);
        (Waiting { waiters: self.clone(), awaited, number, answer }, look_from.is_some())
    }

    /// Whether anybody waits for anything: cheap.
    pub fn any(&self) -> bool {
        self.inner.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether anybody waits for this.
    pub fn awaits(&self, awaited: &Awaited) -> bool {
        self.any() && self.lock().requests.contains_key(awaited)
    }

    /// Whether anybody waits for anything of this partition.
    pub fn awaits_of(&self, slot: Slot) -> bool {
        self.any() && self.lock().requests.keys().any(|awaited| awaited.slot == slot)
    }

    /// Answers everybody who waits for this.
    pub fn answer(&self, awaited: &Awaited, answer: &Answer) {
        let requests = self.lock().requests.remove(awaited).unwrap_or_default();
        self.inner.waiting.fetch_sub(requests.len(), Ordering::Relaxed);
        for request in requests.into_values() {
            // An error means that the request has gone away.
            let _ = request.answer.send(answer.clone());
        }
    }

    /// A partition is ours, and is being restored.
    pub fn restoring(&self, slot: Slot) {
        self.lock().restoring.insert(slot);
    }

    /// Waits while a partition is being restored here.
    pub async fn until_restored(&self, slot: Slot) {
        loop {
            let mut restored = pin!(self.inner.restored.notified());
            // Before the look: what is told from then on is not missed.
            restored.as_mut().enable();
            if !self.lock().restoring.contains(&slot) {
                return;
            }
            restored.await;
        }
    }

    fn end_restoring(&self, slot: Slot) {
        if self.lock().restoring.remove(&slot) {
            self.inner.restored.notify_waiters();
        }
    }

    /// This process serves a partition, whose outcome topic ends here at the moment (or later).
    pub fn served_here(&self, slot: Slot, outcomes_end: i64) {
        self.lock().served_here.insert(slot, outcomes_end);
        self.end_restoring(slot);
    }

    /// Whether a partition that is served here decides nothing at the moment, since as many answers are remembered as may be.
    pub fn set_full(&self, slot: Slot, is_full: bool) {
        let mut state = self.lock();
        let _ = if is_full { state.full.insert(slot) } else { state.full.remove(&slot) };
    }

    /// As [`Waiters::set_full`] was told.
    pub fn is_full(&self, slot: Slot) -> bool {
        self.lock().full.contains(&slot)
    }

    /// The partitions that are served here.
    pub fn slots_served(&self) -> Vec<Slot> {
        self.lock().served_here.keys().copied().collect()
    }

    /// A later end of the outcome topic of a partition that is still served here.
    pub fn outcomes_end(&self, slot: Slot, end: i64) {
        if let Some(known) = self.lock().served_here.get_mut(&slot) {
            *known = end.max(*known);
        }
    }

    /// This process serves the partition no longer. Returns from where the outcome topic has to be followed for those
    /// who wait, if anybody does.
    pub fn served_elsewhere(&self, slot: Slot) -> Option<i64> {
        self.end_restoring(slot);
        let mut state = self.lock();
        state.full.remove(&slot);
        let end = state.served_here.remove(&slot)?;
        let waiting = state.requests.iter().filter(|(awaited, _)| awaited.slot == slot);
        waiting.flat_map(|(_, requests)| requests.values()).map(|request| request.look_from.unwrap_or(end)).min()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_shared::outcome::Verdict;

    const SLOT: Slot = Slot { kind: 0, partition: 3 };

    fn awaited(fingerprint: u8) -> Awaited {
        Awaited { slot: SLOT, aggregate_id: "a".into(), command_id: "c".into(), fingerprint: [fingerprint; 16] }
    }

    fn answer() -> Answer {
        let outcome = Outcome {
            command_id: "c".into(),
            aggregate_type: "bank-account".into(),
            aggregate_id: "a".into(),
            outcome: Verdict::Accepted,
            version: 1,
            events: vec![],
            reason: None,
            detail: None,
            fingerprint: vec![1; 16],
            at: 0,
        };
        Answer { outcome: Arc::new(outcome), replayed: false, command_offset: Some(0) }
    }

    #[tokio::test]
    async fn everybody_who_waits_for_the_same_is_answered_and_nobody_else() {
        let waiters = Waiters::default();
        let (mut one, _) = waiters.register(awaited(1));
        let (mut two, _) = waiters.register(awaited(1));
        let (other, _) = waiters.register(awaited(2));
        waiters.answer(&awaited(1), &answer());
        assert!(one.answer().await.is_some() && two.answer().await.is_some());
        assert!(waiters.awaits(&awaited(2)) && !waiters.awaits(&awaited(1)));
        drop(other);
        assert!(!waiters.any());
    }

    #[tokio::test]
    async fn who_comes_while_a_partition_is_restored_waits_until_it_is_served_or_gone() {
        let waiters = Waiters::default();
        waiters.until_restored(SLOT).await;
        let ends: [fn(&Waiters); 2] =
            [|waiters| waiters.served_here(SLOT, 1), |waiters| _ = waiters.served_elsewhere(SLOT)];
        for end in ends {
            waiters.restoring(SLOT);
            let waiting = tokio::spawn({
                let waiters = waiters.clone();
                async move { waiters.until_restored(SLOT).await }
            });
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            assert!(!waiting.is_finished());
            end(&waiters);
            waiting.await.unwrap();
        }
    }

    #[test]
    fn a_request_that_goes_away_leaves_nothing_behind() {
        let waiters = Waiters::default();
        drop(waiters.register(awaited(1)));
        assert!(!waiters.any() && waiters.lock().requests.is_empty());
    }

    #[test]
    fn when_a_partition_goes_its_outcomes_are_looked_for_from_before_the_first_request() {
        let waiters = Waiters::default();
        assert!(!waiters.register(awaited(1)).1);
        waiters.served_here(SLOT, 100);
        let (_waiting, served) = waiters.register(awaited(1));
        waiters.outcomes_end(SLOT, 200);
        let (_later, _) = waiters.register(awaited(2));
        assert!(served);
        assert_eq!(waiters.served_elsewhere(SLOT), Some(100));
        assert_eq!(waiters.served_elsewhere(SLOT), None);
    }
}
