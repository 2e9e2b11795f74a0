//! Outcomes: one original for each aggregate and command id, repeats equal to it, versions that follow on each other.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    time::Duration,
};

use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::names,
    kafka::{bulk::Record, topics::Topic},
    outcome::{Outcome, OutcomeRecord, PENDING, SCHEDULED, Verdict},
};
use sha2::{Digest, Sha256};

use super::{Error, Kind, Unjudged, commands::Answer, headers, partition::PartitionCheck};

/// Reasons that never become the stored answer of a command id, as the contract has them.
const PASSING_REASONS: [&str; 5] = [REUSED, INTERNAL, "unavailable", SCHEDULED, PENDING];
pub(super) const REUSED: &str = "idempotency-key-reused";
const INTERNAL: &str = "internal";
const NONE: u32 = u32::MAX;

/// The originals, about 130 bytes for each.
#[derive(Default)]
pub(super) struct Outcomes {
    all: Vec<Original>,
    /// Last original of each aggregate and command id.
    by_command: HashMap<u128, u32>,
    /// Fingerprints of commands that had to wait.
    told_to_wait: HashMap<u128, u64>,
    /// Whether older ones were deleted.
    trimmed: bool,
    /// Position of the last one, if it was of the present command topic.
    last_position: Option<i64>,
}

/// What has to be known of an original outcome.
pub(super) struct Original {
    pub(super) aggregate: u32,
    /// The one before it of the same aggregate and command id, from before the window.
    previous: u32,
    pub(super) offset: i64,
    at: i64,
    /// Sequence of its first event.
    first: i64,
    pub(super) count: u32,
    /// Events that were seen in the log.
    pub(super) seen: u32,
    /// Of its events.
    expected: u64,
    /// Of the events that were seen.
    pub(super) found: u64,
    fingerprint: u64,
    value: u64,
}

impl Original {
    /// Whether it names the sequence.
    fn has(&self, sequence: u64) -> bool {
        (self.first..self.first + i64::from(self.count)).contains(&(sequence as i64))
    }

    /// An event of it is in the log.
    pub(super) fn see(&mut self, sequence: u64, record: &str) {
        self.seen += 1;
        self.found = self.found.wrapping_add(event_hash(sequence, record));
    }

    /// Whether its events are all in the log, and are those that it names.
    pub(super) fn agrees(&self) -> bool {
        self.seen == self.count && self.found == self.expected
    }
}

impl Outcomes {
    /// The topic begins there.
    pub(super) fn begin(&mut self, first: i64) {
        self.trimmed = first > 0;
    }

    /// Whether older ones were deleted.
    pub(super) fn trimmed(&self) -> bool {
        self.trimmed
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Original] {
        &self.all
    }

    fn last(&self, key: u128) -> Option<&Original> {
        self.by_command.get(&key).map(|at| &self.all[*at as usize])
    }

    /// The original of a command id: the one that names the sequence, where there are several.
    pub(super) fn find(&mut self, aggregate_id: &str, command_id: &str, sequence: u64) -> Option<&mut Original> {
        let last = *self.by_command.get(&key(aggregate_id, command_id))?;
        let mut at = last;
        while at != NONE && !self.all[at as usize].has(sequence) {
            at = self.all[at as usize].previous;
        }
        self.all.get_mut(if at == NONE { last } else { at } as usize)
    }
}

/// Ids are not kept: 128 bits of SHA-256 stand for both.
pub(super) fn key(aggregate_id: &str, command_id: &str) -> u128 {
    let digest = Sha256::new().chain_update(aggregate_id).chain_update(b" ").chain_update(command_id).finalize();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(short)
}

