//! Commands that were told to wait: each still does, or was put back into the command topic, or has another outcome.

use std::collections::{HashMap, HashSet};

use millrace_shared::{
    domain::Aggregate,
    envelope::{CommandHeaders, names},
    kafka::{bulk::Record, topics::Topic},
};

use super::{Error, Kind, headers, outcomes::key, partition::PartitionCheck};

/// Those of a partition, by aggregate and command id.
#[derive(Default)]
pub(super) struct Waiting {
    told: HashMap<u128, Told>,
    /// Those of them that the topic of scheduled commands has.
    present: HashSet<u128>,
    /// The topics are read; what comes now are the ends of live ones.
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
    pub(super) fn found(&mut self, key: u128) {
        self.told.remove(&key);
    }
}

impl<A: Aggregate> PartitionCheck<'_, A> {
    /// An outcome tells a command to wait.
    pub(super) fn told_to_wait(&mut self, record: &Record<'_>, key: u128, aggregate: u32) {
        let place = headers::text(record, names::POSITION).ok().and_then(headers::place);
        let command = place.filter(|(topic_id, ..)| *topic_id == self.topic_id).map_or(-1, |(.., offset)| offset);
        let told = Told { aggregate, outcome: record.offset(), command };
        if self.waiting.over {
            // It was put back meanwhile, and waits again.
            self.waiting.found(key);
        } else {
            self.waiting.told.insert(key, told);
        }
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
            let key = key(id, &command_id);
            if self.waiting.told.get(&key).is_some_and(|told| told.command < record.offset()) {
                self.waiting.found(key);
            }
        }
        Ok(())
    }

    /// Takes a record of the topic of scheduled commands. It is compacted, but not at once: the last one of a key counts.
    pub(super) fn scheduled(&mut self, record: &Record<'_>) {
        let text = record.key().and_then(|key| std::str::from_utf8(key).ok());
        let Some((id, command_id)) = text.and_then(|text| text.split_once('/')) else { return };
        let (key, waiting) = (key(id, command_id), &mut self.waiting);
        if record.value().is_none() {
            waiting.present.remove(&key);
        } else if waiting.told.contains_key(&key) {
            waiting.present.insert(key);
        }
    }

    /// The topic of scheduled commands is read.
    pub(super) fn scheduled_end(&mut self) {
        for key in std::mem::take(&mut self.waiting.present) {
            self.waiting.found(key);
        }
        self.waiting.over = true;
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
