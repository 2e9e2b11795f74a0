//! A partition: the states of its aggregates, the remembered outcomes, and the decision on each command.
//!
//! No I/O but the [`Sink`] that takes records: what is here can be tested without Kafka. A batch is decided command by
//! command; then either [`Decider::commit`] or [`Decider::rollback`] is called, as the transaction went.

mod asking;
mod decider;
pub mod kept;
mod local;
pub mod memory;
mod personal;
mod process;
mod publish;
mod readback;
pub mod restore;
mod schedule;
mod scheduling;
mod snapshots;
#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::{CommandHeaders, Rfc3339, names},
    fast_hash::FastMap,
    fingerprint::{self, Fingerprint, fingerprint},
    kafka::topics::Topic,
    outcome::{Outcome, PENDING, SCHEDULED},
};
use serde_json::{Map, Value, json};

use crate::{
    grant::Slot,
    record::{CommandRecord, Headers, Sink},
    store::keeper::Keeper,
    types::{CommandType, TypeOf},
    waiters::{Answer, Awaited, Waiters},
};
pub use decider::{Decider, Held, RestoreError, Stored};
use kept::Kept;
use local::{Local, Marks};
use memory::{CommandKey, Memory};
use personal::Keys;
pub use personal::is_sweep;
use publish::Counts;
pub use schedule::Room;
use schedule::{Schedule, command_key};
use scheduling::is_another;
use snapshots::Snapshots;

/// A record that is forwarded, or goes to dead letters, gets a few headers more; it must stay below Kafka's limit.
const MAX_FORWARDED_BYTES: usize = (1 << 20) - 4096;
/// Reasons that are answered but never remembered: the same command may fare better next time.
const PASSING_REASONS: [&str; 5] = ["idempotency-key-reused", "internal", "unavailable", SCHEDULED, PENDING];

/// A command that was scheduled, and whose aggregate's history can't be read, is tried again after so long.
const UNREADABLE_PATIENCE: Duration = Duration::from_secs(30);
/// Why a command with personal data is a dead letter, without a word of what is in it.
const UNREADABLE: &str = "it can't be read as a command of its topic";
const UNDECIDED: &str = "it can't be decided, or what follows on it can't be written";

/// What a partition needs to know of its surroundings.
#[derive(Clone)]
pub struct Settings {
    /// Which partition.
    pub slot: Slot,
    /// All types that are served.
    pub types: Arc<[Arc<dyn CommandType>]>,
    /// Partitions of each topic.
    pub partitions: i32,
    /// Id of the command topic.
    pub topic_id: String,
    /// Id of the event topic.
    pub events_topic_id: String,
    /// Id of the outcome topic.
    pub outcomes_topic_id: String,
    /// How long outcomes are remembered.
    pub window: Duration,
    /// Bytes of answers that are remembered, at most, about.
    pub answers_bytes: u64,
    /// Whether the oldest answers are forgotten then; else commands wait until they expire.
    pub answers_forget: bool,
    /// For commands that wait until they are due.
    pub room: Room,
    /// After so long a destroyed key may be cleared out of Kafka's files.
    pub forget_within: Duration,
    /// Where it keeps what is to outlive the process, if anywhere.
    pub store: Option<StoreSettings>,
    /// Who waits for answers.
    pub waiters: Waiters,
    /// Where the registry can be asked from a plain thread.
    pub runtime: tokio::runtime::Handle,
}

/// How a partition uses a local store.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Where stores lie, and who writes to them.
    pub keeper: Keeper,
    /// Bytes of states in memory, at most, about.
    pub states_bytes: usize,
}

/// See [`Decider`].
pub struct Partition<A: Aggregate> {
    context: Arc<TypeOf<A>>,
    settings: Settings,
    aggregates: FastMap<Box<str>, Entry<A::State>>,
    memory: Memory,
    schedule: Schedule,
    snapshots: Snapshots,
    keys: Keys,
    local: Option<Local>,
    /// What the lists of changes were before this batch; none before its first change.
    marks: Option<Marks>,
    /// As many answers are remembered as may be.
    is_full: bool,
    /// The history of an aggregate can't be read.
    unreadable: bool,
    decided_up_to: Option<i64>,
    /// What the aggregates of this batch were before it.
    before: Vec<Before<A::State>>,
    answers: Vec<(Awaited, Answer)>,
    counts: Counts,
    /// For the headers of the record that is being sent.
    headers: Headers,
    /// The time of the last event, as text: the next one's is often the same millisecond.
    time: Rfc3339,
    /// What a command's origin begins with, and its position.
    origin: String,
    position: String,
}

/// An aggregate's id and what was known of it.
type Before<S> = (Box<str>, Option<Entry<S>>);

