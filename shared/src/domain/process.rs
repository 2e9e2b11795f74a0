//! Processes: what spans several aggregates, and always ends.
//!
//! A process manager is an aggregate of its own that reacts: an event of it can send commands to other aggregates (its
//! *errands*), and their answers come back to it as its own commands. Both are pure functions in the domain's folder,
//! [`Aggregate::react`] and [`Aggregate::conclude`]. The writer calls them while it writes the event or the outcome, and
//! what follows is part of the same transaction: it is sent exactly when, and as often as, its cause is in the log.

use std::{any::Any, fmt, sync::OnceLock, time::Duration};

use jiff::Timestamp;

use super::{Aggregate, AggregateInfo, Bundled, Domains};

/// A command to another aggregate that follows on an event of a process.
pub struct Errand {
    /// Type of that aggregate.
    pub aggregate_type: &'static str,
    /// Its id.
    pub aggregate_id: String,
    /// What the answer will be told by.
    pub step: &'static str,
    /// Which of those steps it is.
    pub which: Which,
    /// When it is to be done.
    pub when: When,
    command: Box<dyn Any + Send>,
}

/// When an errand is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once.
    Now,
    /// So long after the event; until then it can be cancelled. For errands to itself: the *deadlines* of a process.
    After(Duration),
    /// The same, at a time.
    At(Timestamp),
    /// Not any more: a deadline of this step that is not due yet is dropped.
    Never,
}

/// What tells a step from others of its name: it becomes part of the command id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Nothing: a step that is done again is a repeat of the same command.
    Only,
    /// The event: after another one it is another command.
    AfterEvent,
    /// This, of the characters that ids have.
    Of(String),
}

/// What is asked of another aggregate before a command can be accepted, and what takes that back. See
/// [`Aggregate::question`].
#[derive(Debug)]
pub struct Question {
    /// Its step is told apart by the claim. It is sent again should there be no answer: the same command.
    pub ask: Errand,
    /// Sent when the command is refused after all.
    pub undo: Errand,
}

/// What a command has to do with one of the same aggregate that waits for the answer to its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About<'a> {
    /// It is the answer: what was asked under this claim is granted.
    Granted(&'a str),
    /// It is the answer: the command is refused, for this reason.
    Denied(&'a str, &'static str),
    /// It asks whether the command with this claim is decided: until it is, there is no answer.
    Awaited(&'a str),
}

impl Errand {
    /// To an aggregate of a type.
    pub fn to<A: Aggregate>(id: &str, step: &'static str, command: A::Command) -> Self {
        Self {
            aggregate_type: A::TYPE,
            aggregate_id: id.to_owned(),
            step,
            which: Which::Only,
            when: When::Now,
            command: Box::new(command),
        }
    }

    /// The same, told apart from other steps of its name.
    pub fn that_is(self, which: Which) -> Self {
        Self { which, ..self }
    }

    /// A deadline: a command to the process itself, later. One of the same step that is not due yet is replaced.
    pub fn deadline<A: Aggregate>(id: &str, step: &'static str, when: When, command: A::Command) -> Self {
        Self { which: Which::AfterEvent, when, ..Self::to::<A>(id, step, command) }
    }

    /// Drops a deadline.
    pub fn cancel<A: Aggregate>(id: &str, step: &'static str) -> Self {
        Self {
            aggregate_type: A::TYPE,
            aggregate_id: id.to_owned(),
            step,
            which: Which::AfterEvent,
            when: When::Never,
            command: Box::new(()),
        }
    }

    /// The step as command ids have it. `sequence` is that of the event that it follows on.
    pub fn step_id(&self, sequence: u64) -> String {
        match &self.which {
            Which::Only => self.step.to_owned(),
            Which::AfterEvent => format!("{}-{sequence}", self.step),
            Which::Of(which) => format!("{}-{which}", self.step),
        }
    }

    /// The command, when it is for this type.
    pub fn command<A: Aggregate>(&self) -> Option<&A::Command> {
        self.command.downcast_ref().filter(|_| self.aggregate_type == A::TYPE)
    }
}

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} {}", self.step, self.aggregate_type, self.aggregate_id)
    }
}

/// What came of an errand. What is not remembered (`internal`, `unavailable`) may be another answer next time, and is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It was done.
    Accepted,
    /// A rule refused it: name of the problem.
    Refused(&'a str),
}

/// Which step of which process a command id stands for: `<type>/<id>/<step>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepId<'a> {
    /// Type of the process.
    pub aggregate_type: &'a str,
    /// Its id.
    pub aggregate_id: &'a str,
    /// The step.
    pub step: &'a str,
}

impl<'a> StepId<'a> {
    /// Reads a command id. Whether there is a process of that type is for the caller to know.
    pub fn parse(command_id: &'a str) -> Option<Self> {
        let (aggregate_type, rest) = command_id.split_once('/')?;
        let (aggregate_id, step) = rest.rsplit_once('/')?;
        Some(Self { aggregate_type, aggregate_id, step })
    }
}

impl fmt::Display for StepId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.aggregate_type, self.aggregate_id, self.step)
    }
}

static RESERVED: OnceLock<Vec<String>> = OnceLock::new();

/// Reserves command ids for the processes that this program serves. To be called once, before anything is read.
pub fn reserve<D: Domains>() {
    // A program that serves others than it has begun with would be a fault of ours.
    assert!(RESERVED.set(prefixes::<D>()).is_ok(), "command ids are reserved twice, or too late");
}

/// What the command ids of processes begin with: callers can't choose such ids.
pub fn reserved_prefixes() -> &'static [String] {
    RESERVED.get_or_init(prefixes::<Bundled>)
}

fn prefixes<D: Domains>() -> Vec<String> {
    let all = AggregateInfo::all::<D>();
    all.iter().filter(|info| info.is_process).map(|info| format!("{}/", info.aggregate_type)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_by_its_command_id() {
        let step = StepId { aggregate_type: "transfer", aggregate_id: "t:1.a", step: "debit" };
        assert_eq!(StepId::parse(&step.to_string()), Some(step));
        for none in ["", "transfer", "transfer/t-1"] {
            assert_eq!(StepId::parse(none), None, "{none}");
        }
    }
}
