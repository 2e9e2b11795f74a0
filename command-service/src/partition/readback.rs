//! What a partition learns from the log when it is taken over.

use jiff::Timestamp;
use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::{EventMeta, names},
    fingerprint::Fingerprint,
    kafka::topics::Topic,
    outcome::OutcomeRecord,
    personal,
};

use super::{
    Partition, RestoreError, Settings, Stored, is_remembered,
    local::note,
    memory::{CommandKey, Remembered},
};
use crate::types::CommandType;

impl<A: Aggregate> Partition<A> {
    pub(super) fn read_event_back(&mut self, record: &Stored<'_>) -> Result<(), RestoreError> {
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
        self.load(id.as_str()).map_err(RestoreError)?;
        if self.aggregates.get(id.as_str()).is_some_and(|entry| meta.sequence <= entry.read_back) {
            return Ok(());
        }
        let decoded =
            self.context.events.decode(record.value.unwrap_or_default(), Foreign::Refuse, &self.settings.runtime);
        let damage = self.keys.damage(id.as_str());
        let entry = self.aggregates.entry(id.as_str().into()).or_default();
        let unreadable = match decoded {
            Err(DecodeError::Unavailable(reason)) => return Err(RestoreError(reason)),
            Err(error) => Some(error.to_string()),
            Ok(_) if meta.sequence != entry.version + 1 => {
                Some(format!("sequence {} follows {}", meta.sequence, entry.version))
            }
            Ok(_) if damage.is_some() => damage.map(|reason| reason.to_string()),
            Ok(mut event) => match personal::open_event::<A>(&mut event, self.keys.of(id.as_str()), id.as_str()) {
                Err(error) => Some(error.to_string()),
                Ok(()) => {
                    A::evolve(&mut entry.state, &event);
                    entry.version = meta.sequence;
                    entry.last_time = entry.last_time.max(meta.time);
                    note(&mut self.snapshots, self.local.as_mut(), id.as_str(), entry);
                    self.snapshots.count_events(1);
                    None
                }
            },
        };
        if let Some(reason) = unreadable {
            tracing::error!(aggregate = %id, offset = record.offset, reason, "an aggregate's history can't be read; its commands are refused");
            entry.unreadable.get_or_insert_with(|| reason.into());
            // A checkpoint would cover what a later release may be able to read.
            self.unreadable = true;
        }
        Ok(())
    }

    pub(super) fn read_outcome_back(&mut self, record: &Stored<'_>, now: Timestamp) -> Result<(), RestoreError> {
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
            let key = CommandKey { aggregate_id: &outcome.aggregate_id, command_id: &outcome.command_id };
            let read = self.memory.read_back(key, remembered);
            if let Some(local) = &mut self.local {
                local.count_outcome();
                if read.is_err() {
                    local.mark_broken();
                }
            }
            read.map_err(|error| RestoreError(error.to_string()))?;
        }
        Ok(())
    }
}

/// The offset of a `<topic id>/<partition>/<offset>` that is of this very command partition.
fn own_offset(position: &str, settings: &Settings) -> Option<i64> {
    let mut parts = position.rsplitn(3, '/');
    let (offset, partition, topic_id) = (parts.next()?, parts.next()?, parts.next()?);
    (topic_id == settings.topic_id && partition.parse() == Ok(settings.slot.partition)).then(|| offset.parse().ok())?
}
