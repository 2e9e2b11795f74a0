//! Personal data: the keys of a partition's people, and what becomes of events and states that hold such data.
//!
//! States in memory are open; what goes to a topic or to the local store is sealed. A key is made with the first event that
//! needs it and destroyed with the one that erases, each by a record in the same transaction. All keys of the partition lie
//! in memory, and are read from the topic whenever it is taken over: a store of ours may be older than an erasure.

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::names,
    fast_hash::FastMap,
    kafka::topics::Topic,
    personal::{self, DataKey, KeyError, KeyRecord},
    records::Records,
};

use super::{Entry, Order, Partition, Readable, Refused, RestoreError, Stored, caught};
use crate::{
    record::{CommandRecord, OutRecord, Sink},
    types::{CommandType, Personals},
};

/// Beyond the time after which a segment may be closed: clocks tell milliseconds.
const SLACK: Duration = Duration::from_secs(1);
/// Keys that are wrapped anew in one transaction, at most.
const RENEWED_AT_ONCE: usize = 256;

/// The keys of a partition.
#[derive(Default)]
pub(super) struct Keys {
    known: FastMap<Box<str>, DataKey>,
    /// Those that can't be read: nobody may take their people for erased.
    damaged: FastMap<Box<str>, Damage>,
    /// Names of the master keys that one key at least has opened with.
    proven: HashSet<String>,
    /// Those that are wrapped with an older master key, and are to be with the present one; and of those that were sent in
    /// this batch.
    outdated: HashSet<Box<str>>,
    renewed: Vec<Box<str>>,
    /// What was known before this batch.
    before: Vec<(Box<str>, Option<DataKey>)>,
    sweep: Option<Sweep>,
    /// When the segment with the first command since the last sweep can be closed.
    commands_due: Option<Instant>,
    /// Both, as they were before this batch has swept.
    swept: Option<(Option<Sweep>, Option<Instant>)>,
}

/// Kafka neither compacts nor deletes the segment that it writes to; that is closed when a record comes after its time. So
/// one is sent when no others come: to the key topic for keys that were destroyed, to the command topic for what was handled.
#[derive(Clone, Copy)]
struct Sweep {
    due: Instant,
    /// When the last key was destroyed.
    last: Instant,
}

/// A key that can't be read.
struct Damage {
    offset: i64,
    error: KeyError,
    /// As commands are told.
    reason: Arc<str>,
}

/// Events as they are written, and what they do to the key of their aggregate.
pub(super) type Sealed<E> = (Vec<E>, KeyUse);

/// What a command's events do to the key of their aggregate.
#[derive(Default)]
pub(super) struct KeyUse {
    /// A record, and what is known with it.
    made: Option<(DataKey, Vec<u8>)>,
    destroyed: bool,
}

impl Keys {
    pub(super) fn of(&self, id: &str) -> Option<&DataKey> {
        self.known.get(id)
    }

    /// Why nothing that was sealed for an aggregate can be read.
    pub(super) fn damage(&self, id: &str) -> Option<Arc<str>> {
        self.damaged.get(id).map(|damage| damage.reason.clone())
    }

    /// Opens a state as it was kept. One whose key can't be read stays as it is.
    pub(super) fn open_snapshot<A: Aggregate>(
        &self,
        snapshot: &mut A::Snapshot,
        id: &str,
    ) -> Result<(), personal::Error> {
        if self.damaged.contains_key(id) { Ok(()) } else { personal::open_snapshot::<A>(snapshot, self.of(id), id) }
    }

    /// Why the partition must not begin with these keys, if so. A master key with which nothing opens is another one than
    /// it should be; one that opens others is right, and what it does not open was changed.
    fn unusable(&self) -> Option<(&str, &Damage)> {
        let is_wrong = |damage: &Damage| match &damage.error {
            KeyError::Missing(_) => true,
            KeyError::Refused(master) => !self.proven.contains(master),
            KeyError::Malformed => false,
        };
        let wrong = self.damaged.iter().filter(|(_, damage)| is_wrong(damage));
        wrong.min_by_key(|(_, damage)| damage.offset).map(|(id, damage)| (&**id, damage))
    }

    fn set(&mut self, id: &str, key: Option<DataKey>) {
        let before = match key {
            Some(key) => self.known.insert(id.into(), key),
            None => self.known.remove(id),
        };
        self.before.push((id.into(), before));
    }

