//! Commands that ask another aggregate before they can be accepted: a user who wants an e-mail address asks its reservation.
//!
//! ```text
//! command that the rules accept ──► schedule, under a claim; outcome "pending"; errand to the other aggregate
//!    its answer                 ──► noted in the schedule; a copy ──► <type>.commands, marked as released
//!    the copy                   ──► judged anew, with the answer; then it waits no longer
//! ```
//! It stays in the schedule until it is decided, so whoever asks whether a claim is still alive is told the truth. Only what lies
//! there counts as answered, never what a record says of itself. Without an answer it asks again, under the same command
//! id; refused for another reason than the answer, it takes back what it had asked for.

use std::time::Duration;

use jiff::Timestamp;
use millrace_shared::{
    codec::Foreign,
    domain::{
        Aggregate,
        process::{About, Errand},
    },
    envelope::{CommandHeaders, names, rfc3339_micros},
    outcome::{Outcome, PENDING, Verdict},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    Decision, MAX_FORWARDED_BYTES, PASSING_REASONS, Partition, Readable, Refused, caught,
    process::Consequence,
    publish::copy_headers,
    schedule::{aggregate_of, command_key},
    scheduling::in_ms,
};
use crate::record::{CommandRecord, Headers, Sink};

/// One that has no answer for so long asks again.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// As it lies in the schedule; everything else is the reason for which the command is refused.
const GRANTED: &str = "granted";

/// A command that has asked, and is decided now.
pub(super) struct Asked {
    key: String,
    /// Takes back what it had asked for.
    undo: Option<Consequence>,
}

/// A command as it was judged.
type Judged<A> = Result<Decision<A>, Refused>;
/// The same, where the answer is known, and what is over with it.
type Answered<A> = (Judged<A>, Option<Asked>);

impl<A: Aggregate> Partition<A> {
    /// Whether a command waits for the answer to its question.
    pub(super) fn is_asking(&self, command: &Readable<A::Command>) -> bool {
        let key = || command_key(command.aggregate_id.as_str(), &command.command_id);
        A::ASKS && self.schedule.len() > 0 && self.schedule.asking(&key()).is_some()
    }

