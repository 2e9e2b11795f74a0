//! The topics of each aggregate type: their names, their settings, and the check that nobody changed their shape.

use std::{collections::HashMap, time::Duration};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
    types::RDKafkaErrorCode,
};

use super::{
    Logged, REQUEST_TIMEOUT,
    bulk::{BulkReader, Item},
    client_config, successive_reader_config, topic_settings, watcher,
};
use crate::domain::AggregateInfo;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Outcomes are kept at least so long, for process managers that were away.
const MIN_OUTCOME_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Largest batch of records that the command topic takes, in bytes.
pub(super) const MAX_COMMAND_BYTES: usize = (1 << 20) + 12;

/// One topic of an aggregate type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Commands to the type.
    Commands,
    /// The source of truth.
    Events,
    /// Answers.
    Outcomes,
    /// States.
    Snapshots,
    /// What could not be handled.
    DeadLetters,
    /// Commands and deadlines that are not due yet.
    Scheduled,
    /// The keys that personal data is encrypted under. The last one, since only types with personal data have it.
    Keys,
}

impl Topic {
    /// All topics that a type may have.
    pub const ALL: [Self; 7] =
        [Self::Commands, Self::Events, Self::Outcomes, Self::Snapshots, Self::DeadLetters, Self::Scheduled, Self::Keys];

    /// Those that a type has.
    pub fn of(is_personal: bool) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |topic| is_personal || *topic != Self::Keys)
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Events => "events",
            Self::Outcomes => "outcomes",
            Self::Snapshots => "snapshots",
            Self::DeadLetters => "dead-letters",
            Self::Scheduled => "scheduled",
            Self::Keys => "keys",
        }
    }

    pub(super) fn settings(self, shape: &Shape) -> Vec<(&'static str, String)> {
        let keep = |time: Duration| ("retention.ms", time.as_millis().to_string());
        // A clock in the future is no reason to refuse a record (Kafka 4 does so beyond an hour): events are never dated
        // later than now, and a clock that was set back must not stop a partition.
        let any_time = ("message.timestamp.after.max.ms", i64::MAX.to_string());
        let mut settings = match self {
            // Commands may carry old time stamps (imports, forwarded ones), and Kafka counts retention from them: it
            // would delete such records unread. So Kafka keeps them, and the trimmer of command-service deletes what
            // was handled long ago.
            Self::Commands => vec![
                ("cleanup.policy", "delete".into()),
                ("retention.ms", "-1".into()),
                ("retention.bytes", "-1".into()),
                ("message.timestamp.type", "CreateTime".into()),
                ("max.message.bytes", MAX_COMMAND_BYTES.to_string()),
            ],
            Self::Events => vec![
                ("cleanup.policy", "delete".into()),
                ("retention.ms", "-1".into()),
                ("retention.bytes", "-1".into()),
                ("message.timestamp.type", "CreateTime".into()),
            ],
            // The trimmer finds in the outcomes what was handled when, so they outlive the commands. A restore finds the
            // beginning of the idempotency window by their time stamps, which therefore are their writers'.
            Self::Outcomes => {
                vec![
                    ("cleanup.policy", "delete".into()),
                    keep(outcome_retention(shape)),
                    ("retention.bytes", "-1".into()),
                    ("message.timestamp.type", "CreateTime".into()),
                ]
            }
            Self::Snapshots => vec![("cleanup.policy", "compact".into())],
            // A restore reads all of it, and most of it is over soon.
            Self::Scheduled => vec![
                ("cleanup.policy", "compact".into()),
                ("segment.bytes", (64 << 20).to_string()),
                ("segment.ms", HOUR.as_millis().to_string()),
                ("delete.retention.ms", HOUR.as_millis().to_string()),
                ("min.cleanable.dirty.ratio", "0.1".into()),
            ],
            // A dead letter is a record of the largest size and a few headers more.
            Self::DeadLetters => vec![
                ("cleanup.policy", "delete".into()),
                keep(30 * DAY),
                ("max.message.bytes", (2 * MAX_COMMAND_BYTES).to_string()),
            ],
            // What a tombstone deletes is to be gone from the files. A segment that has been open for so long is closed at
            // the next record (writers see to it that there is one), and compacted as soon as it is closed.
            Self::Keys => vec![
                ("cleanup.policy", "compact".into()),
                ("segment.ms", shape.forget_within.as_millis().to_string()),
                ("max.compaction.lag.ms", shape.forget_within.as_millis().to_string()),
                ("min.compaction.lag.ms", "0".into()),
                ("file.delete.delay.ms", "1000".into()),
            ],
        };
        settings.push(any_time);
        settings
    }
}

