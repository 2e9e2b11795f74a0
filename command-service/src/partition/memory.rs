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
    /// In the order of their coming.
    order: VecDeque<Arc<str>>,
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
        self.outcomes.insert(key.clone(), remembered);
        self.order.push_back(key);
        self.uncommitted += 1;
    }

    /// The batch is in the log.
    pub fn commit(&mut self) {
        self.uncommitted = 0;
    }

    /// The batch is not in the log.
    pub fn rollback(&mut self) {
        for _ in 0..std::mem::take(&mut self.uncommitted) {
            if let Some(key) = self.order.pop_back() {
                self.outcomes.remove(&key);
            }
        }
    }

    /// Removes what has expired, in bounded steps.
    pub fn expire(&mut self, now: Timestamp) {
        for _ in 0..EXPIRE_AT_ONCE {
            let Some(oldest) = self.order.front() else { return };
            match self.outcomes.get(oldest) {
                Some(known) if !self.is_past(known.at, now) => return,
                _ => {
                    if let Some(key) = self.order.pop_front() {
                        self.outcomes.remove(&key);
                    }
                }
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
