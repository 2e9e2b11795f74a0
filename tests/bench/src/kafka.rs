//! What the measuring itself asks of Kafka.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, ensure};
use millrace_shared::kafka::{
    bulk::{BulkReader, Item},
    successive_reader_config, watcher, watermarks,
};
use millrace_tests::Stack;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};

const TIMEOUT: Duration = Duration::from_secs(30);
const CLIENT: &str = "millrace-bench";

fn admin() -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", &Stack::shared().kafka).create()?)
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

/// Creates topics.
pub fn create(topics: &[&str], partitions: i32) -> Result<()> {
    let admin = admin()?;
    let new: Vec<_> = topics.iter().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1))).collect();
    for created in block_on(admin.create_topics(&new, &AdminOptions::new()))?? {
        created.map_err(|(topic, error)| anyhow::anyhow!("{topic} can't be created: {error}"))?;
    }
    Ok(())
}

/// Deletes every topic whose name begins so: what was measured takes gigabytes.
pub fn delete(prefix: &str) -> Result<()> {
    let watcher = watcher(&Stack::shared().kafka, CLIENT)?;
    let metadata = watcher.fetch_metadata(None, TIMEOUT)?;
    let names: Vec<_> = metadata.topics().iter().map(|topic| topic.name()).filter(|n| n.starts_with(prefix)).collect();
    for deleted in block_on(admin()?.delete_topics(&names, &AdminOptions::new()))?? {
        deleted.map_err(|(topic, error)| anyhow::anyhow!("{topic} can't be deleted: {error}"))?;
    }
    Ok(())
}

/// Hands over every committed record of a topic's partitions, once.
pub fn read(
    topic: &str,
    partitions: &[i32],
    mut each: impl FnMut(&millrace_shared::kafka::bulk::Record<'_>),
) -> Result<()> {
    let kafka = &Stack::shared().kafka;
    let watcher = watcher(kafka, CLIENT)?;
    let mut reader = BulkReader::new(&successive_reader_config(kafka, CLIENT))?;
    let mut open: HashSet<i32> = partitions.iter().copied().collect();
    for partition in partitions {
        let (first, _) = watermarks(&watcher, topic, *partition)?;
        reader.add(&[(topic, *partition, first)])?;
    }
    while !open.is_empty() {
        let mut failed = None;
        let count = reader.read(TIMEOUT, |item| match item {
            Item::Record(record) => each(&record),
            Item::End { partition, .. } => _ = open.remove(&partition),
            Item::Failed { error, .. } => failed = Some(error),
        })?;
        ensure!(count > 0 && failed.is_none(), "{topic} can't be read: {failed:?}");
    }
    Ok(())
}

/// Where a partition ends.
pub fn end(topic: &str, partition: i32) -> Result<u64> {
    let watcher = watcher(&Stack::shared().kafka, CLIENT)?;
    Ok(watermarks(&watcher, topic, partition)?.1.try_into()?)
}

/// How far a consumer group is with a topic, by its committed offsets.
pub struct Progress {
    consumer: BaseConsumer,
    list: TopicPartitionList,
}

impl Progress {
    /// Of a group.
    pub fn new(group: &str, topic: &str, partitions: i32) -> Result<Self> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &Stack::shared().kafka)
            .set("group.id", group)
            // Under read_committed the broker is asked again and again while a transaction is open.
            .set("isolation.level", "read_uncommitted")
            .create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition(topic, partition);
        }
        Ok(Self { consumer, list })
    }

    /// Commands that are done, from the beginning of the topic.
    pub fn done(&self) -> Result<u64> {
        let offsets = self.consumer.committed_offsets(self.list.clone(), TIMEOUT).context("asking for offsets")?;
        let offset = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => u64::try_from(offset).unwrap_or_default(),
            _ => 0,
        };
        Ok(offsets.elements().into_iter().map(offset).sum())
    }
}
