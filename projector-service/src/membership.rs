//! The consumer group: which partitions are ours.
//!
//! The group's consumer only holds the membership. It is given its partitions paused; the workers read them by
//! consumers of their own, each from its checkpoint in Redis. So a worker that waits for Redis never costs us the
//! membership, and no record is ever read from an offset that the group remembers. Offsets are committed to the group
//! for lag monitors only.

use std::{
    collections::{BTreeMap, HashMap},
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use millrace_shared::kafka::client_config;
use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::KafkaError,
    types::RDKafkaRespErr,
};
use tokio_util::sync::CancellationToken;

use crate::{board::Board, roster::Roster, worker::Order};

const POLL: Duration = Duration::from_millis(100);
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// How to be a member.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kafka's addresses.
    pub bootstrap: String,
    /// The group.
    pub group: String,
    /// This instance, for Kafka's logs.
    pub client_id: String,
    /// A silent member is out after so long.
    pub session_timeout_ms: u64,
}

/// What librdkafka's rebalance callback says.
#[derive(Debug)]
enum Change {
    Assigned(Vec<(String, i32)>),
    Revoked(Vec<(String, i32)>),
}

struct Member {
    changes: Sender<Change>,
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        millrace_shared::kafka::Logged.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        millrace_shared::kafka::Logged.error(error, reason);
    }
}

impl ConsumerContext for Member {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let places = list.elements().iter().map(|e| (e.topic().to_owned(), e.partition())).collect();
        let (done, change) = match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                // Nothing is read here; an offset keeps librdkafka from asking the group for one.
                let given = list.set_all_offsets(Offset::End);
                let assigned =
                    given.and_then(|()| consumer.incremental_assign(list)).and_then(|()| consumer.pause(list));
                (assigned, Change::Assigned(places))
            }
            _ => (consumer.incremental_unassign(list), Change::Revoked(places)),
        };
        if let Err(error) = done {
            tracing::error!("the group's assignment can't be followed: {error}");
        }
        // The receiver lives as long as the consumer.
        let _ = self.changes.send(change);
    }
}

/// Holds the membership of `topics` until `shutdown`, and tells those on the roster what is theirs.
pub fn run(options: &Options, topics: &[String], roster: &Roster, board: &Board, shutdown: &CancellationToken) {
    while !shutdown.is_cancelled() {
        if let Err(error) = member(options, topics, roster, board, shutdown) {
            tracing::error!(group = options.group, "membership lost, joining anew: {error}");
            board.left(&format!("the consumer group {} was left: {error}", options.group));
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn member(
    options: &Options,
    topics: &[String],
    roster: &Roster,
    board: &Board,
    shutdown: &CancellationToken,
) -> Result<(), KafkaError> {
    let (changes, changed) = mpsc::channel();
    let consumer: BaseConsumer<Member> = config(options).create_with_context(Member { changes })?;
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics)?;
    let mut committed = Instant::now();
    let ended = loop {
        if shutdown.is_cancelled() {
            break Ok(());
        }
        match consumer.poll(POLL) {
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => break Err(error),
            Some(Err(error)) => tracing::debug!(group = options.group, "{error}"),
            Some(Ok(_)) | None => {}
        }
        pass_on(&changed, roster, board);
        if committed.elapsed() >= COMMIT_INTERVAL {
            committed = Instant::now();
            commit(&consumer, board, CommitMode::Async);
        }
    };
    if ended.is_ok() {
        commit(&consumer, board, CommitMode::Sync);
    }
    // Leaves the group; the callback revokes what is left.
    drop(consumer);
    pass_on(&changed, roster, board);
    ended
}

fn config(options: &Options) -> ClientConfig {
    let mut config = client_config(&options.bootstrap, &options.client_id);
    config
        .set("group.id", &options.group)
        .set("group.protocol", "classic")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", options.session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", (options.session_timeout_ms / 5).clamp(100, 3_000).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "latest")
        .set("queued.max.messages.kbytes", "1024");
    config
}

fn pass_on(changed: &Receiver<Change>, roster: &Roster, board: &Board) {
    for change in changed.try_iter() {
        let (places, order): (_, fn(Vec<i32>) -> Order) = match change {
            Change::Assigned(places) => (places, Order::Assigned),
            Change::Revoked(places) => (places, Order::Revoked),
        };
        let mut by_topic: HashMap<String, Vec<i32>> = HashMap::new();
        for (topic, partition) in places {
            by_topic.entry(topic).or_default().push(partition);
        }
        for (topic, partitions) in by_topic {
            tracing::info!(topic, order = ?order(partitions.clone()), "the group says");
            roster.pass_on(&topic, &order(partitions));
        }
        board.joined();
    }
}

/// Commits for each partition how far the slowest of those is that read it.
fn commit(consumer: &BaseConsumer<Member>, board: &Board, mode: CommitMode) {
    let mut slowest: BTreeMap<(String, i32), i64> = BTreeMap::new();
    for (place, offset) in board.positions() {
        let least = slowest.entry((place.topic, place.partition)).or_insert(offset);
        *least = offset.min(*least);
    }
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in slowest {
        let _ = list.add_partition_offset(&topic, partition, Offset::Offset(offset));
    }
    if list.count() > 0
        && let Err(error) = consumer.commit(&list, mode)
    {
        // Nobody but a lag monitor reads them.
        tracing::debug!("offsets were not committed: {error}");
    }
}
