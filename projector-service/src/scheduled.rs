//! Commands that wait until they are due, for those who ask what is scheduled.
//!
//! The topic is compacted: what lies in it is what waits, so an emptied Redis is filled from it again. Deadlines of
//! processes lie there as well; they are nobody's business.

use std::{collections::BTreeMap, marker::PhantomData};

use millrace_shared::{
    codec::{Codec, DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::{CommandHeaders, names, rfc3339_micros},
    kafka::{
        bulk::Record,
        topics::{Names, Topic},
    },
    records::Records,
    views::Keys,
};
use serde_json::{Map, Value};

use crate::{
    command::Command,
    store::Store,
    target::{At, Batch, Error, Target, Trimmed, Unreadable},
};

/// They are kept in one form so far.
const VERSION: u32 = 1;

/// One record of the topic.
#[derive(Debug)]
pub enum Incoming {
    /// A command of an aggregate waits, or does no longer.
    Of {
        /// The aggregate.
        id: AggregateId,
        /// The command.
        command_id: String,
        /// What is told about it.
        shown: Option<String>,
    },
    /// A deadline.
    Other,
    /// None that this release can read, and why.
    Unreadable(String),
}

/// The scheduled commands of an aggregate type.
pub struct Scheduled<A: Aggregate> {
    codec: Codec<A::Command>,
    runtime: tokio::runtime::Handle,
    label: &'static str,
    topic: String,
    redis_prefix: String,
    aggregate: PhantomData<fn() -> A>,
}

impl<A: Aggregate> Scheduled<A> {
    /// Those of one deployment.
    pub fn new(codec: Codec<A::Command>, runtime: tokio::runtime::Handle, names: &Names) -> Self {
        Self {
            codec,
            runtime,
            // Once for each aggregate type and process.
            label: format!("{}-scheduled", A::TYPE).leak(),
            topic: names.topic(A::TYPE, Topic::Scheduled),
            redis_prefix: names.redis_prefix().to_owned(),
            aggregate: PhantomData,
        }
    }

    fn sort(&self, record: &Record<'_>) -> Result<Incoming, DecodeError> {
        let malformed = |reason: &str| DecodeError::Malformed(reason.to_owned());
        let key = record.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        let (id, command_id) = key.split_once('/').ok_or_else(|| malformed("its key is none"))?;
        let id = AggregateId::new(id).map_err(DecodeError::Malformed)?;
        if command_id.starts_with(&format!("{}/{id}/", A::TYPE)) {
            return Ok(Incoming::Other);
        }
        let shown = match record.value() {
            None => None,
            // What waits for an answer is being decided.
            Some(_) if record.headers().any(|(name, _)| name == names::CLAIM) => None,
            Some(value) => {
                let headers = CommandHeaders::read(record.headers()).map_err(DecodeError::Malformed)?;
                let due = headers.not_before.ok_or_else(|| malformed("it names no time"))?;
                // What may be personal is encrypted, and shown to nobody.
                let sealed = record.headers().find(|(name, _)| A::IS_PERSONAL && *name == names::SEALED);
                let (name, fields) = match sealed.and_then(|(_, name)| std::str::from_utf8(name?).ok()) {
                    Some(name) => (name.to_owned(), Value::Object(Map::new())),
                    None => {
                        let command = self.codec.decode(value, Foreign::Resolve, &self.runtime)?;
                        let fields = serde_json::to_value(&command).map_err(|error| malformed(&error.to_string()))?;
                        (command.name().to_owned(), fields)
                    }
                };
                let shown = Map::from_iter([
                    ("command_id".to_owned(), Value::from(command_id)),
                    ("not_before".to_owned(), rfc3339_micros(due).into()),
                    ("type".to_owned(), name.into()),
                    ("data".to_owned(), fields),
                ]);
                Some(Value::Object(shown).to_string())
            }
        };
        Ok(Incoming::Of { id, command_id: command_id.to_owned(), shown })
    }
}

impl<A: Aggregate> Target for Scheduled<A> {
    type Item = Incoming;
    type Memory = ();

    fn label(&self) -> &'static str {
        self.label
    }

    fn topic(&self) -> &str {
        &self.topic
    }

    fn fold_version(&self) -> u32 {
        VERSION
    }

    fn keys(&self, partition: i32) -> Keys {
        Keys::scheduled(&self.redis_prefix, A::TYPE, partition)
    }

    fn when_trimmed(&self) -> Trimmed {
        Trimmed::GoOn
    }

    fn read(&self, record: &Record<'_>) -> Result<Incoming, Unreadable> {
        match self.sort(record) {
            Ok(incoming) => Ok(incoming),
            Err(DecodeError::Unavailable(reason)) => Err(Unreadable(reason)),
            Err(error) => Ok(Incoming::Unreadable(error.to_string())),
        }
    }

    fn remember(&self, _: &Keys, _: &mut Store) -> Result<(), Error> {
        Ok(())
    }

    fn fold(&self, keys: &Keys, (): &mut (), items: Vec<At<Incoming>>, _: &mut Store) -> Result<Batch, Error> {
        Ok(fold(keys, self.label, items))
    }

    fn written(&self, _: &Keys, _: &mut Store) -> Result<(), Error> {
        Ok(())
    }
}

/// Of each command the last record counts.
fn fold(keys: &Keys, label: &str, items: Vec<At<Incoming>>) -> Batch {
    let mut batch = Batch::default();
    let mut last = BTreeMap::new();
    for At { offset, item } in items {
        match item {
            Incoming::Of { id, command_id, shown } => {
                batch.applied += 1;
                last.insert((id, command_id), shown);
            }
            Incoming::Other => batch.repeated += 1,
            Incoming::Unreadable(reason) => {
                tracing::warn!(projection = label, offset, reason, "what is scheduled can't be shown");
                batch.repeated += 1;
            }
        }
    }
    for ((id, command_id), shown) in last {
        let of = keys.waiting(id.as_str());
        batch.commands.push(match shown {
            Some(shown) => Command::new("HSET", of).with(command_id).with(shown),
            None => Command::new("HDEL", of).with(command_id),
        });
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_command_the_last_record_counts() {
        let of = |command_id: &str, shown: Option<&str>| Incoming::Of {
            id: AggregateId::new("acc-42").unwrap(),
            command_id: command_id.into(),
            shown: shown.map(str::to_owned),
        };
        let items = [of("c1", Some("{}")), of("c2", Some("{}")), Incoming::Other, of("c1", None)];
        let items = items.into_iter().zip(10..).map(|(item, offset)| At { offset, item }).collect();
        let batch = fold(&Keys::scheduled("", "bank-account", 3), "test", items);
        let words = |command: &Command| {
            command.words().iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            batch.commands.iter().map(words).collect::<Vec<_>>(),
            [
                "HDEL {bank-account.scheduled:3}:waiting:acc-42 c1",
                "HSET {bank-account.scheduled:3}:waiting:acc-42 c2 {}",
            ]
        );
        assert_eq!((batch.applied, batch.repeated), (3, 1));
    }
}
