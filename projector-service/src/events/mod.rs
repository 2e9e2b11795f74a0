//! Events become views: what they are read as ([`Incoming`]), and how a batch is written ([`fold`](fold::fold)).

pub mod fold;
mod forget;
pub mod people;
mod trim;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use millrace_shared::{
    codec::{Codec, DecodeError, Foreign},
    domain::{Aggregate, AggregateId, Projection},
    envelope::EventMeta,
    kafka::{
        bulk::Record,
        partition_of,
        topics::{Names, Topic},
    },
    panics::Quiet,
    records::Records,
    views::{Keys, Parked, history, people::Opener},
};

use crate::{
    command::Command,
    keyring::Keyring,
    store::Store,
    target::{At, Batch, Error, Target, Trimmed, Unreadable},
};
use fold::Folded;
use people::People;

/// The view of an aggregate type.
pub type View<A> = <<A as Aggregate>::Projection as Projection>::View;

/// One record of an events topic.
#[derive(Debug)]
pub struct Incoming<E> {
    /// The aggregate's id; empty when the key is none.
    pub id: String,
    /// The event, or why it is none.
    pub content: Content<E>,
}

/// What a record says, or why it is no event.
pub type Content<E> = Result<Happened<E>, String>;

/// An event.
#[derive(Debug)]
pub struct Happened<E> {
    /// When it happened, and where it stands.
    pub meta: EventMeta,
    /// What happened.
    pub event: E,
    /// As its history keeps it.
    pub packed: Vec<u8>,
}

/// What is kept in memory for a partition.
#[derive(Debug, Default)]
pub struct Memory {
    /// All counters, absolute.
    pub counters: BTreeMap<String, i128>,
    /// All parked aggregates.
    pub parked: BTreeMap<String, Parked>,
}

/// The views of the batch's aggregates as Redis has them; an error when one can't be read.
pub type Loaded<V> = HashMap<String, Result<Option<V>, String>>;

/// Limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Changes kept per partition; 0 for none.
    pub changes_window: u32,
    /// Events kept per aggregate.
    pub history_max: u64,
    /// Parked aggregates per partition.
    pub parked_max: usize,
}

/// What can be done to what a projection of events has parked.
pub trait Parking: Target<Item = Incoming<Self::Event>> {
    /// The events.
    type Event: Records;

    /// The parked aggregates.
    fn parked(memory: &mut Self::Memory) -> &mut BTreeMap<String, Parked>;

    /// What events become that waited: of these, no aggregate may be parked in memory any more. They are told to the
    /// change feed, where there is one, by ids of their own.
    ///
    /// # Errors
    /// As [`Target::fold`].
    fn replay(
        &self,
        keys: &Keys,
        memory: &mut Self::Memory,
        items: Vec<At<Self::Item>>,
        store: &mut Store,
        change_id: &mut dyn FnMut(i64) -> String,
    ) -> Result<Batch, Error>;
}

/// The events of an aggregate type, and the views made of them.
pub struct Events<A: Aggregate> {
    reader: Reader<A::Event>,
    /// Of a type with personal data.
    keyring: Option<Keyring>,
    label: &'static str,
    topic: String,
    redis_prefix: String,
    version: u32,
    limits: Limits,
}

/// Takes events out of records.
pub struct Reader<E: Records> {
    /// Decodes.
    pub codec: Arc<Codec<E>>,
    /// Where the registry is asked.
    pub runtime: tokio::runtime::Handle,
    /// Partitions of the topic.
    pub partitions: i32,
}

impl<A: Aggregate> Events<A> {
    /// Those of one deployment, for one version of the projection.
    pub fn new(
        codec: Arc<Codec<A::Event>>,
        keyring: Option<Keyring>,
        runtime: tokio::runtime::Handle,
        names: &Names,
        version: u32,
        partitions: i32,
        limits: Limits,
    ) -> Self {
        Self {
            reader: Reader { codec, runtime, partitions },
            keyring,
            // Versions are few.
            label: format!("{}.v{version}", A::Projection::NAME).leak(),
            topic: names.topic(A::TYPE, Topic::Events),
            redis_prefix: names.redis_prefix().to_owned(),
            version,
            limits,
        }
    }
}

impl<A: Aggregate> Events<A> {
    /// Reads events.
    pub fn codec(&self) -> &Codec<A::Event> {
        &self.reader.codec
    }

    /// What a record says, whose key is an id; or why it is no event.
    pub fn content(&self, id: &AggregateId, record: &Record<'_>) -> Result<Content<A::Event>, Unreadable> {
        self.reader.content(id, record)
    }

    /// What personal data is opened with, where there is any.
    pub fn opener(&self) -> Option<&Opener> {
        self.keyring.as_ref().map(|keyring| &keyring.opener)
    }

    /// People of a partition, with the keys that Redis has of them.
    pub fn people(&self, partition: i32, stored: HashMap<String, Vec<u8>>) -> People<'_, A> {
        People::new(self.keyring.as_ref(), partition, stored)
    }
}

impl<E: Records> Reader<E> {
    /// A record as an event of an aggregate, or why it is none.
    pub fn read(&self, record: &Record<'_>) -> Result<Incoming<E>, Unreadable> {
        match AggregateId::from_key(record.key()) {
            Ok(id) => Ok(Incoming { content: self.content(&id, record)?, id: id.into() }),
            Err(reason) => Ok(Incoming { id: String::new(), content: Err(reason) }),
        }
    }

