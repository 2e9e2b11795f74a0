//! Commands that were told to wait: each still does, or was put back into the command topic, or has another outcome.

use std::collections::{HashMap, HashSet};

use millrace_shared::{
    domain::{Aggregate, process::reserved_prefixes},
    envelope::{CommandHeaders, names},
    kafka::{bulk::Record, topics::Topic},
    outcome::{Outcome, PENDING, SCHEDULED},
};

use super::{
    Error, Kind, headers,
    outcomes::{REUSED, key},
    partition::PartitionCheck,
};

/// Those of a partition, by aggregate and command id.
#[derive(Default)]
pub(super) struct Waiting {
    told: HashMap<u128, Told>,
    /// Those of them that the topic of scheduled commands has.
    present: HashSet<u128>,
    /// The topic of scheduled commands is read: who is told to wait from now on is not looked for there.
    over: bool,
}

/// One that was told to wait.
struct Told {
    aggregate: u32,
    /// Offset of the outcome that told it.
    outcome: i64,
    /// Offset of the command.
    command: i64,
}

impl Waiting {
    /// Whether any is to be accounted for.
    pub(super) fn any(&self) -> bool {
        !self.told.is_empty()
    }

    /// It waits, has another outcome, or is a command as any other again.
    fn settled(&mut self, key: u128) {
        self.told.remove(&key);
    }

    fn tell(&mut self, key: u128, told: Told) {
        match self.over {
            false => drop(self.told.insert(key, told)),
            // It was put back meanwhile, and waits again.
            true => self.settled(key),
        }
    }

    /// It lies at this offset of the command topic, since it waits no longer.
    fn lies_at(&mut self, key: u128, offset: i64) {
        if self.told.get(&key).is_some_and(|told| told.command < offset) {
            self.settled(key);
        }
    }

    /// A record of the topic of scheduled commands. It is compacted, but not at once: the last one of a key counts.
    fn scheduled(&mut self, key: u128, waits: bool) {
        if !waits {
            self.present.remove(&key);
        } else if self.told.contains_key(&key) {
            self.present.insert(key);
        }
    }

    /// The topic of scheduled commands is read.
    pub(super) fn end(&mut self) {
        for key in std::mem::take(&mut self.present) {
            self.settled(key);
        }
        self.over = true;
    }
}

/// What an outcome means for its command's waiting.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    /// It waits from now on.
    Waits,
    /// It was decided, or is a dead letter.
    Settled,
    /// If it was put back it waits no longer, whatever this says.
    OfACopy,
    /// It is about another command, or none that waits itself.
    Nothing,
}

impl Meaning {
    fn of(outcome: &Outcome, replayed: bool) -> Self {
        match outcome.reason.as_deref() {
            // A process that asks about what waits is told so, and does not wait itself.
            Some(PENDING) if is_of_process(&outcome.command_id) => Self::Nothing,
            Some(SCHEDULED | PENDING) if !replayed => Self::Waits,
            Some(SCHEDULED | PENDING | REUSED) => Self::Nothing,
            Some("unavailable") => Self::OfACopy,
            _ if replayed => Self::OfACopy,
            _ => Self::Settled,
        }
    }
}