pub(super) fn hash(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

fn event_hash(sequence: u64, record: &str) -> u64 {
    hash((sequence, record))
}

/// Contradictions within an outcome.
fn malformed(outcome: &Outcome, aggregate_type: &str) -> Option<String> {
    let sequences_follow = || {
        let first = outcome.version - outcome.events.len() as i64 + 1;
        outcome.events.iter().zip(first..).all(|(event, sequence)| event.sequence == sequence && sequence > 0)
    };
    if outcome.aggregate_type != aggregate_type {
        return Some(format!("it is of type {:?}", outcome.aggregate_type));
    }
    match outcome.outcome {
        _ if outcome.fingerprint.len() != 16 => Some("its fingerprint is not one".into()),
        _ if outcome.version < 0 => Some(format!("its version is {}", outcome.version)),
        Verdict::Accepted if outcome.reason.is_some() => Some("it is accepted with a reason".into()),
        Verdict::Accepted if !sequences_follow() => {
            Some("the sequences of its events do not lead to its version".into())
        }
        Verdict::Rejected if outcome.reason.is_none() => Some("it is rejected without a reason".into()),
        Verdict::Rejected if !outcome.events.is_empty() => Some("it is rejected and names events".into()),
        Verdict::Accepted | Verdict::Rejected => None,
    }
}

impl<A: Aggregate> PartitionCheck<'_, A> {
    /// Takes a record of the outcome topic.
    pub(super) fn outcome(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let value = record.value().unwrap_or_default();
        let outcome = match self.kind.outcomes.decode(value, Foreign::Resolve, &self.check.runtime) {
            Ok(OutcomeRecord::Outcome(outcome)) => outcome,
            Err(DecodeError::Unavailable(reason)) => return Err(Error::Schema(reason)),
            Err(error) => {
                self.found(Kind::Unreadable, record, None, error.to_string());
                return Ok(());
            }
        };
        let id = outcome.aggregate_id.as_str();
        if AggregateId::new(id).is_err() {
            self.found(Kind::OutcomeMalformed, record, None, format!("{id:?} is no aggregate id"));
            return Ok(());
        }
        let replayed = record.headers().any(|(name, _)| name == names::REPLAYED);
        match replayed {
            true => self.report.counts.repeats += 1,
            false => self.report.counts.outcomes += 1,
        }
        if !self.lives_here(record, id) {
            return Ok(());
        }
        if record.key() != Some(outcome.command_id.as_bytes()) {
            self.found(Kind::Headers, record, Some(id), "its key is not its command id");
        }
        if !self.position(record, &outcome, replayed) {
            return Ok(());
        }
        if let Some(detail) = malformed(&outcome, A::TYPE) {
            self.found(Kind::OutcomeMalformed, record, Some(id), detail);
            return Ok(());
        }
        self.accounts_for_waiting(record, &outcome, replayed);
        match replayed {
            true => self.repeat(record, &outcome, value),
            false => self.original(record, &outcome, value),
        }
        Ok(())
    }

    /// Notes which command was answered; false when that is wrong already.
    fn position(&mut self, record: &Record<'_>, outcome: &Outcome, replayed: bool) -> bool {
        let id = outcome.aggregate_id.as_str();
        let origin = headers::text(record, names::ORIGIN);
        let position = headers::text(record, names::POSITION);
        let (origin, position) = match (origin, position) {
            (Ok(origin), Ok(position)) => (origin, position),
            (Err(reason), _) | (_, Err(reason)) => {
                self.found(Kind::Headers, record, Some(id), reason);
                return true;
            }
        };
        let commands = self.kind.topic(Topic::Commands);
        if headers::place(origin).is_none_or(|(topic, ..)| topic != commands) {
            let detail = format!("header {} is {origin:?}, which is no place in {commands}", names::ORIGIN);
            self.found(Kind::Headers, record, Some(id), detail);
            return true;
        }
        let Some((topic_id, _, offset)) =
            headers::place(position).filter(|(_, partition, _)| *partition == self.partition)
        else {
            let detail = format!("header {} is {position:?}, which is no place in this partition", names::POSITION);
            self.found(Kind::Headers, record, Some(id), detail);
            return true;
        };
        if topic_id != self.topic_id {
            // Of a command topic that was there before this one.
            self.commands.first_answered(0);
            return true;
        }
        self.commands.first_answered(offset);
        if self.commands.is_beyond(offset) {
            let detail = format!("it answers the command at {position}, but there is none");
            self.found(Kind::OutcomeDiffers, record, Some(id), detail);
            return false;
        }
        let last = self.outcomes.last_position;
        self.outcomes.last_position = last.max(Some(offset));
        let answer = Answer::new(id, &outcome.command_id, &outcome.fingerprint, origin);
        let internal = outcome.reason.as_deref() == Some(INTERNAL);
        if !self.commands.answer(offset, answer, internal, replayed) || last == Some(offset) {
            let detail = format!("the command at {position} has an outcome already");
            self.found(Kind::HandledTwice, record, Some(id), detail);
            return false;
        }
        if let Some(last) = last.filter(|last| offset < *last) {
            let detail = format!("it answers the command at offset {offset}, after that at {last} was answered");
            self.found(Kind::OutOfOrder, record, Some(id), detail);
        }
        true
    }

    /// An original, or a refusal that is never stored.
    fn original(&mut self, record: &Record<'_>, outcome: &Outcome, value: &[u8]) {
        let id = outcome.aggregate_id.as_str();
        let (version, events) = (outcome.version as u64, outcome.events.len() as u64);
        let (key, fingerprint) = (key(id, &outcome.command_id), hash(&outcome.fingerprint));
        let reason = outcome.reason.as_deref();
        if reason.is_some_and(|reason| PASSING_REASONS.contains(&reason)) {
            match reason {
                Some(REUSED) => self.reused(record, outcome, key, fingerprint),
                Some(SCHEDULED | PENDING) => drop(self.outcomes.told_to_wait.insert(key, fingerprint)),
                _ => {}
            }
            let number = self.aggregates.number(id);
            return self.version(record, outcome, number);
        }
        if outcome.outcome == Verdict::Accepted {
            self.report.counts.accepted += 1;
        }
        let number = self.aggregates.number(id);
        let previous = self.outcomes.by_command.get(&key).copied().unwrap_or(NONE);
        let first = self.outcomes.last(key).map(|first| (first.offset, outcome.at.abs_diff(first.at)));
        match first.map(|(offset, apart)| (offset, Duration::from_micros(apart))) {
            Some((offset, apart)) if apart <= self.check.window => {
                let (command_id, apart) = (&outcome.command_id, apart.as_secs_f64());
                let detail = format!("{command_id:?} has an original outcome at offset {offset}, {apart:.1} s apart");
                // The first one stays what events and repeats are compared with.
                return self.found(Kind::TwoOutcomes, record, Some(id), detail);
            }
            _ => self.version(record, outcome, number),
        }
        let expected = outcome.events.iter().map(|event| event_hash(event.sequence as u64, &event.r#type));
        self.outcomes.by_command.insert(key, self.outcomes.all.len() as u32);
        self.outcomes.all.push(Original {
            aggregate: number,
            previous,
            offset: record.offset(),
            at: outcome.at,
            first: (version - events) as i64 + 1,
            count: events as u32,
            seen: 0,
            expected: expected.fold(0, u64::wrapping_add),
            found: 0,
            fingerprint,
            value: hash(value),
        });
    }

    /// Versions follow on each other.
    fn version(&mut self, record: &Record<'_>, outcome: &Outcome, number: u32) {
        let (version, events) = (outcome.version as u64, outcome.events.len() as u64);
        let known = self.aggregates.get(number).judged_at.replace(version);
        let before = known.or((!self.outcomes.trimmed).then_some(0));
        if let Some(before) = before.filter(|before| before + events != version) {
            let detail = format!("it says version {version} with {events} events, after version {before}");
            self.found(Kind::OutcomeVersion, record, Some(&outcome.aggregate_id), detail);
        }
    }

    fn repeat(&mut self, record: &Record<'_>, outcome: &Outcome, value: &[u8]) {
        let known = self.outcomes.last(key(&outcome.aggregate_id, &outcome.command_id));
        let detail = match known {
            Some(original) if original.value == hash(value) => return,
            // The original that it repeats may be one before the last.
            Some(original) => format!("it is not equal to the original outcome at offset {}", original.offset),
            None if self.outcomes.trimmed => return self.cannot_judge(Unjudged::RepeatsWithoutKeptOriginal, 1),
            None => format!("command id {:?} has no original outcome before it", outcome.command_id),
        };
        self.found(Kind::RepeatDiffers, record, Some(&outcome.aggregate_id), detail);
    }

    fn reused(&mut self, record: &Record<'_>, outcome: &Outcome, key: u128, fingerprint: u64) {
        if self.outcomes.told_to_wait.get(&key).is_some_and(|of| *of != fingerprint) {
            return;
        }
        let detail = match self.outcomes.last(key) {
            Some(original) if original.fingerprint != fingerprint => return,
            Some(original) => format!("it is refused as reused, but is the command of offset {}", original.offset),
            None if self.outcomes.trimmed => return self.cannot_judge(Unjudged::RepeatsWithoutKeptOriginal, 1),
            None => format!("command id {:?} is refused as reused, but was not used before", outcome.command_id),
        };
        self.found(Kind::RepeatDiffers, record, Some(&outcome.aggregate_id), detail);
    }
}