/// How long outcomes are kept.
pub(super) fn outcome_retention(shape: &Shape) -> Duration {
    shape.idempotency_window.max(shape.commands_retention + DAY).max(MIN_OUTCOME_RETENTION)
}

/// Names of topics and groups of one deployment.
#[derive(Clone, Debug, Default)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// With the prefix that tells deployments on one cluster apart; may be empty.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}.") } }
    }

    /// A topic's name.
    pub fn topic(&self, aggregate_type: &str, topic: Topic) -> String {
        format!("{}{aggregate_type}.{}", self.prefix, topic.suffix())
    }

    /// A consumer group's name; without a prefix the groups begin with `millrace`.
    pub fn group(&self, name: &str) -> String {
        if self.prefix.is_empty() { format!("millrace.{name}") } else { format!("{}{name}", self.prefix) }
    }

    /// A transactional id.
    pub fn transactional_id(&self, instance: &str, writer: usize) -> String {
        self.group(&format!("{instance}.{writer}"))
    }

    /// Prefix of keys in Redis.
    pub fn redis_prefix(&self) -> &str {
        &self.prefix
    }

    /// The topic that remembers the shape of the others.
    fn layout_topic(&self) -> String {
        format!("{}millrace.layout", self.prefix)
    }
}

/// What is wrong with the topics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka can't be asked; try again.
    #[error("{0}")]
    Unavailable(String),
    /// A topic is not there (yet).
    #[error("topic {0} is not there yet; command-service creates it")]
    Missing(String),
    /// The number of partitions is not what it was or should be.
    #[error(
        "{what} has {actual} partitions, but {expected} are {said}; an aggregate's partition depends on their number, \
         so it can't be changed: set MILLRACE_PARTITIONS={actual} if that is how the topics were made, or move to a new \
         topic set under another MILLRACE_TOPIC_PREFIX"
    )]
    Partitions {
        /// Which topic.
        what: String,
        /// How many there are.
        actual: usize,
        /// How many there should be.
        expected: usize,
        /// Who says so.
        said: Said,
    },
    /// Settings of topics under which guarantees don't hold.
    #[error("{0}")]
    Settings(String),
}

/// Who says how many partitions there should be.
#[derive(Clone, Copy, Debug)]
pub enum Said {
    /// The setting.
    Configured,
    /// What was recorded when the topics were made.
    Recorded,
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Configured => "configured",
            Self::Recorded => "recorded from the first start",
        })
    }
}