impl<A: Aggregate> PartitionCheck<'_, A> {
    /// Takes what an outcome says of a command that waits, or is to.
    pub(super) fn accounts_for_waiting(&mut self, record: &Record<'_>, outcome: &Outcome, replayed: bool) {
        let meaning = Meaning::of(outcome, replayed);
        if !self.waiting.any() && meaning != Meaning::Waits {
            return;
        }
        let key = key(&outcome.aggregate_id, &outcome.command_id);
        match meaning {
            Meaning::Waits => {
                let aggregate = self.aggregates.number(&outcome.aggregate_id);
                let command = self.answered(record).unwrap_or(-1);
                self.waiting.tell(key, Told { aggregate, outcome: record.offset(), command });
            }
            Meaning::Settled => self.waiting.settled(key),
            // What is put back may be deleted as soon as it was handled. It lies elsewhere than where it first lay.
            Meaning::OfACopy => {
                let origin = headers::text(record, names::ORIGIN).ok().and_then(headers::place);
                if let (Some(at), Some((_, partition, first))) = (self.answered(record), origin)
                    && (partition, first) != (self.partition, at)
                {
                    self.waiting.lies_at(key, at);
                }
            }
            Meaning::Nothing => {}
        }
    }

    /// Offset of the command that an outcome answers.
    fn answered(&self, record: &Record<'_>) -> Option<i64> {
        let (topic_id, _, offset) = headers::text(record, names::POSITION).ok().and_then(headers::place)?;
        (topic_id == self.topic_id).then_some(offset)
    }

    /// Takes a record of the command topic: one that had to wait lies there once more when it does no longer.
    pub(super) fn put_back(&mut self, record: &Record<'_>) -> Result<(), Error> {
        if !self.waiting.any() || !record.headers().any(|(name, _)| name == names::RELEASED) {
            return Ok(());
        }
        let id = record.key().and_then(|key| std::str::from_utf8(key).ok());
        // Without an id of its own it has the name of the place where it first lay.
        let named = |headers: CommandHeaders| headers.id.or(headers.origin);
        let command_id = CommandHeaders::read(record.headers()).ok().and_then(named);
        if let (Some(id), Some(command_id)) = (id, command_id) {
            self.waiting.lies_at(key(id, &command_id), record.offset());
        }
        Ok(())
    }

    /// Takes a record of the topic of scheduled commands.
    pub(super) fn scheduled(&mut self, record: &Record<'_>) {
        let text = record.key().and_then(|key| std::str::from_utf8(key).ok());
        if let Some((id, command_id)) = text.and_then(|text| text.split_once('/')) {
            self.waiting.scheduled(key(id, command_id), record.value().is_some());
        }
    }

    /// All is read that can tell what became of them.
    pub(super) fn waiting_end(&mut self) {
        for Told { aggregate, outcome, .. } in std::mem::take(&mut self.waiting.told).into_values() {
            let aggregate = self.aggregates.get(aggregate);
            // What waits for somebody is forgotten with them.
            if !aggregate.erased {
                let id = aggregate.id.clone();
                let detail =
                    "the command was told to wait, and does not: it was not put back, and has no other outcome";
                self.found_at(Kind::CommandLost, Topic::Outcomes, outcome, Some(&id), detail.to_owned());
            }
        }
    }
}

/// Whether a process has sent the command of this id.
fn is_of_process(command_id: &str) -> bool {
    reserved_prefixes().iter().any(|prefix| command_id.starts_with(prefix.as_str()))
}

#[cfg(test)]
mod tests {
    use millrace_shared::outcome::Verdict;

    use super::*;

    #[test]
    fn what_an_outcome_means_for_its_command() {
        let meaning = |command_id: &str, reason: Option<&str>, replayed: bool| {
            let outcome = Outcome {
                aggregate_type: "user".into(),
                aggregate_id: "u".into(),
                command_id: command_id.into(),
                outcome: if reason.is_some() { Verdict::Rejected } else { Verdict::Accepted },
                version: 0,
                events: Vec::new(),
                reason: reason.map(str::to_owned),
                detail: None,
                fingerprint: Vec::new(),
                at: 0,
            };
            Meaning::of(&outcome, replayed)
        };
        for reason in [SCHEDULED, PENDING] {
            assert_eq!(meaning("c", Some(reason), false), Meaning::Waits);
        }
        assert_eq!(meaning("email-reservation/r/ask-1", Some(PENDING), false), Meaning::Nothing);
        for (reason, replayed) in [(REUSED, false), (SCHEDULED, true)] {
            assert_eq!(meaning("c", Some(reason), replayed), Meaning::Nothing, "{reason}");
        }
        for (reason, replayed) in [(Some("unavailable"), false), (None, true), (Some("user-inactive"), true)] {
            assert_eq!(meaning("c", reason, replayed), Meaning::OfACopy, "{reason:?}");
        }
        for reason in [None, Some("user-inactive"), Some("cancelled"), Some("internal")] {
            assert_eq!(meaning("c", reason, false), Meaning::Settled, "{reason:?}");
        }
    }

    fn told(command: i64) -> Told {
        Told { aggregate: 0, outcome: 0, command }
    }

    #[test]
    fn what_waits_was_put_back_or_was_told_again_is_settled() {
        let mut waiting = Waiting::default();
        (1..=6).for_each(|key| waiting.tell(key, told(10)));
        waiting.lies_at(1, 11);
        // It was put back before it was told to wait once more.
        waiting.lies_at(2, 10);
        for (key, waits) in [(3, true), (4, true), (4, false), (7, true)] {
            waiting.scheduled(key, waits);
        }
        waiting.end();
        waiting.tell(5, told(20));
        waiting.tell(8, told(20));
        waiting.settled(6);
        let mut left: Vec<_> = waiting.told.into_keys().collect();
        left.sort_unstable();
        assert_eq!(left, [2, 4]);
    }
}
