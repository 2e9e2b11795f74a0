//! The remembered outcomes of a partition: what makes a repeat harmless.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use millrace_shared::fingerprint::Fingerprint;

/// Expired outcomes removed after one batch, at most: a batch is never held up by many.
const EXPIRE_AT_ONCE: usize = 10_000;

/// An outcome that is remembered.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Of the command that it answered.
    pub fingerprint: Fingerprint,
    /// The outcome as it was published.
    pub outcome: Arc<[u8]>,
    /// When it was decided.
    pub at: Timestamp,
}

/// Outcomes by aggregate and command id, for a window of time.
pub struct Memory {
    window: Duration,
    outcomes: HashMap<Arc<str>, Remembered>,
    /// In the order of their coming, with their times: an id that is used again after its window is here twice, and the
    /// first place must neither hold up those behind it nor take the new outcome with it.
    order: VecDeque<(Arc<str>, Timestamp)>,
    /// How many of the last ones belong to the batch that is under way.
    uncommitted: usize,
}

impl Memory {
    /// An empty one.
    pub fn new(window: Duration) -> Self {
        Self { window, outcomes: HashMap::new(), order: VecDeque::new(), uncommitted: 0 }
    }

    /// What is remembered under a [`key`].
    pub fn recall(&self, key: &str, now: Timestamp) -> Option<&Remembered> {
        let known = self.outcomes.get(key)?;
        (!self.is_past(known.at, now)).then_some(known)
    }

    /// Remembers; counts as part of the batch until [`Memory::commit`].
    pub fn remember(&mut self, key: &str, remembered: Remembered) {
        let key: Arc<str> = key.into();
        self.order.push_back((key.clone(), remembered.at));
        self.outcomes.insert(key, remembered);
        self.uncommitted += 1;
    }

    /// The batch is in the log.
    pub fn commit(&mut self) {
        self.uncommitted = 0;
    }

    /// The batch is not in the log.
    pub fn rollback(&mut self) {
        for _ in 0..std::mem::take(&mut self.uncommitted) {
            if let Some((key, _)) = self.order.pop_back() {
                self.outcomes.remove(&key);
            }
        }
    }

    /// Removes what has expired, in bounded steps.
    pub fn expire(&mut self, now: Timestamp) {
        for _ in 0..EXPIRE_AT_ONCE {
            if self.order.front().is_none_or(|(_, at)| !self.is_past(*at, now)) {
                return;
            }
            if let Some((key, at)) = self.order.pop_front()
                && self.outcomes.get(&key).is_some_and(|known| known.at == at)
            {
                self.outcomes.remove(&key);
            }
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Whether an outcome of this time is past the window.
    pub fn is_past(&self, at: Timestamp, now: Timestamp) -> bool {
        now > at && now.duration_since(at).unsigned_abs() > self.window
    }
}

/// A command id belongs to its aggregate. Neither of the two holds a space.
pub fn key(aggregate_id: &str, command_id: &str) -> String {
    [aggregate_id, " ", command_id].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(100);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn remember(memory: &mut Memory, key: &str, second: i64) {
        memory.remember(key, Remembered { fingerprint: [0; 16], outcome: Arc::new([]), at: at(second) });
    }

    #[test]
    fn g05_an_id_that_is_used_again_after_its_window_holds_nobody_up_and_is_remembered_anew() {
        let mut memory = Memory::new(WINDOW);
        remember(&mut memory, "again", 0);
        remember(&mut memory, "other", 1);
        memory.commit();
        // Past the window, and not removed yet.
        assert!(memory.recall("again", at(150)).is_none());
        remember(&mut memory, "again", 150);
        memory.commit();
        memory.expire(at(151));
        assert_eq!(memory.len(), 1, "what came behind the first one is past as well");
        assert_eq!(memory.recall("again", at(250)).map(|known| known.at), Some(at(150)));
        memory.expire(at(251));
        assert_eq!((memory.len(), memory.order.len()), (0, 0));
    }

    #[test]
    fn g05_a_rollback_forgets_the_batch_and_nothing_else() {
        let mut memory = Memory::new(WINDOW);
        remember(&mut memory, "kept", 0);
        memory.commit();
        remember(&mut memory, "lost", 1);
        memory.rollback();
        assert!(memory.recall("kept", at(2)).is_some() && memory.recall("lost", at(2)).is_none());
        memory.expire(at(200));
        assert_eq!(memory.len(), 0);
    }
}
