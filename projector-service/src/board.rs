//! The board: what the threads tell about themselves, for health, lag and the group's offsets.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_shared::ops::Health;

/// Name of the part that [`Health`] knows this as.
pub const PART: &str = "projection";

/// A topic and one of its partitions.
pub type Place = (String, i32);

/// Shared by all threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board {
    notes: Arc<Mutex<Notes>>,
    health: Health,
}

#[derive(Debug, Default)]
struct Notes {
    joined: bool,
    positions: BTreeMap<Place, Position>,
    problems: BTreeMap<Place, String>,
}

/// How far a partition has been projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Label of the projection.
    pub projection: &'static str,
    /// Offset of the next record to read.
    pub offset: i64,
}

impl Board {
    /// An empty board.
    pub fn new(health: Health) -> Self {
        health.expect(PART);
        Self { notes: Arc::default(), health }
    }

    /// The group has said which partitions are ours.
    pub fn joined(&self) {
        let mut notes = self.notes();
        notes.joined = true;
        self.report(&notes);
    }

    /// We are in no group at the moment.
    pub fn left(&self, reason: &str) {
        let mut notes = self.notes();
        notes.joined = false;
        self.health.set(PART, Err(reason.to_owned()));
    }

    /// A partition's checkpoint has moved.
    pub fn progress(&self, topic: &str, partition: i32, position: Position) {
        self.notes().positions.insert((topic.to_owned(), partition), position);
    }

    /// A partition can't go on for the moment, or not at all. Returns whether that is news.
    pub fn problem(&self, topic: &str, partition: i32, reason: String) -> bool {
        let mut notes = self.notes();
        let known = notes.problems.insert((topic.to_owned(), partition), reason);
        self.report(&notes);
        known.is_none()
    }

    /// A partition goes on.
    pub fn solved(&self, topic: &str, partition: i32) {
        let mut notes = self.notes();
        if notes.problems.remove(&(topic.to_owned(), partition)).is_some() {
            self.report(&notes);
        }
    }

    /// A partition is no longer ours. Returns where it was.
    pub fn gone(&self, topic: &str, partition: i32) -> Option<Position> {
        let mut notes = self.notes();
        let place = (topic.to_owned(), partition);
        notes.problems.remove(&place);
        let position = notes.positions.remove(&place);
        self.report(&notes);
        position
    }

    /// All positions.
    pub fn positions(&self) -> BTreeMap<Place, Position> {
        self.notes().positions.clone()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, notes: &Notes) {
        let state = match (notes.joined, notes.problems.is_empty()) {
            (true, true) => Ok(()),
            (false, true) => Err("waiting for the consumer group".to_owned()),
            (_, false) => {
                let all: Vec<String> = notes
                    .problems
                    .iter()
                    .map(|((topic, partition), reason)| format!("{topic}/{partition}: {reason}"))
                    .collect();
                Err(all.join("; "))
            }
        };
        self.health.set(PART, state);
    }
}
