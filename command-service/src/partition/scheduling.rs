//! Commands that name a time: they wait in the schedule, and are put into the command topic again when it has come.
//!
//! ```text
//! command with ce_notbefore ──► schedule (memory, <type>.scheduled), outcome "scheduled"
//!    due, or cancelled      ──► <type>.commands, marked as released ──► decided as any other
//! ```
//! So each has one way into the log, with a position of its own, and what waits is fenced as everything else is: it is
//! written and taken out in transactions of the partition's writer. A deadline of a process goes into the schedule with
//! the event that sets it, and comes out the same way.

use jiff::Timestamp;
use millrace_shared::{
    domain::{Aggregate, process::When},
    envelope::{names, rfc3339_micros},
    fingerprint::Fingerprint,
    kafka::topics::Topic,
    outcome::{Outcome, SCHEDULED, Verdict},
};
use serde_json::json;

use super::{
    MAX_FORWARDED_BYTES, Partition, Readable, Refused, RestoreError, Stored,
    asking::ANSWER_PATIENCE,
    publish::copy_headers,
    schedule::{Waiting, aggregate_of, command_key},
};
use crate::{
    record::{CommandRecord, Headers, OutRecord, Sink},
    types::CommandType,
};

/// Commands that are released in one transaction, at most.
const MOST_AT_ONCE: usize = 512;
/// The same in bytes, about.
const MOST_BYTES_AT_ONCE: usize = 1 << 20;

impl<A: Aggregate> Partition<A> {
    /// Has a command wait, and says so.
    pub(super) fn put_off(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        due: Timestamp,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        if let Some(refused) = self.must_not_wait(command, now)? {
            return self.refuse(record, command, refused, now, sink);
        }
        let key = command_key(command.aggregate_id.as_str(), &command.command_id);
        let (due, is_new) = match self.schedule.get(&key) {
            Some(known) if is_another(&known.record, command) => {
                return self.refuse_reused(record, command, now, sink);
            }
            // The first time that was named counts.
            Some(known) => (due_of(&known.record).unwrap_or(due), false),
            // It was let in before.
            None if command.headers.released => (due, true),
            None if record.size() > MAX_FORWARDED_BYTES => return Err("it is too large to be scheduled".into()),
            None if !self.schedule.has(&self.settings.room) => {
                let cause = "as many commands are scheduled as may be; see MILLRACE_SCHEDULED_BYTES";
                return self.refuse(record, command, Refused::new("unavailable", json!({"cause": cause})), now, sink);
            }
            None => (due, true),
        };
        let refused = Refused::new(SCHEDULED, json!({"not_before": rfc3339_micros(due)}));
        self.refuse(record, command, refused, now, sink)?;
        self.counts.scheduled += 1;
        if is_new {
            self.wait(&key, self.waiting(record, command, &[]), due, now, sink);
        }
        Ok(())
    }

    /// What waits under a command's id.
    pub(super) fn that_waits(&self, command: &Readable<A::Command>) -> Option<&Waiting> {
        // Mostly nothing does, and no key need be made.
        if self.schedule.len() == 0 {
            return None;
        }
        self.schedule.get(&command_key(command.aggregate_id.as_str(), &command.command_id))
    }

    /// A command that was cancelled is refused; also when it was scheduled once more meanwhile.
    pub(super) fn refuse_cancelled(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        self.refuse(record, command, Refused::new("cancelled", json!({})), now, sink)?;
        self.drop_waiting(&command_key(command.aggregate_id.as_str(), &command.command_id), now, sink);
        Ok(())
    }

    pub(super) fn drop_waiting(&mut self, key: &str, now: Timestamp, sink: &mut dyn Sink) {
        if self.schedule.take(key).is_some() {
            self.send_scheduled(key, None, now, sink);
        }
    }

    /// Takes a command out of the schedule, which is then refused as cancelled.
    pub(super) fn cancel(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        cancelled: &str,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        let id = command.aggregate_id.as_str();
        let key = command_key(id, cancelled);
        // The deadlines of a process are its own; what waits for an answer is being decided.
        let is_deadline = cancelled.starts_with(&format!("{}/{id}/", A::TYPE));
        let may_be = !is_deadline && self.schedule.asking(&key).is_none();
        let Some(waiting) = may_be.then(|| self.schedule.take(&key)).flatten() else {
            return self.refuse(
                record,
                command,
                Refused::new("not-scheduled", json!({"scheduled": cancelled})),
                now,
                sink,
            );
        };
        let version = self.aggregates.get(command.aggregate_id.as_str()).map_or(0, |entry| entry.version);
        let outcome = Outcome { outcome: Verdict::Accepted, version: version as i64, ..self.outcome(command, now) };
        let encoded = self.encode_outcome(&outcome)?;
        self.counts.cancelled += 1;
        self.publish(record, command, &outcome, &encoded, sink);
        self.send_released(&waiting, true, now, sink);
        self.send_scheduled(&key, None, now, sink);
        Ok(())
    }

