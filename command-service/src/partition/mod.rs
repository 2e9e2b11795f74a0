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
    kafka::{partition_of, topics::Topic},
    outcome::{Outcome, PENDING, SCHEDULED},
    panics::Quiet,
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
        let Some(waits) = self.sent_again(record, command, now, sink)? else { return Ok(()) };
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
        let is_decided = judged.as_ref().err().is_none_or(|refused| !PASSING_REASONS.contains(&&*refused.reason));
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

fn is_remembered(outcome: &Outcome) -> bool {
    !outcome.reason.as_deref().is_some_and(|reason| PASSING_REASONS.contains(&reason))
}

impl<A: Aggregate> Decider for Partition<A> {
    fn decide(&mut self, record: &CommandRecord, now: Timestamp, sink: &mut dyn Sink) -> Result<(), Held> {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        if A::IS_PERSONAL {
            if is_sweep(record.value(), record.headers().map(|(name, _)| name)) {
                return Ok(());
            }
            self.keys.command_came(self.settings.forget_within);
        }
        let headers = match CommandHeaders::read(record.headers()) {
            Ok(headers) => headers,
            Err(reason) => {
                self.dead_letter(record, &reason, true, now, sink);
                return Ok(());
            }
        };
        if let Some(key) = record.key().filter(|key| !key.is_empty()) {
            let partition = partition_of(key, self.settings.partitions);
            if partition != self.settings.slot.partition {
                let reason = "it lies in a partition that is not its aggregate's, though it was forwarded before";
                match headers.forwarded {
                    true => self.dead_letter(record, reason, true, now, sink),
                    false if record.size() > MAX_FORWARDED_BYTES => {
                        self.dead_letter(record, "it is too large to be forwarded to its partition", true, now, sink);
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
                // Such a text may quote what can't be read.
                let reason = if A::IS_PERSONAL { UNREADABLE.to_owned() } else { error.to_string() };
                self.dead_letter(record, &reason, true, now, sink);
                return Ok(());
            }
        };
        self.load(command.aggregate_id.as_str()).map_err(Held)?;
        if self.is_forged(&command) {
            let reason = "only a process may send this command, under the command id of one of its steps";
            self.dead_letter(record, reason, true, now, sink);
            self.refuse_as_internal(record, &command, now, sink);
            return Ok(());
        }
        let known = self.memory.recall(command.key(), now).map_err(|error| {
            if let Some(local) = &mut self.local {
                local.mark_broken();
            }
            Held(error.to_string())
        })?;
        let known = known.map(|known| (known.fingerprint, known.outcome.into_owned()));
        if let Err(cause) = self.handle(record, &command, known, now, sink) {
            let cause = if A::IS_PERSONAL { UNDECIDED.to_owned() } else { cause };
            tracing::error!(aggregate = %command.aggregate_id, command = command.command_id, cause, "a command can't be decided");
            self.dead_letter(record, &cause, true, now, sink);
            self.refuse_as_internal(record, &command, now, sink);
        }
        self.drop_unused_key(command.aggregate_id.as_str(), now, sink);
        Ok(())
    }

    fn condemn(&mut self, record: &CommandRecord, reason: &str, whole: bool, now: Timestamp, sink: &mut dyn Sink) {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        self.dead_letter(record, reason, whole, now, sink);
        let read = || {
            let headers = CommandHeaders::read(record.headers()).ok()?;
            self.read(record, headers).ok()
        };
        if let Ok(Some(command)) = catch_unwind(AssertUnwindSafe(read)) {
            // What can't be read is found out again by the next command.
            let loaded = self.load(command.aggregate_id.as_str());
            self.refuse_as_internal(record, &command, now, sink);
            if loaded.is_ok() {
                self.drop_unused_key(command.aggregate_id.as_str(), now, sink);
            }
        }
    }

    fn commit(&mut self, now: Timestamp) {
        std::mem::take(&mut self.counts).publish(A::TYPE);
        self.before.clear();
        self.marks = None;
        self.memory.commit();
        self.schedule.commit();
        if self.keys.commit() {
            let partition = self.settings.slot.partition;
            tracing::info!(aggregate_type = A::TYPE, partition, "all keys are encrypted with the present master key");
        }
        self.commit_snapshots();
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
        self.roll_snapshots_back();
        self.roll_lists_back();
        self.keys.rollback();
        self.memory.rollback();
        self.schedule.rollback();
        self.answers.clear();
        self.counts = Counts::default();
    }

    fn events_since_checkpoint(&self) -> u64 {
        self.events_since_checkpoint()
    }

    fn begin_checkpoint(&mut self, offset: i64) {
        self.begin_checkpoint(offset);
    }

    fn is_snapshotting(&self) -> bool {
        self.is_snapshotting() || self.keys.is_due()
    }

    fn send_snapshots(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        self.send_snapshots(now, sink);
        self.renew_keys(now, sink);
        self.send_sweep(now, sink);
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.next_due()
    }

    fn release_due(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        self.release_due(now, sink);
    }

    fn must_wait(&self) -> bool {
        self.is_store_behind() || self.is_full
    }

    fn unstored(&self) -> usize {
        self.unstored()
    }

    fn begin_store_commit(&mut self, next: i64, events: i64, outcomes: i64) {
        self.begin_store_commit(next, events, outcomes);
    }

    fn tend(&mut self, now: Timestamp) -> bool {
        self.end_store_commit();
        self.schedule.tell(A::TYPE, &self.settings.room);
        self.bound_memory(now);
        self.is_store_broken()
    }

    fn stored_up_to(&mut self, events: (i64, i64), outcomes_end: i64) -> Option<(i64, i64)> {
        self.stored_up_to(events, outcomes_end)
    }

    fn give_snapshots_up(&mut self, reason: &str) {
        let partition = self.settings.slot.partition;
        tracing::error!(partition, reason, "snapshots can't be written: there are no more until the next take-over");
        self.snapshots.give_up();
    }

    fn restore(&mut self, topic: Topic, record: &Stored<'_>, now: Timestamp) -> Result<(), RestoreError> {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        self.store_while_restoring()?;
        match topic {
            Topic::Snapshots => self.read_snapshot_back(record),
            Topic::Events => self.read_event_back(record),
            Topic::Outcomes => self.read_outcome_back(record, now),
            Topic::Scheduled => self.read_scheduled_back(record),
            Topic::Keys => self.read_key_back(record),
            Topic::Commands | Topic::DeadLetters => Ok(()),
        }
    }

    fn end_keys(&mut self) -> Result<(), RestoreError> {
        self.end_keys()
    }

    fn first_event_to_read(&mut self, first: i64, end: i64) -> Result<i64, RestoreError> {
        self.first_event_to_read(first, end)
    }

    fn decided_up_to(&self) -> Option<i64> {
        self.decided_up_to
    }

    fn sizes(&self) -> (usize, usize) {
        (self.aggregates.len().max(self.snapshots.count as usize), self.memory.len())
    }

    fn scheduled(&self) -> (usize, usize) {
        (self.schedule.len(), self.schedule.bytes())
    }
}