    /// The batch is in the log. Returns whether the last of the keys were encrypted anew with it.
    pub(super) fn commit(&mut self) -> bool {
        self.before.clear();
        self.swept = None;
        let renewed = std::mem::take(&mut self.renewed);
        !renewed.is_empty() && self.outdated.is_empty()
    }

    pub(super) fn rollback(&mut self) {
        self.outdated.extend(self.renewed.drain(..));
        if let Some((keys, commands)) = self.swept.take() {
            (self.sweep, self.commands_due) = (keys, commands);
        }
        while let Some((id, before)) = self.before.pop() {
            match before {
                Some(key) => self.known.insert(id, key),
                None => self.known.remove(&id),
            };
        }
    }

    /// A key was destroyed, and is to be gone from the files.
    fn destroyed(&mut self, due: Instant) {
        let now = Instant::now();
        let sweep = self.sweep.get_or_insert(Sweep { due, last: now });
        (sweep.due, sweep.last) = (sweep.due.min(due), now);
    }

    /// A command came that may hold personal data.
    pub(super) fn command_came(&mut self, forget_within: Duration) {
        self.commands_due.get_or_insert_with(|| Instant::now() + forget_within + SLACK);
    }

    /// As if the time of what waits had come.
    #[cfg(test)]
    pub(super) fn due_now(&mut self) {
        if let Some(sweep) = &mut self.sweep {
            sweep.due = Instant::now();
        }
        self.commands_due = self.commands_due.map(|_| Instant::now());
    }

    /// Whether there is something to be sent.
    pub(super) fn is_due(&self) -> bool {
        if !self.outdated.is_empty() {
            return true;
        }
        let due = [self.sweep.map(|sweep| sweep.due), self.commands_due];
        due.into_iter().flatten().any(|due| due <= Instant::now())
    }
}

impl<A: Aggregate> Partition<A> {
    fn personals(&self) -> Result<&Personals, String> {
        self.context.personal.as_ref().ok_or_else(|| format!("there are no keys for {}", A::TYPE))
    }

    /// The events as they are written, where that is otherwise than they are.
    pub(super) fn seal(&self, id: &str, events: &[A::Event]) -> Result<Option<Sealed<A::Event>>, String> {
        if !A::IS_PERSONAL {
            return Ok(None);
        }
        let (mut sealed, mut used) = (events.to_vec(), KeyUse::default());
        if self.keys.of(id).is_none() && sealed.iter_mut().any(personal::is_open::<A>) {
            used.made = Some(self.make_key(id)?);
        }
        let key = used.made.as_ref().map(|(key, _)| key).or_else(|| self.keys.of(id));
        for event in &mut sealed {
            personal::seal_event::<A>(event, key, id).map_err(|error| error.to_string())?;
        }
        used.destroyed = events.iter().any(A::erases);
        Ok(Some((sealed, used)))
    }

    /// Name and value of a command that waits as it is written, where that is otherwise than it is.
    pub(super) fn seal_waiting(
        &mut self,
        id: &str,
        waiting: &CommandRecord,
        now: Timestamp,
        sink: &mut dyn Sink,
    ) -> Option<(&'static str, Vec<u8>)> {
        if !A::IS_PERSONAL {
            return None;
        }
        let value = waiting.value()?;
        let command = self.context.commands.decode(value, Foreign::Resolve, &self.settings.runtime);
        let name = command.map_or("", |command| command.name());
        if self.keys.of(id).is_none() {
            let made = self.make_key(id).map_err(|cause| tracing::error!(aggregate = id, cause, "no key can be made"));
            self.use_key(id, KeyUse { made: made.ok(), destroyed: false }, now, sink);
        }
        // Never in clear, whatever happens.
        let sealed = self.keys.of(id).map(|key| key.seal_bytes(value, &personal::place::<A>(id)));
        Some((name, sealed.unwrap_or_default()))
    }

    /// Why a command can't wait, if so: a key would have to be made for it, of somebody who would refuse it. Nobody would
    /// ever destroy that key.
    pub(super) fn must_not_wait(
        &self,
        command: &Readable<A::Command>,
        now: Timestamp,
    ) -> Result<Option<Refused>, String> {
        let id = command.aggregate_id.as_str();
        let Order::Command(order) = &command.order else { return Ok(None) };
        if !A::IS_PERSONAL || self.keys.of(id).is_some() {
            return Ok(None);
        }
        let entry = self.aggregates.get(id).cloned().unwrap_or_default();
        caught(|| Ok(Self::judge(entry, &command.headers, order, now).err()))
    }

