//! Grants: what the consumer group has given to this process, and the proof that every transaction has to carry.
//!
//! The fence of a writer is the generation of its consumer group. Which generation, decides: a process that was
//! frozen and has rejoined is told a *fresh* generation for partitions that are no longer its own, and a transaction
//! that carries it commits, a lost update (tried on Kafka 4.3 with librdkafka 2.12). So the group's metadata is
//! captured in the rebalance callback, kept with the grant, renewed in callbacks only and for partitions that stay
//! only; writers never ask for it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use rdkafka::{Offset, TopicPartitionList, consumer::ConsumerGroupMetadata, error::KafkaResult};

use crate::record::CommandRecord;

/// A command partition: index of the aggregate type, and partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// Index into the list of types.
    pub kind: usize,
    /// Partition.
    pub partition: i32,
}

/// One stretch of owning a partition. Another grant of the same partition is another number.
#[derive(Debug)]
pub struct Grant {
    /// Number in this process; only grows.
    pub number: u64,
    /// Which partition.
    pub slot: Slot,
    /// Name of its command topic.
    pub topic: String,
    /// Weight of the records handed to the writer and not yet handled.
    queued: AtomicUsize,
}

impl Grant {
    /// A grant.
    pub fn new(number: u64, slot: Slot, topic: &str) -> Self {
        Self { number, slot, topic: topic.to_owned(), queued: AtomicUsize::new(0) }
    }

    /// Counts records in (before they are handed over).
    pub fn enqueue<'a>(&self, records: impl IntoIterator<Item = &'a CommandRecord>) {
        self.queued.fetch_add(weight(records), Ordering::Relaxed);
    }

    /// Counts records out (after they were handled, or dropped).
    pub fn dequeue<'a>(&self, records: impl IntoIterator<Item = &'a CommandRecord>) {
        self.queued.fetch_sub(weight(records), Ordering::Relaxed);
    }

    /// Weight of the records with the writer.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

fn weight<'a>(records: impl IntoIterator<Item = &'a CommandRecord>) -> usize {
    records.into_iter().map(CommandRecord::weight).sum()
}

/// The captured metadata of every grant that holds.
#[derive(Clone, Default)]
pub struct Captures {
    by_grant: Arc<Mutex<HashMap<u64, Arc<ConsumerGroupMetadata>>>>,
    renewals: Arc<AtomicU64>,
}

/// The offsets that make a transaction ours: at least one, all of grants that hold, with the metadata captured for
/// them. There is no other way to commit.
pub struct FencedOffsets {
    /// Next offset of each command partition.
    pub offsets: TopicPartitionList,
    /// As captured.
    pub metadata: Arc<ConsumerGroupMetadata>,
}

/// Why a transaction can't be fenced.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// A partition is not ours any more.
    #[error("a partition was taken away")]
    Revoked,
    /// There is nothing to fence with: a fault of ours.
    #[error("a transaction must carry the offset of the partition it is about")]
    NoOffsets,
    /// A fault of ours.
    #[error("{0}")]
    Offsets(#[from] rdkafka::error::KafkaError),
}

impl Captures {
    /// In a rebalance callback: notes the present metadata for these grants, new ones and those that stay.
    pub fn renew(&self, grants: impl Iterator<Item = u64>, metadata: ConsumerGroupMetadata) {
        let metadata = Arc::new(metadata);
        let mut by_grant = self.by_grant.lock().unwrap_or_else(PoisonError::into_inner);
        for grant in grants {
            by_grant.insert(grant, metadata.clone());
        }
        self.renewals.fetch_add(1, Ordering::Release);
    }

    /// How often there was a renewal.
    pub fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Acquire)
    }

    /// The grants end: no transaction can carry them any more.
    pub fn end(&self, grants: impl Iterator<Item = u64>) {
        let mut by_grant = self.by_grant.lock().unwrap_or_else(PoisonError::into_inner);
        for grant in grants {
            by_grant.remove(&grant);
        }
    }

    /// A partition is taken over anew in place: the new grant has the old one's capture.
    pub fn hand_over(&self, old: u64, new: u64) {
        let mut by_grant = self.by_grant.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metadata) = by_grant.remove(&old) {
            by_grant.insert(new, metadata);
        }
    }

    /// Whether a grant holds.
    pub fn holds(&self, grant: u64) -> bool {
        self.by_grant.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&grant)
    }

    /// The proof for a transaction on behalf of these grants, each with its next offset.
    pub fn fence<'a>(&self, next: impl Iterator<Item = (&'a Grant, i64)>) -> Result<FencedOffsets, FenceError> {
        let by_grant = self.by_grant.lock().unwrap_or_else(PoisonError::into_inner);
        let mut offsets = TopicPartitionList::new();
        let mut common: Option<Arc<ConsumerGroupMetadata>> = None;
        for (grant, offset) in next {
            let metadata = by_grant.get(&grant.number).ok_or(FenceError::Revoked)?;
            // Callbacks renew all that stay at once, so another capture is one that was not renewed.
            if common.as_ref().is_some_and(|common| !Arc::ptr_eq(common, metadata)) {
                return Err(FenceError::Revoked);
            }
            common = Some(metadata.clone());
            add(&mut offsets, grant, offset)?;
        }
        Ok(FencedOffsets { offsets, metadata: common.ok_or(FenceError::NoOffsets)? })
    }
}

fn add(offsets: &mut TopicPartitionList, grant: &Grant, offset: i64) -> KafkaResult<()> {
    offsets.add_partition_offset(&grant.topic, grant.slot.partition, Offset::Offset(offset))
}
