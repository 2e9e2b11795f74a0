//! Whose a store is.

use std::time::Duration;

use super::FORMAT;

/// What the states of a store are of.
#[derive(Clone, Debug, PartialEq)]
pub struct StatesOf {
    /// Aggregate type.
    pub aggregate_type: String,
    /// Which partition.
    pub partition: i32,
    /// Of how many.
    pub partitions: i32,
    /// Kafka's id of the event topic.
    pub events_topic_id: String,
    /// Version of the states' form.
    pub state_version: u32,
}

impl StatesOf {
    /// As it is kept in the store: a line for each part, so that a difference can be named.
    fn text(&self) -> String {
        let Self { aggregate_type, partition, partitions, events_topic_id, state_version } = self;
        format!(
            "store format {FORMAT}\naggregate type {aggregate_type}\npartition {partition} of {partitions}\nevents \
             topic id {events_topic_id}\nstate version {state_version}\n"
        )
    }

    /// In what a store's identity, as it is kept, differs in this part.
    pub fn differs_from(&self, identity: &str) -> Option<String> {
        let expected = self.text();
        (!identity.starts_with(&expected)).then(|| difference(identity, &expected))
    }
}

/// Whose store it is. One with another identity is foreign: another partition's that was moved here, or one of topics that
/// were deleted and made anew (their offsets begin again), or one whose states this release can't read.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// What its states are of.
    pub states: StatesOf,
    /// Kafka's id of the outcome topic.
    pub outcomes_topic_id: String,
    /// Kafka's id of the command topic.
    pub commands_topic_id: String,
    /// How long outcomes are remembered: one that gets longer needs some that were forgotten.
    pub window: Duration,
    /// Whether some may have been forgotten earlier.
    pub answers_forget: bool,
}

impl Identity {
    pub(super) fn text(&self) -> String {
        let Self { states, outcomes_topic_id, commands_topic_id, window, answers_forget } = self;
        format!(
            "{}outcomes topic id {outcomes_topic_id}\ncommands topic id {commands_topic_id}\nidempotency window \
             {window:?}\nanswers forgotten at the limit: {answers_forget}",
            states.text()
        )
    }
}

/// The lines in which two identities differ.
pub(super) fn difference(found: &str, expected: &str) -> String {
    let lines = found.lines().zip(expected.lines()).filter(|(found, expected)| found != expected);
    let differences: Vec<String> = lines.map(|(found, expected)| format!("{found}, not {expected}")).collect();
    differences.join("; ")
}
