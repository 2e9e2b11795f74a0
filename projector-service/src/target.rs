//! What a worker has to know about the records it brings into Redis.

use millrace_shared::{kafka::bulk::Record, views::Keys};

use crate::{
    command::Command,
    store::{self, Store},
};

/// A record that was read, with its place.
#[derive(Debug)]
pub struct At<T> {
    /// Its offset.
    pub offset: i64,
    /// What it says.
    pub item: T,
}

/// What becomes of a batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// What is written.
    pub commands: Vec<Command>,
    /// Records that had an effect.
    pub applied: u64,
    /// Records that had had it before.
    pub repeated: u64,
    /// Records that wait, since they or an earlier one could not be applied.
    pub parked: u64,
}

/// Why a batch can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something does not answer: again from the checkpoint.
    #[error("{0}")]
    Again(String),
    /// The partition must stop: going on would lose or spoil something.
    #[error("{0}")]
    Stop(String),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Again(_) => Self::Again(error.to_string()),
            store::Error::Refused(_) => Self::Stop(error.to_string()),
        }
    }
}

/// What to do when the log no longer goes back to the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trimmed {
    /// Stop: what was deleted is needed.
    Stop,
    /// Go on from where the log begins: what was deleted had expired.
    GoOn,
}

/// The registry can't be asked for a record's schema at the moment.
#[derive(Debug)]
pub struct Unreadable(pub String);

/// One kind of records and what they become in Redis.
pub trait Target: Send + 'static {
    /// A record in memory.
    type Item: Send;
    /// What is kept in memory for a partition; thrown away whenever Redis may know better.
    type Memory: Send;

    /// Label in logs and metrics, e.g. `bank-accounts.v1`.
    fn label(&self) -> &'static str;

    /// The topic that is read.
    fn topic(&self) -> &str;

    /// Version of the code that folds: what another one made is not gone on with.
    fn fold_version(&self) -> u32;

    /// A partition's keys.
    fn keys(&self, partition: i32) -> Keys;

    /// See [`Trimmed`].
    fn when_trimmed(&self) -> Trimmed;

    /// Takes a record out of librdkafka's hands. What can't be read is an item as well.
    fn read(&self, record: &Record<'_>) -> Result<Self::Item, Unreadable>;

    /// What Redis knows of a partition that was just claimed.
    fn remember(&self, keys: &Keys, store: &mut Store) -> Result<Self::Memory, Error>;

    /// What is to be put right in Redis before anything else is written there. Each of these commands is written by itself.
    fn mend(&self, _partition: i32, _keys: &Keys, _store: &mut Store) -> Result<Vec<Command>, Error> {
        Ok(Vec::new())
    }

    /// What a batch becomes. Changes the memory: when the batch is not written, the memory must be thrown away.
    fn fold(
        &self,
        keys: &Keys,
        memory: &mut Self::Memory,
        items: Vec<At<Self::Item>>,
        store: &mut Store,
    ) -> Result<Batch, Error>;

    /// After a batch was written.
    fn written(&self, keys: &Keys, store: &mut Store) -> Result<(), Error>;

    /// A partition is no longer ours.
    fn closed(&self, _partition: i32) {}
}
