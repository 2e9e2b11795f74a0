//! A partition: the states of its aggregates, the remembered outcomes, and the decision on each command.
//!
//! No I/O but the [`Sink`] that takes records: what is here can be tested without Kafka. A batch is decided command by
//! command; then either [`Decider::commit`] or [`Decider::rollback`] is called, as the transaction went.

mod memory;
pub mod restore;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::{CommandHeaders, EventHeaders, EventMeta, names, parse_version},
    fingerprint::{Fingerprint, fingerprint},
    kafka::{partition_of, topics::Topic},
    outcome::{EventRef, Outcome, OutcomeRecord, Verdict},
    records::Records,
};
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::{Map, Value, json};

use crate::{
    grant::Slot,
    record::{CommandRecord, OutRecord, Sink},
    types::{CommandType, TypeOf},
    waiters::{Answer, Awaited, Waiters},
};
use memory::{Memory, Remembered};

/// A record that is forwarded, or goes to dead letters, gets a few headers more; it must stay below Kafka's limit.
const MAX_FORWARDED_BYTES: usize = (1 << 20) - 4096;
/// The topic of dead letters takes records of twice a command's size.
const MAX_DEAD_LETTER_BYTES: usize = 3 << 19;
const MAX_REASON_CHARACTERS: usize = 1000;
/// Reasons that are answered but never remembered: the same command may fare better next time.
const PASSING_REASONS: [&str; 3] = ["idempotency-key-reused", "internal", "unavailable"];

/// What a partition needs to know of its surroundings.
#[derive(Clone)]
pub struct Settings {
    /// Which partition.
    pub slot: Slot,
    /// Partitions of each topic.
    pub partitions: i32,
    /// Id of the command topic.
    pub topic_id: String,
    /// How long outcomes are remembered.
    pub window: Duration,
    /// Who waits for answers.
    pub waiters: Waiters,
    /// Where the registry can be asked from a plain thread.
    pub runtime: tokio::runtime::Handle,
}

/// A command that can't be decided now, and why; nothing was done with it.
#[derive(Debug)]
pub struct Held(pub String);

/// A partition behind a face without the aggregate's Rust types.
pub trait Decider: Send {
    /// Decides one command and hands the records that follow to the sink.
    fn decide(&mut self, record: &CommandRecord, now: Timestamp, sink: &mut dyn Sink) -> Result<(), Held>;

    /// The batch is in the log: keep its effects, and answer who waits.
    fn commit(&mut self, now: Timestamp);

    /// The batch is not in the log: forget its effects.
    fn rollback(&mut self);

    /// Restores from a record of the event topic.
    fn restore_event(&mut self, record: &Stored<'_>) -> Result<(), RestoreError>;

    /// Restores from a record of the outcome topic.
    fn restore_outcome(&mut self, record: &Stored<'_>, now: Timestamp) -> Result<(), RestoreError>;

    /// Offset behind the last command whose outcome was restored, when there was one of this command topic.
    fn decided_up_to(&self) -> Option<i64>;

    /// How many aggregates and outcomes are kept in memory.
    fn sizes(&self) -> (usize, usize);
}

/// A record read back.
#[derive(Debug)]
pub struct Stored<'a> {
    /// Offset.
    pub offset: i64,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

/// The registry can't be asked, so the restore has to begin again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(pub String);

/// See [`Decider`].
pub struct Partition<A: Aggregate> {
    context: Arc<TypeOf<A>>,
    settings: Settings,
    aggregates: HashMap<Box<str>, Entry<A::State>>,
    memory: Memory,
    decided_up_to: Option<i64>,
    /// What the aggregates of this batch were before it.
    before: Vec<Before<A::State>>,
    answers: Vec<(Awaited, Answer)>,
    counts: Counts,
}

/// What became of the commands of a batch: counted when it is in the log, however often it ran.
#[derive(Default)]
struct Counts {
    accepted: u64,
    rejected: u64,
    replayed: u64,
    forwarded: u64,
    dead_letters: u64,
}

impl Counts {
    fn publish(self, aggregate_type: &'static str) {
        for (outcome, count) in [
            ("accepted", self.accepted),
            ("rejected", self.rejected),
            ("replayed", self.replayed),
            ("forwarded", self.forwarded),
            ("dead-letter", self.dead_letters),
        ] {
            if count > 0 {
                metrics::counter!("millrace_commands_total", "type" => aggregate_type, "outcome" => outcome)
                    .increment(count);
            }
        }
    }
}

/// An aggregate's id and what was known of it.
type Before<S> = (Box<str>, Option<Entry<S>>);

struct Entry<S> {
    state: S,
    version: u64,
    last_time: Timestamp,
    /// Set when its history can't be read by this release: nothing can be decided.
    unreadable: Option<Arc<str>>,
}

impl<S: Default> Default for Entry<S> {
    fn default() -> Self {
        Self { state: S::default(), version: 0, last_time: Timestamp::MIN, unreadable: None }
    }
}

impl<S: Clone> Clone for Entry<S> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            version: self.version,
            last_time: self.last_time,
            unreadable: self.unreadable.clone(),
        }
    }
}