impl From<rdkafka::error::KafkaError> for Error {
    fn from(error: rdkafka::error::KafkaError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// How topics are made.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Partitions of every topic of a type.
    pub partitions: i32,
    /// Replicas of each partition; -1 = the brokers' default.
    pub replication_factor: i32,
    /// How long answers are remembered.
    pub idempotency_window: Duration,
    /// How long commands are kept after they were handled.
    pub commands_retention: Duration,
    /// How long a destroyed key may lie in the brokers' files, but for their own pace.
    pub forget_within: Duration,
}

/// Creates the missing topics of the types and checks the shape of all. Blocks.
pub fn ensure(bootstrap: &str, names: &Names, types: &[AggregateInfo], shape: &Shape) -> Result<(), Error> {
    let config = client_config(bootstrap, "millrace-admin");
    // One of each for all of them: each takes up to 0.2 s to be let go.
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let watcher = watcher(bootstrap, "millrace-admin")?;
    let compact = vec![("cleanup.policy", "compact".to_owned())];
    create(&admin, &[(names.layout_topic(), compact)], 1, shape.replication_factor)?;
    let recorded = recorded_partitions(bootstrap, &watcher, names)?;
    let mut wanted = Vec::new();
    for AggregateInfo { aggregate_type, is_personal, .. } in types {
        if let Some(&recorded) = recorded.get(*aggregate_type)
            && recorded != shape.partitions as usize
        {
            return Err(Error::Partitions {
                what: format!("the topic set of {aggregate_type}"),
                actual: recorded,
                expected: shape.partitions as usize,
                said: Said::Configured,
            });
        }
        let name = |topic: Topic| {
            let mut settings = topic.settings(shape);
            if *is_personal && topic == Topic::Commands {
                // What was handled is deleted, and is to be gone from the files with its segment.
                settings.push(("segment.ms", shape.forget_within.as_millis().to_string()));
                settings.push(("file.delete.delay.ms", "1000".into()));
            }
            (names.topic(aggregate_type, topic), settings)
        };
        wanted.extend(Topic::of(*is_personal).map(name));
    }
    create(&admin, &wanted, shape.partitions, shape.replication_factor)?;
    let said = |aggregate_type: &str| {
        if recorded.contains_key(aggregate_type) { Said::Recorded } else { Said::Configured }
    };
    let all = types.iter().flat_map(|of| Topic::of(of.is_personal).map(|topic| (of.aggregate_type, topic)));
    check_all(&watcher, names, all, shape.partitions, said)?;
    topic_settings::compare((bootstrap, &watcher, &admin), names, types, shape)?;
    for new in types.iter().filter(|of| !recorded.contains_key(of.aggregate_type)) {
        record_partitions(&config, names, new.aggregate_type, shape.partitions)?;
    }
    Ok(())
}

/// Checks that the topics that all types have are there with the expected number of partitions. Blocks.
pub fn check(
    bootstrap: &str,
    names: &Names,
    types: &[&str],
    partitions: i32,
    said: impl Fn(&str) -> Said,
) -> Result<(), Error> {
    let all = types.iter().flat_map(|of| Topic::of(false).map(|topic| (*of, topic)));
    check_all(&watcher(bootstrap, "millrace-admin")?, names, all, partitions, said)
}

fn check_all<'a>(
    watcher: &BaseConsumer<Logged>,
    names: &Names,
    topics: impl Iterator<Item = (&'a str, Topic)>,
    partitions: i32,
    said: impl Fn(&str) -> Said,
) -> Result<(), Error> {
    for (aggregate_type, topic) in topics {
        let name = names.topic(aggregate_type, topic);
        let metadata = watcher.fetch_metadata(Some(&name), REQUEST_TIMEOUT)?;
        let actual = metadata.topics().iter().find(|t| t.name() == name).map_or(0, |t| t.partitions().len());
        if actual == 0 {
            return Err(Error::Missing(name));
        }
        let expected = partitions as usize;
        if actual != expected {
            return Err(Error::Partitions {
                what: format!("topic {name}"),
                actual,
                expected,
                said: said(aggregate_type),
            });
        }
    }
    Ok(())
}

/// Creates those that are not there yet, all in one request.
fn create(
    admin: &AdminClient<DefaultClientContext>,
    wanted: &[(String, Vec<(&'static str, String)>)],
    partitions: i32,
    replication_factor: i32,
) -> Result<(), Error> {
    let topics: Vec<NewTopic<'_>> = wanted
        .iter()
        .map(|(name, settings)| {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication_factor));
            settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT));
    let answers = futures_block(admin.create_topics(&topics, &options))?;
    for answer in answers {
        match answer {
            Ok(name) => tracing::info!(topic = %name, partitions, "topic created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, error)) => return Err(Error::Unavailable(format!("topic {name} can't be created: {error}"))),
        }
    }
    Ok(())
}

/// Runs a future to its end on this thread, which is none of the async runtime's.
pub(super) fn futures_block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(future)
}

fn recorded_partitions(
    bootstrap: &str,
    watcher: &BaseConsumer<Logged>,
    names: &Names,
) -> Result<HashMap<String, usize>, Error> {
    let topic = names.layout_topic();
    // The end is told by a fetch that finds nothing: at a start nobody wants to wait half a second for it.
    let mut reader = BulkReader::new(&successive_reader_config(bootstrap, "millrace-admin"))?;
    let (first, _) = super::watermarks(watcher, &topic, 0)?;
    reader.add(&[(&topic, 0, first)])?;
    let mut recorded = HashMap::new();
    let deadline = std::time::Instant::now() + REQUEST_TIMEOUT;
    let mut ended = false;
    while !ended {
        reader.read(Duration::from_millis(200), |item| match item {
            Item::Record(record) => {
                let text = |bytes: Option<&[u8]>| bytes.and_then(|b| String::from_utf8(b.to_vec()).ok());
                let count = text(record.value()).and_then(|value| value.parse().ok());
                recorded.extend(text(record.key()).zip(count));
            }
            Item::End { .. } => ended = true,
            Item::Failed { .. } => {}
        })?;
        if std::time::Instant::now() > deadline {
            return Err(Error::Unavailable(format!("topic {topic} can't be read")));
        }
    }
    Ok(recorded)
}

fn record_partitions(config: &ClientConfig, names: &Names, aggregate_type: &str, partitions: i32) -> Result<(), Error> {
    let producer: FutureProducer<Logged> = config
        .clone()
        .set("acks", "all")
        .set("message.timeout.ms", REQUEST_TIMEOUT.as_millis().to_string())
        .create_with_context(Logged)?;
    let (topic, count) = (names.layout_topic(), partitions.to_string());
    let record = FutureRecord::to(&topic).partition(0).key(aggregate_type).payload(&count);
    futures_block(producer.send(record, REQUEST_TIMEOUT)).map_err(|(error, _)| error)?;
    Ok(())
}
