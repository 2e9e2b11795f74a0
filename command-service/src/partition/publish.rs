//! What a partition sends: events, outcomes, dead letters, and commands that belong elsewhere.

use std::{mem, sync::Arc};

use jiff::Timestamp;
use millrace_shared::{
    codec::Foreign,
    domain::{Aggregate, AggregateId},
    envelope::{CommandHeaders, EventHeaders, names, parse_version},
    fingerprint::Fingerprint,
    kafka::topics::Topic,
    outcome::{EventRef, Outcome, OutcomeRecord, Verdict},
    records::Records,
};
use serde_json::Value;

use super::{Decision, Partition, Readable, Refused, is_remembered, local::note, memory::Remembered};
use crate::{
    record::{CommandRecord, Headers, OutRecord, Sink},
    types::CommandType,
    waiters::{Answer, Awaited},
};

/// The topic of dead letters takes records of twice a command's size.
const MAX_DEAD_LETTER_BYTES: usize = 3 << 19;
const MAX_REASON_CHARACTERS: usize = 1000;

/// What became of the commands of a batch: counted when it is in the log, however often it ran.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    rejected: u64,
    replayed: u64,
    forwarded: u64,
    dead_letters: u64,
    /// Had to wait.
    pub(super) scheduled: u64,
    /// Had to ask first.
    pub(super) pending: u64,
    /// Orders to cancel that were done.
    pub(super) cancelled: u64,
    /// Deadlines that were set.
    pub(super) deadlines: u64,
    /// Commands and deadlines whose time had come: by how many seconds it had passed.
    pub(super) released: Vec<f64>,
    /// Commands that followed.
    pub(super) consequences: u64,
}

impl Counts {
    pub(super) fn publish(self, aggregate_type: &'static str) {
        for (outcome, count) in [
            ("accepted", self.accepted),
            ("rejected", self.rejected),
            ("replayed", self.replayed),
            ("forwarded", self.forwarded),
            ("dead-letter", self.dead_letters),
            ("scheduled", self.scheduled),
            ("pending", self.pending),
            ("cancelled", self.cancelled),
        ] {
            if count > 0 {
                metrics::counter!("millrace_commands_total", "type" => aggregate_type, "outcome" => outcome)
                    .increment(count);
            }
        }
        if self.deadlines > 0 {
            metrics::counter!("millrace_deadlines_total", "type" => aggregate_type).increment(self.deadlines);
        }
        for seconds in self.released {
            metrics::histogram!("millrace_released_late_seconds", "type" => aggregate_type).record(seconds);
        }
        if self.consequences > 0 {
            metrics::counter!("millrace_consequences_total", "type" => aggregate_type).increment(self.consequences);
        }
    }
}