    /// Sets or drops a deadline of a process of this type.
    pub(super) fn set_deadline(&mut self, deadline: &Deadline, now: Timestamp, sink: &mut dyn Sink) {
        let Some(due) = deadline.due else {
            self.drop_waiting(&deadline.key, now, sink);
            return;
        };
        let time = rfc3339_micros(due);
        let headers = [
            (names::ID, Some(deadline.command_id.as_str())),
            (names::CAUSATION_ID, Some(deadline.cause.as_str())),
            (names::NOT_BEFORE, Some(time.as_str())),
        ];
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), value.map(str::as_bytes)));
        let aggregate_id = aggregate_of(&deadline.key).as_bytes();
        let waiting = CommandRecord::new(0, None, Some(aggregate_id), Some(&deadline.value), headers);
        self.counts.deadlines += 1;
        self.wait(&deadline.key, waiting, due, now, sink);
    }

    /// Has nothing of an aggregate wait any more. Somebody may wait for what is being decided: it is judged as things are now.
    pub(super) fn drop_all_waiting(&mut self, id: &str, now: Timestamp, sink: &mut dyn Sink) {
        for key in self.schedule.of(id) {
            if self.schedule.asking(&key).is_some() {
                self.release_copy(&key, now, sink);
            }
            self.drop_waiting(&key, now, sink);
        }
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.schedule.first_due_ms().and_then(|millis| Timestamp::from_millisecond(millis).ok())
    }

    /// Puts what is due into the command topic.
    pub(super) fn release_due(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        let mut bytes = 0;
        for key in self.schedule.due(now.as_millisecond(), MOST_AT_ONCE) {
            if bytes > MOST_BYTES_AT_ONCE {
                return;
            }
            if self.schedule.asking(&key).is_some() {
                bytes += self.ask_again(&key, now, sink);
                continue;
            }
            let Some(waiting) = self.schedule.take(&key) else { continue };
            bytes += waiting.size();
            if let Some(due) = due_of(&waiting) {
                self.counts.released.push(now.duration_since(due).as_secs_f64());
            }
            self.send_released(&waiting, false, now, sink);
            self.send_scheduled(&key, None, now, sink);
        }
    }

    /// A record of the topic of scheduled commands; a later one of the same key counts instead of it.
    pub(super) fn read_scheduled_back(&mut self, record: &Stored<'_>) -> Result<(), RestoreError> {
        let key = record.key.and_then(|key| std::str::from_utf8(key).ok());
        // It stays in its topic, and is released when a later release, or the right key, can read it.
        let unreadable = |why: &str| {
            let topic = self.context.topic(Topic::Scheduled);
            tracing::error!(
                topic,
                offset = record.offset,
                key,
                why,
                "what was scheduled can't be read, and is not released"
            );
        };
        let Some(key) = key else {
            unreadable("it has no key");
            return Ok(());
        };
        let value = match record.value.map(|value| self.open_waiting(aggregate_of(key), value)).transpose() {
            Ok(value) => value,
            Err(why) => {
                unreadable(&why);
                return Ok(());
            }
        };
        let waiting = value.flatten().map(|value| {
            let headers = record.headers.iter().filter(|(name, _)| *name != names::SEALED);
            let headers = headers.map(|(name, value)| (name.as_bytes(), *value));
            CommandRecord::new(0, None, Some(aggregate_of(key).as_bytes()), Some(&value), headers)
        });
        let due = waiting.as_ref().map(|waiting| due_of(waiting).ok_or("it names no time"));
        match due.transpose() {
            Ok(due) => {
                self.schedule.read_back(key, due.map(in_ms).zip(waiting));
            }
            Err(why) => unreadable(why),
        }
        Ok(())
    }

    /// A command as it waits: it keeps its id, and where it first lay.
    pub(super) fn waiting(
        &self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        more: &[(&str, &str)],
    ) -> CommandRecord {
        let mut headers = Headers::default();
        let without = [
            names::ID,
            names::SEALED,
            names::ORIGIN,
            names::FORWARDED,
            names::RELEASED,
            names::CANCELLED,
            names::FINGERPRINT,
            names::CLAIM,
            names::ASKED,
            names::ANSWER,
        ];
        copy_headers(record, &without, &mut headers);
        let origin = command.origin.clone().unwrap_or_else(|| self.own_origin(record));
        // An origin may be longer than ids can be.
        if command.command_id != origin {
            headers.push(names::ID.as_bytes(), Some(command.command_id.as_bytes()));
        }
        headers.push(names::FINGERPRINT.as_bytes(), Some(hex(&command.fingerprint).as_bytes()));
        headers.push(names::ORIGIN.as_bytes(), Some(origin.as_bytes()));
        for (name, value) in more {
            headers.push(name.as_bytes(), Some(value.as_bytes()));
        }
        CommandRecord::new(0, None, record.key(), record.value(), headers.iter())
    }

    pub(super) fn wait(
        &mut self,
        key: &str,
        waiting: CommandRecord,
        due: Timestamp,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) {
        self.send_scheduled(key, Some(&waiting), now, sink);
        self.schedule.put(key, in_ms(due), waiting);
    }

    fn send_scheduled(&mut self, key: &str, waiting: Option<&CommandRecord>, now: Timestamp, sink: &mut dyn Sink) {
        let sealed = waiting.and_then(|waiting| self.seal_waiting(aggregate_of(key), waiting, now, sink));
        self.headers.clear();
        if let Some(waiting) = waiting {
            copy_headers(waiting, &[], &mut self.headers);
        }
        if let Some((name, _)) = &sealed {
            self.headers.push(names::SEALED.as_bytes(), Some(name.as_bytes()));
        }
        sink.send(OutRecord {
            topic: Topic::Scheduled,
            partition: self.settings.slot.partition,
            key: Some(key.as_bytes()),
            value: sealed.as_ref().map(|(_, sealed)| &**sealed).or_else(|| waiting.and_then(CommandRecord::value)),
            headers: &self.headers,
            timestamp_ms: now.as_millisecond(),
        });
    }

    pub(super) fn send_released(
        &mut self,
        waiting: &CommandRecord,
        cancelled: bool,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) {
        self.headers.clear();
        copy_headers(waiting, &[], &mut self.headers);
        // A deadline has not lain anywhere else before.
        if waiting.headers().any(|(name, _)| name == names::ORIGIN) {
            self.headers.push(names::FORWARDED.as_bytes(), Some(b"1"));
        }
        self.headers.push(names::RELEASED.as_bytes(), Some(b"1"));
        if cancelled {
            self.headers.push(names::CANCELLED.as_bytes(), Some(b"1"));
        }
        sink.send(OutRecord {
            topic: Topic::Commands,
            partition: self.settings.slot.partition,
            key: waiting.key(),
            value: waiting.value(),
            headers: &self.headers,
            timestamp_ms: now.as_millisecond(),
        });
    }
}

