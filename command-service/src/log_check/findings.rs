//! What a log check can find, and what it can't judge.

use std::collections::BTreeMap;

use serde::Serialize;

/// Findings of one kind that are kept and shown; further ones are counted.
const KEPT_PER_KIND: usize = 100;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A command that the group has passed has no outcome, no dead letter, and was not forwarded.
    CommandLost,
    /// A command led to more than one thing: outcomes, dead letters, forwards.
    HandledTwice,
    /// A command was answered after one that lies behind it.
    OutOfOrder,
    /// An outcome is not that of the command at its position.
    OutcomeDiffers,
    /// An aggregate and command id have two original outcomes within the idempotency window.
    TwoOutcomes,
    /// A repeat is not equal to its original, or has none.
    RepeatDiffers,
    /// An outcome's version does not follow on the one before.
    OutcomeVersion,
    /// An outcome contradicts itself.
    OutcomeMalformed,
    /// An accepted outcome's events are not in the log.
    OutcomeWithoutEvents,
    /// An event's command has no outcome.
    EventWithoutOutcome,
    /// Events are not those that their outcome names.
    EventsDiffer,
    /// A sequence is missing.
    SequenceGap,
    /// A sequence occurs twice.
    SequenceRepeat,
    /// An event is dated before the one before it.
    TimeBackwards,
    /// An event breaks a rule of its domain.
    RuleBroken,
    /// A record lies in another partition than its aggregate's.
    WrongPartition,
    /// Headers are not as the contract has them.
    Headers,
    /// A record can't be read: Millrace did not write it.
    Unreadable,
    /// The event topic does not go back to its beginning.
    EventsDeleted,
    /// The group's committed offset lies behind the end of the command topic.
    OffsetBeyondEnd,
}

impl Kind {
    /// Its name, as `--json` gives it.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// Where.
    pub topic: String,
    /// Where.
    pub partition: i32,
    /// Where.
    pub offset: i64,
    /// Whose record it is, where that is known.
    pub aggregate: Option<String>,
    /// What exactly.
    pub detail: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}  {}/{}/{}", self.kind.name(), self.topic, self.partition, self.offset)?;
        if let Some(aggregate) = &self.aggregate {
            write!(f, "  {aggregate}")?;
        }
        write!(f, "  {}", self.detail)
    }
}

/// What could not be judged, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unjudged {
    /// Events older than the oldest outcome that is kept.
    EventsWithoutKeptOutcome,
    /// Commands whose outcome, dead letter or forward may be deleted already.
    CommandsWithoutKeptOutcome,
    /// Repeats and refusals whose original is deleted already.
    RepeatsWithoutKeptOriginal,
    /// Events that follow on something that is broken in their aggregate: their rules can't be judged.
    EventsAfterFinding,
    /// Partitions about which the group has no committed offset.
    PartitionsWithoutOffset,
}

impl Unjudged {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::EventsWithoutKeptOutcome => "events whose outcomes are deleted by now",
            Self::CommandsWithoutKeptOutcome => "commands whose outcomes are deleted by now",
            Self::RepeatsWithoutKeptOriginal => "repeats and refusals whose original outcomes are deleted by now",
            Self::EventsAfterFinding => "events behind a finding in their aggregate, as for rules",
            Self::PartitionsWithoutOffset => "partitions without committed offset, as for lost commands",
        }
    }
}

/// Records that were read.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    /// Commands.
    pub commands: u64,
    /// Commands that are not handled yet.
    pub waiting: u64,
    /// Original outcomes.
    pub outcomes: u64,
    /// Of these, accepted ones.
    pub accepted: u64,
    /// Outcomes that answer repeats.
    pub repeats: u64,
    /// Commands that were forwarded to their partition.
    pub forwarded: u64,
    /// Of these, those that had been forwarded before, and were answered as the repeats that they are.
    pub forwarded_again: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Events.
    pub events: u64,
    /// Aggregates.
    pub aggregates: u64,
}

impl Counts {
    /// All records.
    pub fn records(&self) -> u64 {
        self.commands + self.outcomes + self.repeats + self.dead_letters + self.events
    }

    fn add(&mut self, other: &Self) {
        self.commands += other.commands;
        self.waiting += other.waiting;
        self.outcomes += other.outcomes;
        self.accepted += other.accepted;
        self.repeats += other.repeats;
        self.forwarded += other.forwarded;
        self.forwarded_again += other.forwarded_again;
        self.dead_letters += other.dead_letters;
        self.events += other.events;
        self.aggregates += other.aggregates;
    }
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    /// Records that were read.
    pub counts: Counts,
    /// How many findings there are, by kind.
    pub found: BTreeMap<Kind, u64>,
    /// The first ones of each kind.
    pub findings: Vec<Finding>,
    /// How much could not be judged.
    pub unjudged: BTreeMap<Unjudged, u64>,
}

impl Report {
    /// Takes a finding.
    pub fn add(&mut self, finding: Finding) {
        let count = self.found.entry(finding.kind).or_default();
        *count += 1;
        if *count <= KEPT_PER_KIND as u64 {
            self.findings.push(finding);
        }
    }

    /// Counts what can't be judged.
    pub fn cannot_judge(&mut self, what: Unjudged, count: u64) {
        if count > 0 {
            *self.unjudged.entry(what).or_default() += count;
        }
    }

    /// Takes another part's report in.
    pub fn merge(&mut self, other: Self) {
        self.counts.add(&other.counts);
        for (kind, count) in other.found {
            *self.found.entry(kind).or_default() += count;
        }
        for finding in other.findings {
            if self.findings.iter().filter(|known| known.kind == finding.kind).count() < KEPT_PER_KIND {
                self.findings.push(finding);
            }
        }
        for (what, count) in other.unjudged {
            self.cannot_judge(what, count);
        }
    }
}