impl<A: Aggregate> Partition<A> {
    /// `topic/partition/offset` of where a forwarded record first lay. Anybody may write that header, so only what we
    /// could have written is believed.
    pub(super) fn given_origin<'a>(&self, headers: &'a CommandHeaders) -> Option<&'a str> {
        let topic = self.context.topic(Topic::Commands);
        let is_ours = |origin: &str| {
            let (partition, offset) = origin.strip_prefix(topic)?.strip_prefix('/')?.split_once('/')?;
            Some(parse_version(partition).is_some() && parse_version(offset).is_some())
        };
        headers.origin.as_deref().filter(|origin| headers.forwarded && is_ours(origin) == Some(true))
    }

    /// `topic/partition/offset` of where the record lies.
    pub(super) fn own_origin(&self, record: &CommandRecord) -> String {
        format!("{}{}", self.origin, record.offset)
    }

    pub(super) fn dead_letter(
        &mut self,
        record: &CommandRecord,
        reason: &str,
        whole: bool,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) {
        let given = CommandHeaders::read(record.headers()).unwrap_or_default();
        let origin = self.given_origin(&given).map_or_else(|| self.own_origin(record), str::to_owned);
        tracing::warn!(
            topic = self.context.topic(Topic::Commands),
            partition = self.settings.slot.partition,
            offset = record.offset,
            reason,
            "dead letter"
        );
        self.counts.dead_letters += 1;
        // A compressed batch may hold a record that no topic takes uncompressed: it stays where it first lay. So does what
        // may be personal, until that is deleted.
        let fits = whole && !A::IS_PERSONAL && record.size() <= MAX_DEAD_LETTER_BYTES;
        let is_kept = |key: &&[u8]| match A::IS_PERSONAL {
            true => AggregateId::from_key(Some(key)).is_ok(),
            false => fits || key.len() <= AggregateId::MAX_BYTES,
        };
        // Reasons may quote what they are about.
        let reason: String = reason.chars().take(MAX_REASON_CHARACTERS).collect();
        let reason = if fits { reason } else { format!("{reason}; its {} bytes are not kept here", record.size()) };
        self.headers.clear();
        if fits {
            copy_headers(record, &[names::ERROR, names::ORIGIN], &mut self.headers);
        }
        self.headers.push(names::ERROR.as_bytes(), Some(reason.as_bytes()));
        self.headers.push(names::ORIGIN.as_bytes(), Some(origin.as_bytes()));
        sink.send(OutRecord {
            topic: Topic::DeadLetters,
            partition: self.settings.slot.partition,
            key: record.key().filter(is_kept),
            value: record.value().filter(|_| fits),
            headers: &self.headers,
            timestamp_ms: now.as_millisecond(),
        });
    }

    /// Puts a command whose producer used another partitioner where it belongs.
    pub(super) fn forward(&mut self, record: &CommandRecord, partition: i32, now: Timestamp, sink: &mut dyn Sink) {
        let origin = self.own_origin(record);
        self.counts.forwarded += 1;
        self.headers.clear();
        let ours = [names::ORIGIN, names::FORWARDED, names::RELEASED, names::CANCELLED, names::CLAIM];
        copy_headers(record, &ours, &mut self.headers);
        self.headers.push(names::ORIGIN.as_bytes(), Some(origin.as_bytes()));
        self.headers.push(names::FORWARDED.as_bytes(), Some(b"1"));
        sink.send(OutRecord {
            topic: Topic::Commands,
            partition,
            key: record.key(),
            value: record.value(),
            headers: &self.headers,
            timestamp_ms: record.timestamp_ms.unwrap_or_else(|| now.as_millisecond()),
        });
    }

    fn send_outcome(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        outcome: &[u8],
        sent: Sent,
        sink: &mut dyn Sink,
    ) {
        let mut digits = itoa::Buffer::new();
        let offset = digits.format(record.offset);
        self.headers.clear();
        match &command.origin {
            Some(origin) => self.headers.push(names::ORIGIN.as_bytes(), Some(origin.as_bytes())),
            None => self.headers.push_joined(names::ORIGIN, &[&self.origin, offset]),
        }
        self.headers.push_joined(names::POSITION, &[&self.position, offset]);
        if sent.replayed {
            self.headers.push(names::REPLAYED.as_bytes(), Some(b"1"));
        }
        sink.send(OutRecord {
            topic: Topic::Outcomes,
            partition: self.settings.slot.partition,
            key: Some(command.command_id.as_bytes()),
            value: Some(outcome),
            headers: &self.headers,
            timestamp_ms: sent.now.as_millisecond(),
        });
    }

    fn answer(&mut self, record: &CommandRecord, command: &Readable<A::Command>, outcome: &Outcome, replayed: bool) {
        if !self.settings.waiters.any() || outcome.is_pending() {
            return;
        }
        let awaited = Awaited {
            slot: self.settings.slot,
            aggregate_id: outcome.aggregate_id.clone(),
            command_id: outcome.command_id.clone(),
            fingerprint: command.fingerprint,
        };
        if self.settings.waiters.awaits(&awaited) {
            // A command that had to wait is decided elsewhere than where it lay.
            let origin = command.origin.as_deref().and_then(|origin| origin.strip_prefix(&self.origin)?.parse().ok());
            let command_offset = Some(origin.unwrap_or(record.offset));
            self.answers.push((awaited, Answer { outcome: Arc::new(outcome.clone()), replayed, command_offset }));
        }
    }

    pub(super) fn encode_outcome(&self, outcome: &Outcome) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(256);
        // The set has one record.
        self.context.outcomes.prefix(0, &mut bytes).map_err(|error| error.to_string())?;
        outcome.write(&mut bytes);
        Ok(bytes)
    }

    /// Answers a command id that was decided before.
    pub(super) fn repeat(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        (fingerprint, known): (Fingerprint, &[u8]),
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        if fingerprint != command.fingerprint {
            return self.refuse_reused(record, command, now, sink);
        }
        let mut consequence = None;
        if self.settings.waiters.any() || self.step(command).is_some() {
            let decoded = self.context.outcomes.decode(known, Foreign::Refuse, &self.settings.runtime);
            let OutcomeRecord::Outcome(outcome) = decoded.map_err(|error| error.to_string())?;
            consequence = self.conclusion(command, &outcome)?;
            self.answer(record, command, &outcome, true);
        }
        self.counts.replayed += 1;
        self.send_outcome(record, command, known, Sent { now, replayed: true }, sink);
        if let Some(consequence) = consequence {
            self.send_consequence(&consequence, &command.headers, now.as_millisecond(), sink);
        }
        Ok(())
    }

    pub(super) fn accept(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        decision: Decision<A>,
        times: (Timestamp, Timestamp),
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        let (at, now) = times;
        let first = decision.entry.version - decision.events.len() as u64 + 1;
        // Everything is encoded before anything is sent: a failure leaves nothing half done.
        let (mut values, mut ends) = (Vec::with_capacity(64), Vec::with_capacity(decision.events.len()));
        let mut events = Vec::with_capacity(decision.events.len());
        let sealed = self.seal(command.aggregate_id.as_str(), &decision.events)?;
        let written = sealed.as_ref().map_or(&decision.events, |(sealed, _)| sealed);
        for (sequence, event) in (first..).zip(written) {
            self.context.events.encode(event, &mut values).map_err(|error| error.to_string())?;
            ends.push(values.len());
            events.push(EventRef { sequence: sequence as i64, r#type: event.name().to_owned() });
        }
        let outcome = Outcome {
            outcome: Verdict::Accepted,
            version: decision.entry.version as i64,
            events,
            ..self.outcome(command, now)
        };
        let encoded = self.encode_outcome(&outcome)?;
        let mut follows = self.errands(command.aggregate_id.as_str(), first, at, &decision.events)?;
        follows.commands.extend(self.conclusion(command, &outcome)?);
        if let Some((_, used)) = sealed {
            self.use_key(command.aggregate_id.as_str(), used, now, sink);
        }
        let mut begin = 0;
        for ((sequence, event), end) in (first..).zip(&decision.events).zip(ends) {
            let headers = EventHeaders {
                aggregate_type: A::TYPE,
                aggregate_id: command.aggregate_id.as_str(),
                sequence,
                namespace: A::Event::NAMESPACE,
                record: event.name(),
                time: self.time.text(at),
                command_id: &command.command_id,
                correlation_id: command.headers.correlation_id.as_deref(),
                causation_id: command.headers.causation_id.as_deref(),
                traceparent: command.headers.traceparent.as_deref(),
            };
            self.headers.clear();
            headers.write(|name, parts| self.headers.push_joined(name, parts));
            sink.send(OutRecord {
                topic: Topic::Events,
                partition: self.settings.slot.partition,
                key: Some(command.aggregate_id.as_str().as_bytes()),
                value: Some(&values[begin..end]),
                headers: &self.headers,
                timestamp_ms: at.as_millisecond(),
            });
            begin = end;
        }
        let (id, mut entry) = (command.aggregate_id.as_str(), decision.entry);
        self.mark();
        note(&mut self.snapshots, self.local.as_mut(), id, &mut entry);
        self.snapshots.count_events(decision.events.len());
        let before = match self.aggregates.get_mut(id) {
            Some(known) => Some(mem::replace(known, entry)),
            None => self.aggregates.insert(id.into(), entry),
        };
        self.before.push((id.into(), before));
        self.counts.accepted += 1;
        self.publish(record, command, &outcome, &encoded, sink);
        for consequence in &follows.commands {
            self.send_consequence(consequence, &command.headers, now.as_millisecond(), sink);
        }
        for deadline in &follows.deadlines {
            self.set_deadline(deadline, now, sink);
        }
        Ok(())
    }

    pub(super) fn refuse(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        refused: Refused,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        let version = self.aggregates.get(command.aggregate_id.as_str()).map_or(0, |entry| entry.version);
        let outcome = Outcome {
            outcome: Verdict::Rejected,
            version: version as i64,
            reason: Some(refused.reason),
            detail: Some(Value::Object(refused.figures).to_string()),
            ..self.outcome(command, now)
        };
        let encoded = self.encode_outcome(&outcome)?;
        let consequence = self.conclusion(command, &outcome)?;
        self.counts.rejected += u64::from(!outcome.is_scheduled() && !outcome.is_pending());
        self.publish(record, command, &outcome, &encoded, sink);
        if let Some(consequence) = consequence {
            self.send_consequence(&consequence, &command.headers, now.as_millisecond(), sink);
        }
        Ok(())
    }

    pub(super) fn outcome(&self, command: &Readable<A::Command>, now: Timestamp) -> Outcome {
        Outcome {
            command_id: command.command_id.clone(),
            aggregate_type: A::TYPE.to_owned(),
            aggregate_id: command.aggregate_id.as_str().to_owned(),
            outcome: Verdict::Rejected,
            version: 0,
            events: Vec::new(),
            reason: None,
            detail: None,
            fingerprint: command.fingerprint.to_vec(),
            at: now.as_microsecond(),
        }
    }

    /// Sends an original outcome, remembers it, and notes who is to be answered.
    pub(super) fn publish(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        outcome: &Outcome,
        encoded: &[u8],
        sink: &mut dyn Sink,
    ) {
        let now = outcome.time();
        self.mark();
        if let Some(local) = &mut self.local {
            local.count_outcome();
        }
        self.send_outcome(record, command, encoded, Sent { now, replayed: false }, sink);
        self.answer(record, command, outcome, false);
        if is_remembered(outcome) {
            let remembered = Remembered { fingerprint: command.fingerprint, outcome: encoded.into(), at: now };
            self.memory.remember(command.key(), remembered);
        }
    }
}

/// How an outcome is sent.
#[derive(Clone, Copy)]
struct Sent {
    now: Timestamp,
    replayed: bool,
}

/// Copies a record's headers, but some.
pub(super) fn copy_headers(record: &CommandRecord, without: &[&str], to: &mut Headers) {
    for (name, value) in record.raw_headers() {
        if !without.iter().any(|without| without.as_bytes() == name) {
            to.push(name, value);
        }
    }
}