/// Whether a command is another one than the one that waits under its id.
pub(super) fn is_another<C>(waiting: &CommandRecord, command: &Readable<C>) -> bool {
    let known = waiting.headers().find(|(name, _)| *name == names::FINGERPRINT).and_then(|(_, value)| value);
    known != Some(hex(&command.fingerprint).as_bytes())
}

fn hex(fingerprint: &Fingerprint) -> String {
    fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A deadline that an event sets, or drops.
pub(super) struct Deadline {
    key: String,
    command_id: String,
    cause: String,
    due: Option<Timestamp>,
    value: Vec<u8>,
}

impl Deadline {
    /// Of a step of a process. Each time that it is set it is another command, so that none is taken for a repeat.
    pub(super) fn new(
        (aggregate_type, id, step): (&str, &str, &str),
        (sequence, at): (u64, Timestamp),
        when: When,
        value: Vec<u8>,
    ) -> Result<Self, String> {
        let due = match when {
            When::Now => Some(at),
            When::At(due) => Some(due),
            When::After(time) => Some(at.checked_add(time).map_err(|error| error.to_string())?),
            When::Never => None,
        };
        Ok(Self {
            key: command_key(id, &format!("{aggregate_type}/{id}/{step}")),
            command_id: format!("{aggregate_type}/{id}/{step}-{sequence}"),
            cause: format!("{aggregate_type}/{id}/{sequence}"),
            due,
            value,
        })
    }
}

/// Never early: a part of a millisecond counts as a whole one.
pub(super) fn in_ms(due: Timestamp) -> i64 {
    let micros = due.as_microsecond();
    micros.div_euclid(1000) + i64::from(micros.rem_euclid(1000) > 0)
}

fn due_of(waiting: &CommandRecord) -> Option<Timestamp> {
    if let Some((_, asked)) = waiting.headers().find(|(name, _)| *name == names::ASKED) {
        let asked: Timestamp = std::str::from_utf8(asked?).ok()?.parse().ok()?;
        return asked.checked_add(ANSWER_PATIENCE).ok();
    }
    let (_, time) = waiting.headers().filter(|(name, _)| *name == names::NOT_BEFORE).last()?;
    std::str::from_utf8(time?).ok()?.parse().ok()
}