#[derive(Clone)]
struct Entry<S> {
    state: S,
    version: u64,
    last_time: Timestamp,
    /// Up to this sequence events are part of what was read from the snapshots or the store.
    read_back: u64,
    /// Sequence of its snapshot, if it has one.
    covered: u64,
    /// Noted as newer than its snapshot.
    changed: bool,
    /// Noted as newer than in the store.
    unstored: bool,
    /// Asked for since memory was last short.
    used: bool,
    /// Of its encoded state, as far as that is known.
    bytes: u32,
    /// Set when its history can't be read by this release: nothing can be decided.
    unreadable: Option<Arc<str>>,
}

impl<S> Entry<S> {
    /// As it was kept.
    fn of(Kept { state, version, last_time }: Kept<S>) -> Self {
        Self {
            state,
            version,
            last_time,
            read_back: version,
            covered: 0,
            changed: false,
            unstored: false,
            used: true,
            bytes: 0,
            unreadable: None,
        }
    }
}

impl<S: Default> Default for Entry<S> {
    fn default() -> Self {
        Self::of(Kept { state: S::default(), version: 0, last_time: Timestamp::MIN })
    }
}

/// A command that was read.
struct Readable<C> {
    aggregate_id: AggregateId,
    headers: CommandHeaders,
    command_id: String,
    order: Order<C>,
    fingerprint: Fingerprint,
    /// Where it first lay, when it was forwarded.
    origin: Option<String>,
}

impl<C> Readable<C> {
    /// Under what its outcome is remembered.
    fn key(&self) -> CommandKey<'_> {
        CommandKey { aggregate_id: self.aggregate_id.as_str(), command_id: &self.command_id }
    }
}