    /// What a record says, whose key is an id; or why it is no event.
    pub fn content(&self, id: &AggregateId, record: &Record<'_>) -> Result<Content<E>, Unreadable> {
        let home = partition_of(id.as_str().as_bytes(), self.partitions);
        if home != record.partition() {
            return Ok(Err(format!("it lies in partition {}, but its key belongs into {home}", record.partition())));
        }
        let meta = match EventMeta::read(record.raw_headers()) {
            Ok(meta) => meta,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(value) = record.value() else { return Ok(Err("the record has no value".into())) };
        // A decoder that panics on somebody's bytes must not take the service with it.
        let decode = || self.codec.decode_recorded(value, Foreign::Resolve, &self.runtime);
        match catch_unwind(AssertUnwindSafe(decode)) {
            Ok(Ok(recorded)) => {
                let packed = history::pack(&meta, &recorded);
                Ok(Ok(Happened { meta, event: recorded.value, packed }))
            }
            Ok(Err(DecodeError::Unavailable(reason))) => Err(Unreadable(reason)),
            Ok(Err(error)) => Ok(Err(error.to_string())),
            Err(_) => Ok(Err("decoding it panicked".into())),
        }
    }
}

impl<A: Aggregate> Parking for Events<A> {
    type Event = A::Event;

    fn parked(memory: &mut Memory) -> &mut BTreeMap<String, Parked> {
        &mut memory.parked
    }

    fn replay(
        &self,
        keys: &Keys,
        memory: &mut Memory,
        items: Vec<At<Self::Item>>,
        store: &mut Store,
        change_id: &mut dyn FnMut(i64) -> String,
    ) -> Result<Batch, Error> {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        let wanted: BTreeSet<&str> = items
            .iter()
            .filter(|at| at.item.content.is_ok() && !memory.parked.contains_key(&at.item.id))
            .map(|at| at.item.id.as_str())
            .collect();
        let names: Vec<String> = wanted.iter().map(|id| keys.view(id)).collect();
        let values = store.strings(&names)?;
        let mut people = People::nobody();
        if let Some(first) = wanted.first().filter(|_| A::IS_PERSONAL) {
            let ids: Vec<&str> = wanted.iter().copied().collect();
            let stored = ids.iter().zip(store.fields(&keys.keys(), &ids)?);
            let stored = stored.filter_map(|(id, key)| Some(((*id).to_owned(), key?))).collect();
            people = self.people(partition_of(first.as_bytes(), self.reader.partitions), stored);
        }
        let loaded =
            wanted.into_iter().zip(values).map(|(id, value)| (id.to_owned(), parse::<View<A>>(value))).collect();
        let Folded { mut batch, grown, forgotten } =
            fold::fold::<A>(keys, self.limits, memory, &mut people, loaded, items, change_id)?;
        batch.commands.extend(trim::trim::<A>(keys, &self.reader.codec, grown, &mut people, store)?);
        batch.commands.extend(forget::forget::<A>(keys, &self.reader.codec, forgotten, store)?);
        Ok(batch)
    }
}

impl<A: Aggregate> Target for Events<A> {
    type Item = Incoming<A::Event>;
    type Memory = Memory;

    fn label(&self) -> &'static str {
        self.label
    }

    fn topic(&self) -> &str {
        &self.topic
    }

    fn fold_version(&self) -> u32 {
        A::Projection::VERSION
    }

    fn keys(&self, partition: i32) -> Keys {
        Keys::projection(&self.redis_prefix, A::Projection::NAME, self.version, partition)
    }

    fn when_trimmed(&self) -> Trimmed {
        Trimmed::Stop
    }

    fn read(&self, record: &Record<'_>) -> Result<Self::Item, Unreadable> {
        self.reader.read(record)
    }

    fn remember(&self, keys: &Keys, store: &mut Store) -> Result<Memory, Error> {
        let damaged = |key: String| Error::Stop(format!("{key} in Redis is damaged: empty Redis to build it again"));
        let mut memory = Memory::default();
        for (name, value) in store.hash(&keys.counters())? {
            let value = value.parse().map_err(|_| damaged(keys.counters()))?;
            memory.counters.insert(name, value);
        }
        for (id, parked) in store.hash(&keys.parked())? {
            let parked = serde_json::from_str(&parked).map_err(|_| damaged(keys.parked()))?;
            memory.parked.insert(id, parked);
        }
        Ok(memory)
    }

    fn mend(&self, partition: i32, keys: &Keys, store: &mut Store) -> Result<Vec<Command>, Error> {
        self.keyring.as_ref().map_or(Ok(Vec::new()), |keyring| people::renewed(keyring, partition, keys, store))
    }

    fn fold(
        &self,
        keys: &Keys,
        memory: &mut Memory,
        items: Vec<At<Self::Item>>,
        store: &mut Store,
    ) -> Result<Batch, Error> {
        // From 1 on: Redis has no id 0-0.
        self.replay(keys, memory, items, store, &mut |offset| format!("{offset}-1"))
    }

    fn written(&self, _: &Keys, _: &mut Store) -> Result<(), Error> {
        Ok(())
    }

    fn closed(&self, partition: i32) {
        self.keyring.iter().for_each(|keyring| keyring.forget(partition));
    }
}

fn parse<V: serde::de::DeserializeOwned>(value: Option<Vec<u8>>) -> Result<Option<V>, String> {
    let Some(value) = value else { return Ok(None) };
    // Without the error's own words, which quote values: they may be personal.
    let unreadable = |error: serde_json::Error| format!("its view in Redis can't be read, at byte {}", error.column());
    serde_json::from_slice(&value).map(Some).map_err(unreadable)
}