    /// The value of a command that waits, from what was written. `None`: it was erased.
    ///
    /// # Errors
    /// Why it can't be read.
    pub(super) fn open_waiting<'a>(&self, id: &str, value: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, String> {
        if !A::IS_PERSONAL {
            return Ok(Some(value.into()));
        }
        if let Some(reason) = self.keys.damage(id) {
            return Err(reason.to_string());
        }
        let Some(key) = self.keys.of(id) else { return Ok(None) };
        let opened = key.open_bytes(value, &personal::place::<A>(id)).map_err(|error| error.to_string())?;
        Ok(opened.map(Cow::from))
    }

    /// # Errors
    /// When there is one that can't be read: another one would take its place for ever.
    pub(super) fn make_key(&self, id: &str) -> Result<(DataKey, Vec<u8>), String> {
        if let Some(reason) = self.keys.damage(id) {
            return Err(reason.to_string());
        }
        let key = DataKey::generate();
        let record = self.wrapped(id, &key)?;
        Ok((key, record))
    }

    pub(super) fn wrapped(&self, id: &str, key: &DataKey) -> Result<Vec<u8>, String> {
        let (personals, mut record) = (self.personals()?, Vec::with_capacity(128));
        let wrapped = personals.masters.wrap(key, &personal::place::<A>(id));
        personals.codec.encode(&wrapped, &mut record).map_err(|error| error.to_string())?;
        Ok(record)
    }

    /// Sends what becomes of the key, and takes note of it.
    pub(super) fn use_key(&mut self, id: &str, used: KeyUse, now: Timestamp, sink: &mut dyn Sink) {
        if let Some((key, record)) = used.made {
            self.send_key(id, Some(&record), now, sink);
            self.keys.set(id, Some(key));
        }
        if used.destroyed {
            self.send_key(id, None, now, sink);
            self.keys.set(id, None);
            self.drop_all_waiting(id, now, sink);
            self.keys.destroyed(Instant::now() + self.settings.forget_within + SLACK);
        }
    }

    /// Destroys a key that nothing is left for: it was made for a command that waited, and nobody came of it.
    pub(super) fn drop_unused_key(&mut self, id: &str, now: Timestamp, sink: &mut dyn Sink) {
        if !A::IS_PERSONAL || self.keys.of(id).is_none() {
            return;
        }
        let is_there = |entry: &Entry<A::State>| entry.version > 0 || entry.unreadable.is_some();
        if !self.aggregates.get(id).is_some_and(is_there) && self.schedule.of(id).is_empty() {
            self.use_key(id, KeyUse { made: None, destroyed: true }, now, sink);
        }
    }

    /// Sends some of the keys that are to be wrapped with the present master key.
    pub(super) fn renew_keys(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        let some: Vec<Box<str>> = self.keys.outdated.iter().take(RENEWED_AT_ONCE).cloned().collect();
        for id in some {
            self.keys.outdated.remove(&id);
            let Some(key) = self.keys.of(&id) else { continue };
            match self.wrapped(&id, key) {
                Ok(record) => {
                    self.send_key(&id, Some(&record), now, sink);
                    self.keys.renewed.push(id);
                }
                Err(cause) => tracing::error!(aggregate = &*id, cause, "a key can't be encrypted anew"),
            }
        }
        if !self.keys.renewed.is_empty() {
            // What they were wrapped with before is to be gone as well.
            self.keys.destroyed(Instant::now() + self.settings.forget_within + SLACK);
        }
    }

    /// Sends what makes Kafka forget.
    pub(super) fn send_sweep(&mut self, now: Timestamp, sink: &mut dyn Sink) {
        let at = Instant::now();
        self.keys.swept.get_or_insert((self.keys.sweep, self.keys.commands_due));
        if self.keys.sweep.is_some_and(|sweep| sweep.due <= at) {
            // It is of no use, and gone with the next compaction.
            let key = format!("sweep/{}", self.settings.slot.partition);
            self.send_key(&key, None, now, sink);
            let again = self.settings.forget_within + SLACK;
            // What was destroyed meanwhile may lie in the segment that this record is in.
            self.keys.sweep.take_if(|sweep| sweep.last.elapsed() > again);
            if let Some(sweep) = &mut self.keys.sweep {
                sweep.due = (sweep.last + again).max(at + SLACK);
            }
        }
        if self.keys.commands_due.take_if(|due| *due <= at).is_some() {
            self.headers.clear();
            self.headers.push(names::SWEEP.as_bytes(), Some(b"1"));
            sink.send(OutRecord {
                topic: Topic::Commands,
                partition: self.settings.slot.partition,
                key: None,
                value: None,
                headers: &self.headers,
                timestamp_ms: now.as_millisecond(),
            });
        }
    }

    fn send_key(&mut self, key: &str, value: Option<&[u8]>, now: Timestamp, sink: &mut dyn Sink) {
        self.headers.clear();
        sink.send(OutRecord {
            topic: Topic::Keys,
            partition: self.settings.slot.partition,
            key: Some(key.as_bytes()),
            value,
            headers: &self.headers,
            timestamp_ms: now.as_millisecond(),
        });
    }

    /// All keys are read.
    ///
    /// # Errors
    /// When the master key of one is not there, or another one has its name: nothing can be told from what was erased.
    pub(super) fn end_keys(&mut self) -> Result<(), RestoreError> {
        if !A::IS_PERSONAL {
            return Ok(());
        }
        // There may be some that were handled just before.
        self.keys.command_came(self.settings.forget_within);
        let place = format!("{}/{}", self.context.topic(Topic::Keys), self.settings.slot.partition);
        if let Some((id, Damage { offset, error, .. })) = self.keys.unusable() {
            return Err(RestoreError(format!(
                "{place}: the key of {id} at offset {offset} can't be used: {error}; give MILLRACE_MASTER_KEYS the master \
                 key that it was encrypted with, under that name: without it nobody can tell this person from an erased one"
            )));
        }
        for (id, Damage { offset, error, .. }) in &self.keys.damaged {
            tracing::error!(aggregate = &**id, place, offset, %error, "a key can't be read; commands of its aggregate are refused");
        }
        Ok(())
    }

    /// A record of the key topic; a later one of the same key counts instead of it.
    ///
    /// # Errors
    /// When the registry can't be asked.
    pub(super) fn read_key_back(&mut self, record: &Stored<'_>) -> Result<(), RestoreError> {
        // Others are what sweeps.
        let Ok(id) = AggregateId::from_key(record.key) else { return Ok(()) };
        let id = id.as_str();
        self.keys.outdated.remove(id);
        let before = (self.keys.known.remove(id), self.keys.damaged.remove(id));
        if record.value.is_none() || before.0.is_some() || before.1.is_some() {
            // It may have been destroyed, or encrypted anew, long ago, and the segment be closed by the next record; or just now.
            self.keys.destroyed(Instant::now());
        }
        let Some(value) = record.value else { return Ok(()) };
        let personals = self.personals().map_err(RestoreError)?;
        let unwrapped = match personals.codec.decode(value, Foreign::Refuse, &self.settings.runtime) {
            Ok(wrapped) => {
                let key = personals.masters.unwrap(&wrapped, &personal::place::<A>(id));
                key.map(|key| (key, personals.masters.is_outdated(&wrapped), wrapped))
            }
            Err(DecodeError::Unavailable(reason)) => return Err(RestoreError(reason)),
            Err(_) => Err(KeyError::Malformed),
        };
        match unwrapped {
            Ok((key, is_outdated, KeyRecord::WrappedKey(wrapped))) => {
                if is_outdated {
                    self.keys.outdated.insert(id.into());
                }
                if !self.keys.proven.contains(&wrapped.master) {
                    self.keys.proven.insert(wrapped.master);
                }
                self.keys.known.insert(id.into(), key);
            }
            Err(error) => {
                let reason = format!("the key of {id} can't be read: {error}").into();
                self.keys.damaged.insert(id.into(), Damage { offset: record.offset, error, reason });
            }
        }
        Ok(())
    }
}

/// A state as it is kept.
pub(super) fn sealed<A: Aggregate>(keys: &Keys, id: &str, state: &A::State) -> Result<A::Snapshot, String> {
    let mut snapshot = A::Snapshot::from(state);
    if A::IS_PERSONAL {
        personal::seal_snapshot::<A>(&mut snapshot, keys.of(id), id).map_err(|error| error.to_string())?;
    }
    Ok(snapshot)
}

/// Whether a record of the command topic is no command, but what has Kafka close a segment.
pub fn is_sweep<'a>(value: Option<&[u8]>, mut headers: impl Iterator<Item = &'a str>) -> bool {
    value.is_none() && headers.any(|name| name == names::SWEEP)
}