/// A command that was read.
struct Readable<C> {
    aggregate_id: AggregateId,
    headers: CommandHeaders,
    command_id: String,
    command: C,
    fingerprint: Fingerprint,
}

/// What was decided about it.
struct Decision<A: Aggregate> {
    entry: Entry<A::State>,
    events: Vec<A::Event>,
}

/// Why it was refused.
struct Refused {
    reason: String,
    figures: Map<String, Value>,
}

impl Refused {
    fn new(reason: &str, figures: Value) -> Self {
        let figures = match figures {
            Value::Object(figures) => figures,
            _ => Map::new(),
        };
        Self { reason: reason.to_owned(), figures }
    }
}

impl<A: Aggregate> Partition<A> {
    /// An empty one.
    pub fn new(context: Arc<TypeOf<A>>, settings: Settings) -> Self {
        Self {
            context,
            memory: Memory::new(settings.window),
            settings,
            aggregates: HashMap::new(),
            decided_up_to: None,
            before: Vec::new(),
            answers: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Reads a command, or says why it is a dead letter.
    fn read(&self, record: &CommandRecord, headers: CommandHeaders) -> Result<Readable<A::Command>, DecodeError> {
        let aggregate_id = AggregateId::from_key(record.key()).map_err(DecodeError::Malformed)?;
        let value = record.value().ok_or_else(|| DecodeError::Malformed("the record has no value".into()))?;
        let command = self.context.commands.decode(value, Foreign::Resolve, &self.settings.runtime)?;
        let fingerprint =
            fingerprint(command.name(), &command).map_err(|error| DecodeError::Malformed(error.to_string()))?;
        let command_id = headers.id.clone().unwrap_or_else(|| self.origin(record, &headers));
        Ok(Readable { aggregate_id, headers, command_id, command, fingerprint })
    }

    /// `topic/partition/offset` of where the record first lay. Anybody may write that header, so only what we could
    /// have written is believed.
    fn origin(&self, record: &CommandRecord, headers: &CommandHeaders) -> String {
        let topic = self.context.topic(Topic::Commands);
        let is_ours = |origin: &str| {
            let (partition, offset) = origin.strip_prefix(topic)?.strip_prefix('/')?.split_once('/')?;
            Some(parse_version(partition).is_some() && parse_version(offset).is_some())
        };
        let given = headers.origin.as_deref().filter(|origin| headers.forwarded && is_ours(origin) == Some(true));
        given.map_or_else(|| format!("{topic}/{}/{}", self.settings.slot.partition, record.offset), str::to_owned)
    }

    fn position(&self, record: &CommandRecord) -> String {
        format!("{}/{}/{}", self.settings.topic_id, self.settings.slot.partition, record.offset)
    }

    fn dead_letter(&mut self, record: &CommandRecord, reason: &str, now: Timestamp, sink: &mut dyn Sink) {
        let forwarded = CommandHeaders::read(record.headers()).unwrap_or_default();
        let origin = self.origin(record, &forwarded);
        tracing::warn!(
            topic = self.context.topic(Topic::Commands),
            partition = self.settings.slot.partition,
            offset = record.offset,
            reason,
            "dead letter"
        );
        self.counts.dead_letters += 1;
        // A compressed batch may hold a record that no topic takes uncompressed: it stays where it first lay.
        let fits = record.size() <= MAX_DEAD_LETTER_BYTES;
        // Reasons may quote what they are about.
        let reason: String = reason.chars().take(MAX_REASON_CHARACTERS).collect();
        let reason = if fits { reason } else { format!("{reason}; its {} bytes are not kept here", record.size()) };
        let headers = match record.unreadable_headers() {
            Some(headers) => headers.clone(),
            None if fits => copied(record, &[names::ERROR, names::ORIGIN]),
            None => OwnedHeaders::new(),
        };
        let headers = headers
            .insert(Header { key: names::ERROR, value: Some(&reason) })
            .insert(Header { key: names::ORIGIN, value: Some(&origin) });
        sink.send(OutRecord {
            topic: Topic::DeadLetters,
            partition: self.settings.slot.partition,
            key: record.key().filter(|key| fits || key.len() <= AggregateId::MAX_BYTES),
            value: record.value().filter(|_| fits),
            headers,
            timestamp_ms: now.as_millisecond(),
        });
    }

    /// Puts a command whose producer used another partitioner where it belongs.
    fn forward(&mut self, record: &CommandRecord, partition: i32, now: Timestamp, sink: &mut dyn Sink) {
        let origin = self.origin(record, &CommandHeaders::default());
        self.counts.forwarded += 1;
        let headers = copied(record, &[names::ORIGIN, names::FORWARDED])
            .insert(Header { key: names::ORIGIN, value: Some(&origin) })
            .insert(Header { key: names::FORWARDED, value: Some("1") });
        sink.send(OutRecord {
            topic: Topic::Commands,
            partition,
            key: record.key(),
            value: record.value(),
            headers,
            timestamp_ms: record.timestamp_ms.unwrap_or_else(|| now.as_millisecond()),
        });
    }

    /// Applies the rules. The state is changed on a copy, so that a refusal or a panic leaves nothing behind.
    fn judge(&self, command: &Readable<A::Command>, at: Timestamp) -> Result<Decision<A>, Refused> {
        let mut entry = self.aggregates.get(command.aggregate_id.as_str()).cloned().unwrap_or_default();
        if let Some(reason) = &entry.unreadable {
            return Err(Refused::new("unavailable", json!({"cause": &**reason})));
        }
        if let Some(expected) = command.headers.expected_version
            && expected != entry.version
        {
            let figures = json!({"actual_version": entry.version, "expected_version": expected});
            return Err(Refused::new("version-conflict", figures));
        }
        match A::decide(&entry.state, &command.command, at) {
            Ok(events) => {
                for event in &events {
                    A::evolve(&mut entry.state, event);
                    entry.version += 1;
                    entry.last_time = at;
                }
                Ok(Decision { entry, events })
            }
            Err(rejection) => {
                let mut figures = match serde_json::to_value(&rejection) {
                    Ok(Value::Object(figures)) => figures,
                    _ => Map::new(),
                };
                let reason = figures.shift_remove("reason").and_then(|reason| reason.as_str().map(str::to_owned));
                Err(Refused { reason: reason.unwrap_or_else(|| "internal".to_owned()), figures })
            }
        }
    }

    fn send_outcome(&self, record: &CommandRecord, outcome: &[u8], command_id: &str, sent: Sent, sink: &mut dyn Sink) {
        let headers = CommandHeaders::read(record.headers()).unwrap_or_default();
        let mut out = OwnedHeaders::new_with_capacity(3)
            .insert(Header { key: names::ORIGIN, value: Some(&self.origin(record, &headers)) })
            .insert(Header { key: names::POSITION, value: Some(&self.position(record)) });
        if sent.replayed {
            out = out.insert(Header { key: names::REPLAYED, value: Some("1") });
        }
        sink.send(OutRecord {
            topic: Topic::Outcomes,
            partition: self.settings.slot.partition,
            key: Some(command_id.as_bytes()),
            value: Some(outcome),
            headers: out,
            timestamp_ms: sent.now.as_millisecond(),
        });
    }

    fn answer(&mut self, record: &CommandRecord, outcome: &Outcome, fingerprint: Fingerprint, replayed: bool) {
        if !self.settings.waiters.any() {
            return;
        }
        let awaited = Awaited {
            slot: self.settings.slot,
            aggregate_id: outcome.aggregate_id.clone(),
            command_id: outcome.command_id.clone(),
            fingerprint,
        };
        if self.settings.waiters.awaits(&awaited) {
            let answer = Answer { outcome: Arc::new(outcome.clone()), replayed, command_offset: Some(record.offset) };
            self.answers.push((awaited, answer));
        }
    }

    fn encode_outcome(&self, outcome: &Outcome) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(160);
        let record = OutcomeRecord::Outcome(outcome.clone());
        self.context.outcomes.encode(&record, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Answers a command id that was decided before.
    fn repeat(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        known: &Remembered,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        if known.fingerprint != command.fingerprint {
            let refused = Refused::new("idempotency-key-reused", json!({}));
            return self.refuse(record, command, refused, now, sink);
        }
        self.counts.replayed += 1;
        self.send_outcome(record, &known.outcome, &command.command_id, Sent { now, replayed: true }, sink);
        if self.settings.waiters.any() {
            let decoded = self.context.outcomes.decode(&known.outcome, Foreign::Refuse, &self.settings.runtime);
            let OutcomeRecord::Outcome(outcome) = decoded.map_err(|error| error.to_string())?;
            self.answer(record, &outcome, command.fingerprint, true);
        }
        Ok(())
    }

    fn accept(
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
        for (sequence, event) in (first..).zip(&decision.events) {
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
        let mut begin = 0;
        for ((sequence, event), end) in (first..).zip(&decision.events).zip(ends) {
            let headers = EventHeaders {
                aggregate_type: A::TYPE,
                aggregate_id: command.aggregate_id.as_str(),
                sequence,
                namespace: A::Event::NAMESPACE,
                record: event.name(),
                time: at,
                command_id: &command.command_id,
                correlation_id: command.headers.correlation_id.as_deref(),
                traceparent: command.headers.traceparent.as_deref(),
            };
            sink.send(OutRecord {
                topic: Topic::Events,
                partition: self.settings.slot.partition,
                key: Some(command.aggregate_id.as_str().as_bytes()),
                value: Some(&values[begin..end]),
                headers: headers.write(),
                timestamp_ms: at.as_millisecond(),
            });
            begin = end;
        }
        let id: Box<str> = command.aggregate_id.as_str().into();
        let before = self.aggregates.insert(id.clone(), decision.entry);
        self.before.push((id, before));
        self.counts.accepted += 1;
        self.publish(record, command, &outcome, encoded, sink);
        Ok(())
    }

    fn refuse(
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
        self.counts.rejected += 1;
        self.publish(record, command, &outcome, encoded, sink);
        Ok(())
    }

    fn outcome(&self, command: &Readable<A::Command>, now: Timestamp) -> Outcome {
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
    fn publish(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        outcome: &Outcome,
        encoded: Vec<u8>,
        sink: &mut dyn Sink,
    ) {
        let now = outcome.time();
        self.send_outcome(record, &encoded, &command.command_id, Sent { now, replayed: false }, sink);
        self.answer(record, outcome, command.fingerprint, false);
        if is_remembered(outcome) {
            let remembered = Remembered { fingerprint: command.fingerprint, outcome: encoded.into(), at: now };
            self.memory.remember(command.aggregate_id.as_str(), &command.command_id, remembered);
        }
    }

    /// Decides a command that was read.
    fn handle(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        if let Some(known) = self.memory.recall(command.aggregate_id.as_str(), &command.command_id, now) {
            let known = known.clone();
            return self.repeat(record, command, &known, now, sink);
        }
        let last = self.aggregates.get(command.aggregate_id.as_str()).map_or(Timestamp::MIN, |entry| entry.last_time);
        let given = record.timestamp_ms.and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or(now);
        let at = given.min(now).max(last);
        match catch_unwind(AssertUnwindSafe(|| self.judge(command, at))) {
            Ok(Ok(decision)) => self.accept(record, command, decision, (at, now), sink),
            Ok(Err(refused)) => self.refuse(record, command, refused, now, sink),
            Err(_) => Err("the domain panicked".to_owned()),
        }
    }
}

/// How an outcome is sent.
#[derive(Clone, Copy)]
struct Sent {
    now: Timestamp,
    replayed: bool,
}

fn is_remembered(outcome: &Outcome) -> bool {
    !outcome.reason.as_deref().is_some_and(|reason| PASSING_REASONS.contains(&reason))
}

/// A record's headers without some, and room for two more.
fn copied(record: &CommandRecord, without: &[&str]) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(8);
    for (key, value) in record.headers().filter(|(name, _)| !without.contains(name)) {
        headers = headers.insert(Header { key, value });
    }
    headers
}

impl<A: Aggregate> Decider for Partition<A> {
    fn decide(&mut self, record: &CommandRecord, now: Timestamp, sink: &mut dyn Sink) -> Result<(), Held> {
        if record.unreadable_headers().is_some() {
            self.dead_letter(record, "the name of a header is not UTF-8", now, sink);
            return Ok(());
        }
        let headers = match CommandHeaders::read(record.headers()) {
            Ok(headers) => headers,
            Err(reason) => {
                self.dead_letter(record, &reason, now, sink);
                return Ok(());
            }
        };
        if let Some(key) = record.key().filter(|key| !key.is_empty()) {
            let partition = partition_of(key, self.settings.partitions);
            if partition != self.settings.slot.partition {
                let reason = "it lies in a partition that is not its aggregate's, though it was forwarded before";
                match headers.forwarded {
                    true => self.dead_letter(record, reason, now, sink),
                    false if record.size() > MAX_FORWARDED_BYTES => {
                        self.dead_letter(record, "it is too large to be forwarded to its partition", now, sink);
                    }
                    false => self.forward(record, partition, now, sink),
                }
                return Ok(());
            }
        }
        let command = match self.read(record, headers) {
            Ok(command) => command,
            Err(DecodeError::Unavailable(reason)) => return Err(Held(reason)),
            Err(error) => {
                self.dead_letter(record, &error.to_string(), now, sink);
                return Ok(());
            }
        };
        if let Err(cause) = self.handle(record, &command, now, sink) {
            tracing::error!(aggregate = %command.aggregate_id, command = command.command_id, cause, "a command can't be decided");
            self.dead_letter(record, &cause, now, sink);
            let refused = Refused::new("internal", json!({}));
            if let Err(cause) = self.refuse(record, &command, refused, now, sink) {
                tracing::error!(cause, "nor can its outcome be published");
            }
        }
        Ok(())
    }

    fn commit(&mut self, now: Timestamp) {
        std::mem::take(&mut self.counts).publish(A::TYPE);
        self.before.clear();
        self.memory.commit();
        for (awaited, answer) in self.answers.drain(..) {
            self.settings.waiters.answer(&awaited, &answer);
        }
        self.memory.expire(now);
    }

    fn rollback(&mut self) {
        while let Some((id, before)) = self.before.pop() {
            match before {
                Some(entry) => self.aggregates.insert(id, entry),
                None => self.aggregates.remove(&id),
            };
        }
        self.memory.rollback();
        self.answers.clear();
        self.counts = Counts::default();
    }

    fn restore_event(&mut self, record: &Stored<'_>) -> Result<(), RestoreError> {
        let (Ok(id), Ok(meta)) = (AggregateId::from_key(record.key), EventMeta::read(record.headers.iter().copied()))
        else {
            // Not written by Millrace, so it is part of no aggregate's history.
            tracing::warn!(
                topic = self.context.topic(Topic::Events),
                offset = record.offset,
                "a foreign record is ignored"
            );
            return Ok(());
        };
        let decoded =
            self.context.events.decode(record.value.unwrap_or_default(), Foreign::Refuse, &self.settings.runtime);
        let entry = self.aggregates.entry(id.as_str().into()).or_default();
        let unreadable = match decoded {
            Err(DecodeError::Unavailable(reason)) => return Err(RestoreError(reason)),
            Err(error) => Some(error.to_string()),
            Ok(_) if meta.sequence != entry.version + 1 => {
                Some(format!("sequence {} follows {}", meta.sequence, entry.version))
            }
            Ok(event) => {
                A::evolve(&mut entry.state, &event);
                entry.version = meta.sequence;
                entry.last_time = entry.last_time.max(meta.time);
                None
            }
        };
        if let Some(reason) = unreadable {
            tracing::error!(aggregate = %id, offset = record.offset, reason, "an aggregate's history can't be read; its commands are refused");
            entry.unreadable.get_or_insert_with(|| reason.into());
        }
        Ok(())
    }

    fn restore_outcome(&mut self, record: &Stored<'_>, now: Timestamp) -> Result<(), RestoreError> {
        let position = record.headers.iter().find(|(name, _)| *name == names::POSITION).and_then(|(_, value)| *value);
        let position = position.and_then(|bytes| std::str::from_utf8(bytes).ok());
        if let Some(offset) = position.and_then(|text| own_offset(text, &self.settings)) {
            self.decided_up_to = self.decided_up_to.max(Some(offset + 1));
        }
        if record.headers.iter().any(|(name, _)| *name == names::REPLAYED) {
            return Ok(());
        }
        let value = record.value.unwrap_or_default();
        let outcome = match self.context.outcomes.decode(value, Foreign::Refuse, &self.settings.runtime) {
            Ok(OutcomeRecord::Outcome(outcome)) => outcome,
            Err(DecodeError::Unavailable(reason)) => return Err(RestoreError(reason)),
            Err(error) => {
                tracing::warn!(topic = self.context.topic(Topic::Outcomes), offset = record.offset, %error, "an outcome can't be read and is not remembered");
                return Ok(());
            }
        };
        let Ok(fingerprint) = Fingerprint::try_from(outcome.fingerprint.as_slice()) else { return Ok(()) };
        if is_remembered(&outcome) && !self.memory.is_past(outcome.time(), now) {
            let remembered = Remembered { fingerprint, outcome: value.into(), at: outcome.time() };
            self.memory.remember(&outcome.aggregate_id, &outcome.command_id, remembered);
            self.memory.commit();
        }
        Ok(())
    }

    fn decided_up_to(&self) -> Option<i64> {
        self.decided_up_to
    }

    fn sizes(&self) -> (usize, usize) {
        (self.aggregates.len(), self.memory.len())
    }
}

/// The offset of a `<topic id>/<partition>/<offset>` that is of this very command partition.
fn own_offset(position: &str, settings: &Settings) -> Option<i64> {
    let mut parts = position.rsplitn(3, '/');
    let (offset, partition, topic_id) = (parts.next()?, parts.next()?, parts.next()?);
    (topic_id == settings.topic_id && partition.parse() == Ok(settings.slot.partition)).then(|| offset.parse().ok())?
}
