//! Reading commands in bulk and handing them to the writers.

use std::sync::{Arc, Mutex, PoisonError, mpsc::SyncSender};

use anyhow::{Result, bail};
use millrace_shared::kafka::bulk::{BulkReader, Item, Record};
use rdkafka::{
    ClientContext,
    consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, Rebalance},
};

use super::{Options, POLL_WAIT};

/// The group's metadata as captured when partitions were assigned.
#[derive(Default)]
pub struct Captured(Mutex<Option<Arc<ConsumerGroupMetadata>>>);

impl Captured {
    /// It, once there has been an assignment.
    pub fn get(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Captured {}

impl ConsumerContext for Captured {
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(_) = rebalance {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = consumer.group_metadata().map(Arc::new);
        }
    }
}

/// Records of one partition, all bytes in one buffer.
pub struct Chunk {
    /// Partition.
    pub partition: i32,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    offset: i64,
    start: usize,
    id: usize,
    value: usize,
    end: usize,
}

/// A command, as far as the raw client cares.
pub struct Command<'a> {
    pub offset: i64,
    pub key: &'a [u8],
    pub id: &'a [u8],
    pub value: &'a [u8],
}

impl Chunk {
    fn new(partition: i32) -> Self {
        Self { partition, bytes: Vec::with_capacity(4096), entries: Vec::with_capacity(64) }
    }

    fn push(&mut self, record: &Record<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record.key().unwrap_or_default());
        let id = self.bytes.len();
        let command_id = record.headers().find(|(name, _)| *name == "ce_id").and_then(|(_, value)| value);
        self.bytes.extend_from_slice(command_id.unwrap_or_default());
        let value = self.bytes.len();
        self.bytes.extend_from_slice(record.value().unwrap_or_default());
        self.entries.push(Entry { offset: record.offset(), start, id, value, end: self.bytes.len() });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// One of them.
    pub fn get(&self, at: usize) -> Command<'_> {
        let Entry { offset, start, id, value, end } = self.entries[at];
        Command { offset, key: &self.bytes[start..id], id: &self.bytes[id..value], value: &self.bytes[value..end] }
    }
}

/// Joins the group, then reads for ever.
pub fn run(consumer: &Arc<BaseConsumer<Captured>>, options: &Options, writers: &[SyncSender<Chunk>]) -> Result<()> {
    consumer.subscribe(&[&options.commands])?;
    let all = usize::try_from(options.partitions)?;
    // Rebalances are seen by `poll`, and there is none once this only member has its partitions.
    while consumer.assignment()?.count() < all {
        if let Some(message) = consumer.poll(POLL_WAIT) {
            bail!("nothing was to be read yet, and there was {message:?}");
        }
    }
    let mut reader = BulkReader::over(consumer.clone())?;
    let mut chunks: Vec<Option<Chunk>> = (0..all).map(|_| None).collect();
    loop {
        let mut failed = None;
        reader.read(POLL_WAIT, |item| match item {
            Item::Record(record) => {
                let partition = record.partition();
                let slot = &mut chunks[partition.unsigned_abs() as usize];
                slot.get_or_insert_with(|| Chunk::new(partition)).push(&record);
            }
            Item::End { .. } => {}
            Item::Failed { error, .. } => failed = Some(error),
        })?;
        if let Some(error) = failed {
            bail!("commands can't be read: {error}");
        }
        for chunk in chunks.iter_mut().filter_map(Option::take) {
            let writer = &writers[chunk.partition.unsigned_abs() as usize % writers.len()];
            // A writer that has ended has said why, and ended the process.
            if writer.send(chunk).is_err() {
                return Ok(());
            }
        }
    }
}
