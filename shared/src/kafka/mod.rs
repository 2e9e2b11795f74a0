//! Access to Kafka: client settings, partitions, topics, transactions, reading in bulk.

pub mod bulk;
mod partitioner;
pub mod source;
mod topic_id;
mod topic_settings;
pub mod topics;

pub use partitioner::{murmur2, partition_of};
pub use topic_id::topic_id;

use std::time::Duration;

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    producer::ProducerContext,
};

/// How long a question to the brokers may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that reads nothing believes who leads a partition.
const LEADERS_AGE_MS: &str = "5000";

/// Settings that every client has.
pub fn client_config(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", client_id)
        // A broker that comes back is noticed soon; librdkafka waits up to 10 s by default.
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.keepalive.enable", "true")
        // A broker that is frozen or cut off is given up as soon: librdkafka's 60 s held commands up for as long, when
        // such a broker was asked for a new producer id or a fetch (seen).
        .set("socket.timeout.ms", REQUEST_TIMEOUT.as_millis().to_string())
        .set("socket.connection.setup.timeout.ms", REQUEST_TIMEOUT.as_millis().to_string())
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

/// Settings of a consumer that reads topics by assignment, `read_committed`, from positions that we keep ourselves.
pub fn reader_config(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = client_config(bootstrap, client_id);
    config
        // librdkafka wants a group even where none is joined.
        .set("group.id", client_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        // The default of 1,000 ms stalls a consumer that is slower than the broker (measured: 4 times slower).
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.max.messages.kbytes", "16384");
    config
}

/// The same of a consumer that reads one topic after another, each to its end: a fetch that waits at the end of one holds up
/// the next.
pub fn successive_reader_config(bootstrap: &str, client_id: &str) -> ClientConfig {
    let mut config = reader_config(bootstrap, client_id);
    config.set("fetch.wait.max.ms", "10");
    config
}

/// Puts librdkafka's log lines and errors into ours.
#[derive(Clone, Copy, Debug)]
pub struct Logged;

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(target: "librdkafka", facility, "{message}");
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Logged {}

impl ProducerContext for Logged {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &rdkafka::producer::DeliveryResult<'_>, (): ()) {}
}

/// First offset and end (high watermark) of a partition, open transactions included.
///
/// A consumer under `read_committed` would be told the last stable offset instead, which an open transaction of a
/// dead producer holds below what is committed: so `watcher` must be one made by [`watcher`].
pub fn watermarks(
    watcher: &BaseConsumer<Logged>,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64), rdkafka::error::KafkaError> {
    watcher.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
}

/// A client that only asks for watermarks and metadata.
pub fn watcher(bootstrap: &str, client_id: &str) -> Result<BaseConsumer<Logged>, rdkafka::error::KafkaError> {
    reader_config(bootstrap, client_id)
        .set("isolation.level", "read_uncommitted")
        // Who leads a partition is asked again only then by a client that reads nothing, also when the leader that it knows
        // does not answer (librdkafka 2.12, seen with a frozen broker: for as long as that was frozen; by default 15 min).
        .set("metadata.max.age.ms", LEADERS_AGE_MS)
        .create_with_context(Logged)
}

/// Whether any broker answers.
pub fn ping(watcher: &BaseConsumer<Logged>, timeout: Duration) -> Result<(), rdkafka::error::KafkaError> {
    // Asking for one topic that need not exist is cheaper than asking for all.
    watcher.fetch_metadata(Some("__consumer_offsets"), timeout).map(|_| ())
}
