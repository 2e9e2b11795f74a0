//! The raw limit: librdkafka doing the same reads, transactional writes and offset commits, with no domain between.
//!
//! It runs in a process of its own, so that its CPU time is told apart as the service's is. One thread reads in bulk,
//! a few writers each have a transactional producer and a share of the partitions, as in command-service. It is meant
//! to be as fast as one can make it: what it writes was prepared before, it allocates once for a thousand records, and
//! it knows nothing of schemas, states, repeats or rebalances.

mod paced;
mod process;
mod produce;
mod reader;
pub mod steps;
pub mod views;
pub mod web;
mod writer;

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use serde::{Deserialize, Serialize};

pub use paced::Pace;
pub use process::{RawClient, Task, writers};
use reader::Captured;
pub use writer::Mode;

/// What the raw client is told, by a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Kafka.
    pub bootstrap: String,
    /// Topic to read.
    pub commands: String,
    /// Topic to write.
    pub events: String,
    /// Topic to write.
    pub outcomes: String,
    /// Consumer group; transactional ids begin with it.
    pub group: String,
    /// Partitions of each topic.
    pub partitions: i32,
    /// Writers.
    pub writers: usize,
    /// With or without transactions.
    pub mode: Mode,
    /// Session time-out.
    pub session_timeout_ms: u64,
    /// What the service wrote for a command: the raw client writes as much.
    pub sample: Sample,
    /// Commands that it produces itself.
    pub pace: Option<Pace>,
}

/// Names and values.
type Headers = Vec<(String, Vec<u8>)>;

/// A command's traces as the service left them: names and values of headers, and the outcome's value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Value of the command.
    pub command: Vec<u8>,
    /// Headers of the event.
    pub event_headers: Headers,
    /// Value of the event.
    pub event: Vec<u8>,
    /// Headers of the outcome.
    pub outcome_headers: Headers,
    /// Value of the outcome.
    pub outcome: Vec<u8>,
}

/// Settings that both kinds of client have.
fn client(options: &Options) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &options.bootstrap).set("client.id", &options.group);
    config
}

/// Runs until killed, or until its own commands are done.
pub fn run(file: &Path) -> Result<()> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let options: Options = serde_json::from_slice(&text).context("reading the options")?;
    let options = &options;
    let session = options.session_timeout_ms;
    let consumer: BaseConsumer<Captured> = client(options)
        .set("group.id", &options.group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session.to_string())
        .set("heartbeat.interval.ms", (session / 4).min(1000).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.max.messages.kbytes", "16384")
        .create_with_context(Captured::default())?;
    let consumer = Arc::new(consumer);
    let assigned = consumer.clone();
    let latencies = paced::start(options, move || assigned.context().get().is_some())?;
    let writers = (0..options.writers)
        .map(|number| writer::start(options, number, &consumer, latencies.clone()))
        .collect::<Result<Vec<_>>>()?;
    reader::run(&consumer, options, &writers)
}

/// Longest wait for something to be read.
const POLL_WAIT: Duration = Duration::from_millis(100);
