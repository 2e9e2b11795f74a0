//! The board: what the threads tell about themselves, for health, lag and the group's offsets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_shared::ops::Health;

/// Name of the part that [`Health`] knows this as.
pub const PART: &str = "projection";

/// A partition of a topic, as one worker sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Label of what it is projected into.
    pub label: &'static str,
}

/// Shared by all threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Board {
    notes: Arc<Mutex<Notes>>,
    health: Health,
}

#[derive(Debug, Default)]
struct Notes {
    joined: bool,
    positions: BTreeMap<Place, i64>,
    problems: BTreeMap<Place, String>,
    stopped: BTreeSet<Place>,
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

    /// How far a place is: the offset of the next record to read.
    pub fn progress(&self, place: Place, offset: i64) {
        self.notes().positions.insert(place, offset);
    }

    /// A place can't go on for the moment, or not at all. Returns whether that is news.
    pub fn problem(&self, place: Place, reason: String) -> bool {
        let mut notes = self.notes();
        let known = notes.problems.insert(place, reason);
        self.report(&notes);
        known.is_none()
    }

    /// A place can't go on before somebody does something.
    pub fn stop(&self, place: Place, reason: String) {
        self.notes().stopped.insert(place.clone());
        self.problem(place, reason);
    }

    /// Why a place can't go on, where there is one.
    pub fn stopped(&self) -> Option<String> {
        let notes = self.notes();
        let Place { topic, partition, .. } = notes.stopped.first()?;
        Some(format!("{topic}/{partition}: {}", notes.problems.get(notes.stopped.first()?)?))
    }

    /// A place goes on.
    pub fn solved(&self, place: &Place) {
        let mut notes = self.notes();
        notes.stopped.remove(place);
        if notes.problems.remove(place).is_some() {
            self.report(&notes);
        }
    }

    /// A place is no longer ours. Returns whether anything was read there.
    pub fn gone(&self, place: &Place) -> bool {
        let mut notes = self.notes();
        notes.problems.remove(place);
        notes.stopped.remove(place);
        let was = notes.positions.remove(place).is_some();
        self.report(&notes);
        was
    }

    /// All positions.
    pub fn positions(&self) -> BTreeMap<Place, i64> {
        self.notes().positions.clone()
    }

    /// All problems.
    pub fn problems(&self) -> BTreeMap<Place, String> {
        self.notes().problems.clone()
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
                    .map(|(Place { topic, partition, label }, reason)| {
                        format!("{label} of {topic}/{partition}: {reason}")
                    })
                    .collect();
                Err(all.join("; "))
            }
        };
        self.health.set(PART, state);
    }
}
