//! Watches what the service depends on, and how far behind it is.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_shared::{
    kafka::{self, Logged},
    ops::{Health, PROBE_INTERVAL},
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio_util::sync::CancellationToken;

use crate::{
    board::{Board, Place},
    store::Store,
};

/// Longest wait for an answer of Kafka: loss must show within ten seconds.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(2);

/// Names of the parts that [`Health`] knows.
pub mod parts {
    /// The brokers.
    pub const KAFKA: &str = "kafka";
    /// Redis.
    pub const REDIS: &str = "redis";
}

/// Probes until `shutdown`. Blocks.
pub fn run(
    watcher: &Arc<BaseConsumer<Logged>>,
    mut store: Store,
    board: &Board,
    health: &Health,
    shutdown: &CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let begun = Instant::now();
        health.set(parts::REDIS, store.ping().map_err(|error| error.to_string()));
        let kafka = kafka::ping(watcher, KAFKA_TIMEOUT).map_err(|error| error.to_string());
        let reachable = kafka.is_ok();
        health.set(parts::KAFKA, kafka);
        if reachable {
            lag(watcher, board);
        }
        while begun.elapsed() < PROBE_INTERVAL && !shutdown.is_cancelled() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn lag(watcher: &BaseConsumer<Logged>, board: &Board) {
    let mut ends = BTreeMap::new();
    for (Place { topic, partition, label }, offset) in board.positions() {
        let end = match ends.get(&(topic.clone(), partition)) {
            Some(end) => *end,
            None => {
                let Ok((_, end)) = watcher.fetch_watermarks(&topic, partition, KAFKA_TIMEOUT) else { return };
                ends.insert((topic, partition), end);
                end
            }
        };
        let labels = [("projection", label.to_owned()), ("partition", partition.to_string())];
        metrics::gauge!("millrace_projector_lag_records", &labels).set((end - offset).max(0) as f64);
    }
}