/// What it asks for.
enum Order<C> {
    /// To be decided by the rules.
    Command(C),
    /// That the scheduled command with this id is not decided.
    Cancel(String),
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
        let number = settings.slot.partition;
        let (local, memory, snapshots) = local::open::<A>(&settings);
        Self {
            origin: format!("{}/{number}/", context.topic(Topic::Commands)),
            position: format!("{}/{number}/", settings.topic_id),
            time: Rfc3339::default(),
            context,
            memory,
            schedule: Schedule::default(),
            settings,
            aggregates: FastMap::default(),
            snapshots,
            keys: Keys::default(),
            local,
            marks: None,
            is_full: false,
            unreadable: false,
            decided_up_to: None,
            before: Vec::new(),
            answers: Vec::new(),
            counts: Counts::default(),
            headers: Headers::default(),
        }
    }

    /// Reads a command, or says why it is a dead letter.
    fn read(&self, record: &CommandRecord, mut headers: CommandHeaders) -> Result<Readable<A::Command>, DecodeError> {
        let aggregate_id = AggregateId::from_key(record.key()).map_err(DecodeError::Malformed)?;
        let (order, fingerprint) = match (record.value(), headers.cancels.take()) {
            (None, Some(id)) => {
                let fingerprint = cancel_fingerprint(&id);
                (Order::Cancel(id), fingerprint)
            }
            (None, None) => return Err(DecodeError::Malformed("the record has no value".into())),
            (Some(_), Some(_)) => {
                let reason = format!("{} goes with a record that has no value", names::CANCELS);
                return Err(DecodeError::Malformed(reason));
            }
            (Some(value), None) => {
                let mut command = self.context.commands.decode(value, Foreign::Resolve, &self.settings.runtime)?;
                self.context.prepare(&mut command);
                let fingerprint = self.context.fingerprint(&command);
                (Order::Command(command), fingerprint)
            }
        };
        let fingerprint = fingerprint.map_err(|error| DecodeError::Malformed(error.to_string()))?;
        let origin = self.given_origin(&headers).map(str::to_owned);
        let from_origin = || origin.clone().unwrap_or_else(|| self.own_origin(record));
        let command_id = headers.id.take().unwrap_or_else(from_origin);
        Ok(Readable { aggregate_id, headers, command_id, order, fingerprint, origin })
    }

    /// Applies the rules to a copy of the aggregate, so that a refusal or a panic leaves nothing behind.
    fn judge(
        mut entry: Entry<A::State>,
        headers: &CommandHeaders,
        command: &A::Command,
        at: Timestamp,
    ) -> Result<Decision<A>, Refused> {
        if let Some(reason) = &entry.unreadable {
            return Err(Refused::new("unavailable", json!({"cause": &**reason})));
        }
        if let Some(expected) = headers.expected_version
            && expected != entry.version
        {
            let figures = json!({"actual_version": entry.version, "expected_version": expected});
            return Err(Refused::new("version-conflict", figures));
        }
        match A::decide(&entry.state, command, at) {
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

    /// Decides a command that was read.
    fn handle(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        known: Option<(Fingerprint, Vec<u8>)>,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        if let Some((fingerprint, outcome)) = known {
            return self.repeat(record, command, (fingerprint, &outcome), now, sink);
        }
        if let Some(cause) = self.keys.damage(command.aggregate_id.as_str()) {
            // Whatever is known of it, nobody can tell what is true. What waits for it stays in its topic.
            return self.refuse(record, command, Refused::new("unavailable", json!({"cause": &*cause})), now, sink);
        }
        let order = match &command.order {
            Order::Cancel(id) => return self.cancel(record, command, id, now, sink),
            Order::Command(order) => order,
        };
        if command.headers.cancelled {
            return self.refuse_cancelled(record, command, now, sink);
        }
        if A::ASKS && self.is_about_what_waits(record, command, order, now, sink)? {
            return Ok(());
        }
        let due = command.headers.not_before;
        let entry = self.aggregates.get(command.aggregate_id.as_str());
        if command.headers.released && entry.is_some_and(|entry| entry.unreadable.is_some()) {
            // It was let in, and nobody would send it again: a later release can decide it.
            return self.put_off(record, command, now + UNREADABLE_PATIENCE, now, sink);
        }
        if let Some(due) = due.filter(|due| *due > now && !self.is_asking(command)) {
            return self.put_off(record, command, due, now, sink);
        }
        let waiting = self.that_waits(command);
        if waiting.is_some_and(|waiting| is_another(&waiting.record, command)) {
            return self.refuse_reused(record, command, now, sink);
        }
        // Whether it waits for its time, and is sent again without one.
        let waits = waiting.is_some_and(|waiting| waiting.asking.is_none());
        let given = record.timestamp_ms.and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or(now);
        let judge = || {
            let entry = self.aggregates.get(command.aggregate_id.as_str()).cloned().unwrap_or_default();
            // Never before it was due.
            let at = given.max(due.unwrap_or(given)).min(now).max(entry.last_time);
            (at, Self::judge(entry, &command.headers, order, at))
        };
        let (at, judged) = caught(|| Ok(judge()))?;
        let (judged, asked) = match A::ASKS {
            true => match self.after_asking(record, command, order, judged, now, sink)? {
                Some(answered) => answered,
                None => return Ok(()),
            },
            false => (judged, None),
        };
        let is_decided = judged.as_ref().err().is_none_or(|refused| !is_passing(&refused.reason));
        match judged {
            Ok(decision) => self.accept(record, command, decision, (at, now), sink)?,
            Err(refused) => self.refuse(record, command, refused, now, sink)?,
        }
        if waits && is_decided {
            self.drop_waiting(&command_key(command.aggregate_id.as_str(), &command.command_id), now, sink);
        }
        if let Some(asked) = asked {
            self.waits_no_longer(command, asked, now, sink);
        }
        Ok(())
    }

    /// At the limit of the remembered answers commands wait until older ones expire, unless they may be forgotten.
    fn bound_memory(&mut self, now: Timestamp) {
        let (bytes, limit) = (self.memory.bytes(), self.settings.answers_bytes);
        if self.settings.answers_forget {
            self.memory.forget_beyond(limit);
            return;
        }
        if bytes >= limit || self.is_full {
            self.memory.expire(now);
        }
        let is_full = self.memory.bytes() >= limit;
        if is_full != self.is_full {
            self.is_full = is_full;
            self.settings.waiters.set_full(self.settings.slot, is_full);
            let partition = self.settings.slot.partition;
            metrics::gauge!("millrace_partitions_full").increment(if is_full { 1.0 } else { -1.0 });
            match is_full {
                true => tracing::error!(
                    partition,
                    bytes,
                    limit,
                    "as many answers are remembered as may be: commands of this partition wait until older ones expire; \
                     raise MILLRACE_ANSWERS_BYTES, shorten MILLRACE_IDEMPOTENCY_WINDOW, or set MILLRACE_ANSWERS_FORGET"
                ),
                false => tracing::info!(partition, "there is room for answers again"),
            }
        }
    }

    fn refuse_reused(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Result<(), String> {
        self.refuse(record, command, Refused::new("idempotency-key-reused", json!({})), now, sink)
    }

    fn refuse_as_internal(
        &mut self,
        record: &CommandRecord,
        command: &Readable<A::Command>,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) {
        if self.is_asking(command) {
            // It would be tried for ever.
            self.drop_waiting(&command_key(command.aggregate_id.as_str(), &command.command_id), now, sink);
        }
        let refused = Refused::new("internal", json!({}));
        if let Err(cause) = self.refuse(record, command, refused, now, sink) {
            tracing::error!(cause, "an outcome can't be published");
        }
    }
}

/// Of an order to cancel the command with this id.
pub(crate) fn cancel_fingerprint(command_id: &str) -> Result<Fingerprint, fingerprint::Error> {
    fingerprint("millrace.Cancel", &command_id)
}

/// Runs what a domain has to say, which must not take the writer with it.
fn caught<T>(domain: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(domain)).unwrap_or_else(|_| Err("the domain panicked".to_owned()))
}

fn is_passing(reason: &str) -> bool {
    PASSING_REASONS.contains(&reason)
}

fn is_remembered(outcome: &Outcome) -> bool {
    !outcome.reason.as_deref().is_some_and(is_passing)
}
