//! A topic from its beginning to its end as it is at the start.

use std::{collections::HashMap, time::Duration};

use millrace_shared::{
    config::KafkaSettings,
    kafka::{
        bulk::{BulkReader, Item, Record},
        reader_config, watcher, watermarks,
    },
};
use rdkafka::error::KafkaError;

/// Hands over every record, in order within each partition, until one can't be taken.
pub(super) fn read_whole<E: From<KafkaError>>(
    kafka: &KafkaSettings,
    topic: &str,
    mut take: impl FnMut(&Record<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let watcher = watcher(&kafka.kafka_bootstrap, "millrace-tool")?;
    let mut reader = BulkReader::new(&reader_config(&kafka.kafka_bootstrap, "millrace-tool"))?;
    let mut ends = HashMap::new();
    for partition in 0..kafka.partitions {
        let (first, end) = watermarks(&watcher, topic, partition)?;
        if end > first {
            ends.insert(partition, end);
            reader.add(&[(topic, partition, first)])?;
        }
    }
    let mut taken = Ok(());
    while !ends.is_empty() && taken.is_ok() {
        reader.read(Duration::from_millis(200), |item| match item {
            Item::Record(record) => {
                let Some(&end) = ends.get(&record.partition()) else { return };
                if record.offset() + 1 >= end {
                    ends.remove(&record.partition());
                }
                if record.offset() < end && taken.is_ok() {
                    taken = take(&record);
                }
            }
            Item::End { partition, offset, .. } => {
                if ends.get(&partition).is_some_and(|end| offset >= *end) {
                    ends.remove(&partition);
                }
            }
            Item::Failed { partition, error, .. } => eprintln!("{topic}/{partition}: {error}"),
        })?;
    }
    taken
}
