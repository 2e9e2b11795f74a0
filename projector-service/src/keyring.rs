//! The keys that personal data is encrypted under, as their topic has them: what a projection asks when Redis has none.
//!
//! A key and the first event that needs it are committed together, but become visible one after the other. So a key that is
//! not there is only taken for destroyed when the topic was read up to where it ended *after* the event was read.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use millrace_shared::{
    codec::{Codec, DecodeError, Foreign},
    domain::Aggregate,
    kafka::{
        self, Logged,
        bulk::{BulkReader, Item, Record},
        reader_config,
        topics::{Names, Topic},
    },
    personal::{KeyRecord, MasterKeys},
    registry::{self, Registry},
    views::people::Opener,
};
use rdkafka::{consumer::BaseConsumer, error::KafkaError};
use tokio::runtime::Handle;

const POLL: Duration = Duration::from_millis(50);
/// Somebody's open transaction may lie in the way for so long.
const STALL: Duration = Duration::from_secs(20);

/// Opens personal data of one aggregate type. A key takes about 200 bytes, of each person in the partitions that were read.
pub struct Keyring {
    topic: String,
    bootstrap: String,
    client_id: String,
    /// Opens with what is found here, or in Redis.
    pub opener: Opener,
    codec: Codec<KeyRecord>,
    runtime: Handle,
    read: Mutex<Read>,
}

/// A person, and the key unless it was destroyed.
type Taken = (String, Option<Vec<u8>>);

#[derive(Default)]
struct Read {
    clients: Option<(BulkReader, BaseConsumer<Logged>)>,
    partitions: HashMap<i32, Partition>,
}

struct Partition {
    position: i64,
    /// As Redis keeps them.
    keys: HashMap<String, Vec<u8>>,
}

impl Keyring {
    /// Reads nothing yet.
    ///
    /// # Errors
    /// When our schema can't be used.
    pub fn new(
        topic: String,
        (bootstrap, client_id): (String, String),
        master: MasterKeys,
        registry: Registry,
        runtime: Handle,
    ) -> Result<Self, registry::Error> {
        let (opener, codec) = (Opener::new(master)?, Codec::reading(registry)?);
        Ok(Self { topic, bootstrap, client_id, opener, codec, runtime, read: Mutex::default() })
    }

    /// Reads a partition up to where it ends now.
    ///
    /// # Errors
    /// When Kafka or the registry does not answer: to be tried again.
    pub fn catch_up(&self, partition: i32) -> Result<(), String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let caught_up = self.read_on(&mut read, partition);
        if caught_up.is_err() {
            // Whatever it was, it is read anew.
            *read = Read::default();
        }
        caught_up.map_err(|error| format!("{}/{partition}: {error}", self.topic))
    }

    /// The key of a person, as it was when its partition was read.
    pub fn find(&self, partition: i32, id: &str) -> Option<Vec<u8>> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.partitions.get(&partition)?.keys.get(id).cloned()
    }

    /// What was read of a partition is no longer needed. All is read anew, by another client: of one that is told to stop
    /// records may still come, which would be taken for those of a later beginning.
    pub fn forget(&self, partition: i32) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.partitions.contains_key(&partition) {
            *read = Read::default();
        }
    }

    fn read_on(&self, read: &mut Read, partition: i32) -> Result<(), String> {
        let failed = |error: KafkaError| format!("Kafka: {error}");
        let Read { clients, partitions } = read;
        let (reader, watcher) = match clients {
            Some(clients) => clients,
            none => {
                let reader = BulkReader::new(&reader_config(&self.bootstrap, &self.client_id)).map_err(failed)?;
                reader.meet(&[&self.topic]).map_err(failed)?;
                none.insert((reader, kafka::watcher(&self.bootstrap, &self.client_id).map_err(failed)?))
            }
        };
        let (first, end) = kafka::watermarks(watcher, &self.topic, partition).map_err(failed)?;
        if let Entry::Vacant(none) = partitions.entry(partition) {
            reader.add(&[(&self.topic, partition, first)]).map_err(failed)?;
            none.insert(Partition { position: first, keys: HashMap::new() });
        }
        let mut moved = Instant::now();
        let mut trouble = None;
        loop {
            let position = partitions.get(&partition).map_or(i64::MAX, |partition| partition.position);
            if position >= end {
                return Ok(());
            }
            if moved.elapsed() > STALL {
                return Err(format!("no progress from {position} to {end}: somebody's transaction is open"));
            }
            reader
                .read(POLL, |item| match item {
                    Item::Record(record) => {
                        let Some(partition) = partitions.get_mut(&record.partition()) else { return };
                        moved = Instant::now();
                        match self.take(&record) {
                            Ok(Some((id, Some(key)))) => drop(partition.keys.insert(id, key)),
                            Ok(Some((id, None))) => drop(partition.keys.remove(&id)),
                            Ok(None) => {}
                            Err(reason) => trouble = Some(reason),
                        }
                        partition.position = record.offset() + 1;
                    }
                    Item::End { partition, offset, .. } => {
                        if let Some(partition) = partitions.get_mut(&partition) {
                            partition.position = partition.position.max(offset);
                        }
                    }
                    Item::Failed { error, .. } => trouble = Some(format!("Kafka: {error}")),
                })
                .map_err(failed)?;
            if let Some(reason) = trouble {
                return Err(reason);
            }
        }
    }

    /// What a record says.
    fn take(&self, record: &Record<'_>) -> Result<Option<Taken>, String> {
        let Some(id) = record.key().and_then(|key| std::str::from_utf8(key).ok()) else { return Ok(None) };
        let Some(value) = record.value() else { return Ok(Some((id.to_owned(), None))) };
        match self.codec.decode(value, Foreign::Resolve, &self.runtime) {
            Ok(key) => {
                let packed = self.opener.packed(&key).map_err(|error| error.to_string())?;
                Ok(Some((id.to_owned(), Some(packed))))
            }
            Err(DecodeError::Unavailable(reason)) => Err(reason),
            Err(error) => {
                tracing::warn!(self.topic, offset = record.offset(), "a record is no key: {error}");
                // Not the same as none: it opens nothing.
                Ok(Some((id.to_owned(), Some(Vec::new()))))
            }
        }
    }
}

/// The one of an aggregate type, where it has personal data.
///
/// # Errors
/// When our schema can't be used, or there are no master keys.
pub fn keyring<A: Aggregate>(
    names: &Names,
    clients: (String, String),
    master: Option<&MasterKeys>,
    registry: &Registry,
    runtime: &Handle,
) -> Result<Option<Keyring>, registry::Error> {
    if !A::IS_PERSONAL {
        return Ok(None);
    }
    let missing =
        || registry::Error::Unavailable(format!("{} have personal data: set MILLRACE_MASTER_KEYS", A::COLLECTION));
    let master = master.ok_or_else(missing)?.clone();
    Keyring::new(names.topic(A::TYPE, Topic::Keys), clients, master, registry.clone(), runtime.clone()).map(Some)
}