    /// What becomes of a command as it was judged: as it is, or refused by the answer; `None` while there is none.
    pub(super) fn after_asking(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        order: &A::Command,
        judged: Judged<A>,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<Option<Answered<A>>, String> {
        let id = command.aggregate_id.as_str();
        let key = command_key(id, &command.command_id);
        let asking = self.schedule.asking(&key).cloned();
        let answer = asking.as_ref().map(|asking| asking.answer.as_deref());
        let must_ask = || {
            let unknown = A::State::default();
            let state = self.aggregates.get(id).map_or(&unknown, |entry| &entry.state);
            A::must_ask(state, order)
        };
        let judged = match judged {
            Err(refused) if PASSING_REASONS.contains(&refused.reason.as_str()) => {
                return Ok(Some((Err(refused), None)));
            }
            Ok(decision) if caught(|| Ok(must_ask()))? => match answer {
                Some(Some(GRANTED)) => Ok(decision),
                Some(Some(reason)) => Err(Refused::new(reason, json!({}))),
                // Somebody is impatient.
                Some(None) => {
                    self.refuse(record, command, Refused::new(PENDING, json!({})), now, sink)?;
                    return Ok(None);
                }
                // It was decided, and that is forgotten. What it asked for may be somebody else's: a new asking begins with a new
                // command.
                None if command.headers.has_asked => Err(Refused::new("unavailable", json!({}))),
                None => {
                    self.ask(record, command, order, now, sink)?;
                    return Ok(None);
                }
            },
            judged => judged,
        };
        let Some(asking) = asking else { return Ok(Some((judged, None))) };
        let was_denied = asking.answer.as_deref().is_some_and(|answer| answer != GRANTED);
        let undo = match judged.is_err() && !was_denied {
            true => self.question(id, order, &asking.claim)?.map(|(_, undo)| undo),
            false => None,
        };
        Ok(Some((judged, Some(Asked { key, undo }))))
    }

    /// A command that has asked is decided.
    pub(super) fn waits_no_longer(
        &mut self,
        command: &Readable<A::Command>,
        asked: Asked,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) {
        self.drop_waiting(&asked.key, now, sink);
        if let Some(undo) = asked.undo {
            self.send_consequence(&undo, &command.headers, now.as_millisecond(), sink);
        }
    }

    /// Has a command ask, and wait.
    fn ask(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        order: &A::Command,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        if record.size() > MAX_FORWARDED_BYTES {
            return Err("it is too large to wait".into());
        }
        // One with a time was let in before.
        if !command.headers.released && !self.schedule.has_for_answers(&self.settings.room) {
            let cause = "as many commands wait as may; see MILLRACE_SCHEDULED_BYTES";
            return self.refuse(record, command, Refused::new("unavailable", json!({"cause": cause})), now, sink);
        }
        let (id, claim) = (command.aggregate_id.as_str(), self.claim(record, command));
        let (ask, _) = self.question(id, order, &claim)?.ok_or("it asks nothing")?;
        self.refuse(record, command, Refused::new(PENDING, json!({})), now, sink)?;
        self.counts.pending += 1;
        let asked = rfc3339_micros(now);
        let waiting = self.waiting(record, command, &[(names::CLAIM, &claim), (names::ASKED, &asked)]);
        self.wait(&command_key(id, &command.command_id), waiting, now + ANSWER_PATIENCE, now, sink);
        self.send_consequence(&ask, &command.headers, now.as_millisecond(), sink);
        Ok(())
    }

    /// What tells this asking from all others: its command, and where that first lay.
    fn claim(&self, record: &CommandRecord, command: &Readable<A::Command>) -> String {
        let origin = command.origin.clone().unwrap_or_else(|| self.own_origin(record));
        let mut hash = Sha256::new();
        for part in [&self.settings.topic_id, &origin, &command.command_id] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What a command asks, and what takes that back.
    fn question(
        &self,
        id: &str,
        order: &A::Command,
        claim: &str,
    ) -> Result<Option<(Consequence, Consequence)>, String> {
        let sequence = self.aggregates.get(id).map_or(0, |entry| entry.version);
        let errand = |errand: Errand| self.errand(id, sequence, errand);
        let question = caught(|| Ok(A::question(id, order, claim)))?;
        question.map(|question| Ok((errand(question.ask)?, errand(question.undo)?))).transpose()
    }

    /// Answers what is about a command that waits; false when it is a command as any other.
    pub(super) fn is_about_what_waits(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        order: &A::Command,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<bool, String> {
        let (claim, answer) = match caught(|| Ok(A::about(order)))? {
            None => return Ok(false),
            Some(About::Granted(claim)) => (claim, Some(GRANTED)),
            Some(About::Denied(claim, reason)) => (claim, Some(reason)),
            Some(About::Awaited(claim)) => (claim, None),
        };
        let key = self.schedule.that_asks(claim).filter(|key| aggregate_of(key) == command.aggregate_id.as_str());
        let Some(key) = key.map(str::to_owned) else { return Ok(false) };
        let Some(answer) = answer else {
            self.refuse(record, command, Refused::new(PENDING, json!({})), now, sink)?;
            return Ok(true);
        };
        let version = self.aggregates.get(command.aggregate_id.as_str()).map_or(0, |entry| entry.version);
        let outcome = Outcome { outcome: Verdict::Accepted, version: version as i64, ..self.outcome(command, now) };
        let encoded = self.encode_outcome(&outcome)?;
        self.counts.accepted += 1;
        self.publish(record, command, &outcome, &encoded, sink);
        self.note_answer(&key, answer, now, sink);
        self.release_copy(&key, now, sink);
        Ok(true)
    }

    fn note_answer(&mut self, key: &str, answer: &str, now: Timestamp, sink: &mut dyn Sink) {
        let Some(waiting) = self.schedule.get(key).map(|waiting| &waiting.record) else { return };
        let mut headers = Headers::default();
        copy_headers(waiting, &[names::ANSWER], &mut headers);
        headers.push(names::ANSWER.as_bytes(), Some(answer.as_bytes()));
        let answered = CommandRecord::new(0, None, waiting.key(), waiting.value(), headers.iter());
        self.wait(key, answered, now + ANSWER_PATIENCE, now, sink);
    }

    /// Puts a copy of a command that waits into the command topic, to be decided.
    pub(super) fn release_copy(&mut self, key: &str, now: Timestamp, sink: &mut dyn Sink) {
        if let Some(waiting) = self.schedule.get(key).map(|waiting| waiting.record.clone()) {
            self.send_released(&waiting, false, now, sink);
        }
    }

    /// One that has waited for long asks again, or is put into the command topic again when it is answered. Returns its size.
    pub(super) fn ask_again(&mut self, key: &str, now: Timestamp, sink: &mut dyn Sink) -> usize {
        let Some(waiting) = self.schedule.get(key) else { return 0 };
        let (record, asking) = (waiting.record.clone(), waiting.asking.clone());
        let size = record.size();
        match asking {
            Some(asking) if asking.answer.is_none() => {
                if let Err(cause) = self.send_question(key, &record, &asking.claim, now, sink) {
                    tracing::error!(aggregate = aggregate_of(key), cause, "a command that waits can't ask again");
                }
            }
            _ => self.send_released(&record, false, now, sink),
        }
        self.schedule.put(key, in_ms(now + ANSWER_PATIENCE), record);
        size
    }

    fn send_question(
        &mut self,
        key: &str,
        waiting: &CommandRecord,
        claim: &str,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        let value = waiting.value().unwrap_or_default();
        let unreadable = |_| "it can't be read".to_owned();
        let mut order =
            self.context.commands.decode(value, Foreign::Resolve, &self.settings.runtime).map_err(unreadable)?;
        self.context.prepare(&mut order);
        let headers = CommandHeaders::read(waiting.headers())?;
        let (ask, _) = self.question(aggregate_of(key), &order, claim)?.ok_or("it asks nothing")?;
        self.send_consequence(&ask, &headers, now.as_millisecond(), sink);
        Ok(())
    }
}
