//! Events become views by another key than the aggregate: what is kept ([`Memory`]), and how a batch is written
//! ([`fold`](fold::fold)).

pub mod fold;

use std::{collections::BTreeMap, sync::Arc};

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Grouping},
    kafka::{
        bulk::Record,
        topics::{Names, Topic},
    },
    views::{Keys, Parked},
};
use serde::{Deserialize, Serialize};

use crate::{
    events::{Incoming, Parking, Reader},
    store::Store,
    target::{At, Batch, Error, Target, Trimmed, Unreadable},
};

/// The events that a grouping folds.
pub type Event<G> = <<G as Grouping>::Aggregate as Aggregate>::Event;

/// What is kept of an aggregate: the last sequence that was applied, and what its grouping has to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member<M> {
    /// The last sequence.
    pub sequence: u64,
    /// See [`Grouping::Member`].
    pub member: M,
}

/// What is kept in memory for a partition.
#[derive(Debug, Default)]
pub struct Memory {
    /// All parked aggregates.
    pub parked: BTreeMap<String, Parked>,
}

/// What Redis has under some names; an error where it can't be read.
pub type Loaded<T> = BTreeMap<String, Result<T, String>>;

/// The events of an aggregate type, and the views made of them by another key.
pub struct Groups<G: Grouping> {
    reader: Reader<Event<G>>,
    label: &'static str,
    topic: String,
    redis_prefix: String,
    version: u32,
    parked_max: usize,
}

impl<G: Grouping> Groups<G> {
    /// Those of one deployment, for one version of the projection.
    pub fn new(
        codec: Arc<Codec<Event<G>>>,
        runtime: tokio::runtime::Handle,
        names: &Names,
        version: u32,
        partitions: i32,
        parked_max: usize,
    ) -> Self {
        Self {
            reader: Reader { codec, runtime, partitions },
            // Versions are few.
            label: format!("{}.v{version}", G::NAME).leak(),
            topic: names.topic(G::Aggregate::TYPE, Topic::Events),
            redis_prefix: names.redis_prefix().to_owned(),
            version,
            parked_max,
        }
    }
}

impl<G: Grouping> Parking for Groups<G> {
    type Event = Event<G>;

    fn parked(memory: &mut Memory) -> &mut BTreeMap<String, Parked> {
        &mut memory.parked
    }

    fn replay(
        &self,
        keys: &Keys,
        memory: &mut Memory,
        items: Vec<At<Self::Item>>,
        store: &mut Store,
        _: &mut dyn FnMut(i64) -> String,
    ) -> Result<Batch, Error> {
        self.fold(keys, memory, items, store)
    }
}

impl<G: Grouping> Target for Groups<G> {
    type Item = Incoming<Event<G>>;
    type Memory = Memory;

    fn label(&self) -> &'static str {
        self.label
    }

    fn topic(&self) -> &str {
        &self.topic
    }

    fn fold_version(&self) -> u32 {
        G::VERSION
    }

    fn keys(&self, partition: i32) -> Keys {
        Keys::projection(&self.redis_prefix, G::NAME, self.version, partition)
    }

    fn when_trimmed(&self) -> Trimmed {
        Trimmed::Stop
    }

    fn read(&self, record: &Record<'_>) -> Result<Self::Item, Unreadable> {
        self.reader.read(record)
    }

    fn remember(&self, keys: &Keys, store: &mut Store) -> Result<Memory, Error> {
        let mut memory = Memory::default();
        for (id, parked) in store.hash(&keys.parked())? {
            let damaged =
                || Error::Stop(format!("{} in Redis is damaged: empty Redis to build it again", keys.parked()));
            memory.parked.insert(id, serde_json::from_str(&parked).map_err(|_| damaged())?);
        }
        Ok(memory)
    }

    fn fold(
        &self,
        keys: &Keys,
        memory: &mut Memory,
        items: Vec<At<Self::Item>>,
        store: &mut Store,
    ) -> Result<Batch, Error> {
        let mut ids: Vec<&str> = items.iter().map(|at| at.item.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        let members = load(store, &keys.members(), &ids)?;
        let placed = fold::place::<G>(memory, members, items);
        let mut groups: Vec<&str> = placed.groups().collect();
        groups.sort_unstable();
        groups.dedup();
        let parts = load(store, &keys.parts(), &groups)?;
        fold::fold::<G>(keys, self.parked_max, memory, parts, placed)
    }

    fn written(&self, _: &Keys, _: &mut Store) -> Result<(), Error> {
        Ok(())
    }
}

/// Some fields of a hash of JSON documents; those that are not there are left out.
fn load<T: serde::de::DeserializeOwned>(store: &mut Store, key: &str, fields: &[&str]) -> Result<Loaded<T>, Error> {
    let values = store.fields(key, fields)?;
    let parse = |json: Vec<u8>| serde_json::from_slice(&json).map_err(|error| format!("{key} can't be read: {error}"));
    let there = fields.iter().zip(values).filter_map(|(field, value)| Some(((*field).to_owned(), parse(value?))));
    Ok(there.collect())
}
