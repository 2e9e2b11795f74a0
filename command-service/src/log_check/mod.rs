//! Shows that the log is what the guarantees say, from the topics alone.
//!
//! Partition by partition, so that memory is bounded by the largest one; no record is kept whole. It works on a live
//! system, because of the order in which ends are taken and topics read:
//!
//! 1. the group's committed offsets: whatever lies before one was handled in a transaction that is decided;
//! 2. the outcomes' end, and after it that of the commands: both are high watermarks, so whatever such a transaction wrote
//!    lies before the one, and every command that is answered there before the other. The outcomes are read,
//!    `read_committed`;
//! 3. *then* the dead letters' end, and when they and the commands are read, and where commands were told to wait, the end
//!    of those that wait; and when they are read the commands behind (2), of which only what was put back matters: what did
//!    not wait any more at that end lies there, was decided, or was forgotten with its person;
//! 4. *then* the events' end; they hold all that the transactions of these outcomes wrote, so an outcome whose events are
//!    missing is a finding, and the erasure of whoever was forgotten by (3);
//! 5. the outcomes once more, from where (2) ended, if there were events whose outcome is not known yet, or commands that
//!    do not wait: the transactions that wrote these events, or decided these commands, have ended by now, so their outcomes
//!    lie before the new end.
//!
//! What is in flight is never judged: commands behind the committed offset, and events behind (4).
//!
//! Retention deletes the oldest records of a partition first, and outcomes, events and forwards come in the order of
//! their commands. So what lies before the first one that is kept can't be judged, and everything behind it can.

mod commands;
mod events;
mod findings;
mod headers;
mod outcomes;
mod partition;
mod waiting;

pub use findings::{Counts, Finding, Kind, Report, Unjudged};

use std::{
    collections::HashMap,
    sync::atomic::{AtomicI32, Ordering},
    thread,
    time::Duration,
};

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Domains, Visitor},
    kafka::{
        Logged, REQUEST_TIMEOUT, client_config,
        source::{self, Progress, Source},
        topic_id,
        topics::{self, Names, Topic},
        watcher, watermarks,
    },
    outcome::OutcomeRecord,
    personal::HashSecret,
    registry::{self, Registry},
};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio::runtime::Handle;

use commands::{Crossing, forwards_that_are_missing};
use partition::PartitionCheck;

/// What is read.
const TOPICS: [Topic; 5] = [Topic::Outcomes, Topic::DeadLetters, Topic::Commands, Topic::Events, Topic::Scheduled];

/// Why the log can't be checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka can't be asked.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The topics are not there, or of another shape.
    #[error("{0}")]
    Topics(#[from] topics::Error),
    /// The registry can't be used.
    #[error("{0}")]
    Registry(#[from] registry::Error),
    /// The registry can't be asked about a schema.
    #[error("{0}")]
    Schema(String),
    /// A topic can't be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// An unknown type was asked for.
    #[error("there is no aggregate type {0:?}; there is {1}")]
    NoType(String, String),
    /// A thread could not go on.
    #[error("a thread of the check panicked")]
    Panicked,
}

/// What to check.
#[derive(Debug)]
pub struct Check {
    /// Kafka.
    pub bootstrap: String,
    /// Names of topics and groups.
    pub names: Names,
    /// Partitions of each topic.
    pub partitions: i32,
    /// Within it a command id has one outcome.
    pub window: Duration,
    /// What fingerprints of personal data are made with. Without it commands with such data are not held against their
    /// outcomes.
    pub hash: Option<HashSecret>,
    /// Where the registry can be asked from a plain thread.
    pub runtime: Handle,
}

impl Check {
    /// Checks an aggregate type, or all; one report for each. Blocks.
    pub fn run<D: Domains>(
        &self,
        registry: &Registry,
        only: Option<&str>,
    ) -> Result<Vec<(&'static str, Report)>, Error> {
        struct Collect<'a> {
            registry: &'a Registry,
            names: &'a Names,
            types: Vec<Result<Box<dyn TypeCheck>, registry::Error>>,
        }
        impl Visitor for Collect<'_> {
            fn visit<A: Aggregate>(&mut self) {
                let made = Type::<A>::new(self.registry, self.names).map(|made| Box::new(made) as Box<dyn TypeCheck>);
                self.types.push(made);
            }
        }
        let mut collect = Collect { registry, names: &self.names, types: Vec::new() };
        D::visit_all(&mut collect);
        let mut types = collect.types.into_iter().collect::<Result<Vec<_>, _>>()?;
        let served: Vec<_> = types.iter().map(|made| made.name()).collect();
        types.retain(|made| only.is_none_or(|only| only == made.name()));
        if let (true, Some(only)) = (types.is_empty(), only) {
            return Err(Error::NoType(only.to_owned(), served.join(", ")));
        }
        let checked: Vec<_> = types.iter().map(|made| made.name()).collect();
        topics::check(&self.bootstrap, &self.names, &checked, self.partitions, |_| topics::Said::Configured)?;
        types.iter().map(|made| Ok((made.name(), made.check(self)?))).collect()
    }

    /// What the group has committed. Not "stable offsets": those of a busy service are hardly ever stable, and what is
    /// committed lies before what is pending.
    fn committed(&self, topic: &str) -> Result<Vec<Option<i64>>, Error> {
        let group: BaseConsumer<Logged> = client_config(&self.bootstrap, "millrace-check-log")
            .set("group.id", self.names.group("command"))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_uncommitted")
            .create_with_context(Logged)?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, self.partitions - 1);
        let answered = group.committed_offsets(asked, REQUEST_TIMEOUT)?;
        let of = |partition| match answered.find_partition(topic, partition).map(|found| found.offset()) {
            Some(Offset::Offset(offset)) => Some(offset),
            _ => None,
        };
        Ok((0..self.partitions).map(of).collect())
    }
}

/// A check behind a face without the aggregate's Rust types.
trait TypeCheck: Sync {
    fn name(&self) -> &'static str;
    fn check(&self, check: &Check) -> Result<Report, Error>;
}

/// What a type's records are read with.
struct Type<A: Aggregate> {
    commands: Codec<A::Command>,
    events: Codec<A::Event>,
    outcomes: Codec<OutcomeRecord>,
    topics: [String; Topic::ALL.len()],
}

impl<A: Aggregate> Type<A> {
    fn new(registry: &Registry, names: &Names) -> Result<Self, registry::Error> {
        Ok(Self {
            commands: Codec::reading(registry.clone())?,
            events: Codec::reading(registry.clone())?,
            outcomes: Codec::reading(registry.clone())?,
            topics: Topic::ALL.map(|topic| names.topic(A::TYPE, topic)),
        })
    }

    fn topic(&self, topic: Topic) -> &str {
        &self.topics[topic as usize]
    }

    /// Checks partitions until there are no more.
    fn check_partitions(
        &self,
        check: &Check,
        surroundings: &Surroundings,
        progress: &Progress,
        next: &AtomicI32,
    ) -> Result<Vec<(i32, Report, Crossing)>, Error> {
        let mut source =
            Source::new(&check.bootstrap, "millrace-check-log", &TOPICS.map(|topic| self.topic(topic)), progress)?;
        let mut checked = Vec::new();
        loop {
            let partition = next.fetch_add(1, Ordering::Relaxed);
            if partition >= check.partitions {
                return Ok(checked);
            }
            let (report, crossing) = PartitionCheck::new(self, check, surroundings, partition).run(&mut source)?;
            checked.push((partition, report, crossing));
        }
    }
}

/// What is known of a type before its partitions are read.
struct Surroundings {
    /// Id of the command topic.
    topic_id: String,
    /// By partition: the group's committed offset.
    committed: Vec<Option<i64>>,
}

impl<A: Aggregate> TypeCheck for Type<A> {
    fn name(&self) -> &'static str {
        A::TYPE
    }

    fn check(&self, check: &Check) -> Result<Report, Error> {
        let watcher = watcher(&check.bootstrap, "millrace-check-log")?;
        let topic_id = topic_id(&watcher, self.topic(Topic::Commands), REQUEST_TIMEOUT)?;
        // Before anything else: see the top of this file.
        let surroundings = Surroundings { topic_id, committed: check.committed(self.topic(Topic::Commands))? };
        let mut total = 0;
        for topic in TOPICS {
            for partition in 0..check.partitions {
                let (first, end) = watermarks(&watcher, self.topic(topic), partition)?;
                total += end - first;
            }
        }
        let (progress, next) = (Progress::new(total.unsigned_abs()), AtomicI32::new(0));
        let threads = thread::available_parallelism().map_or(1, usize::from).min(check.partitions as usize);
        let ended: Vec<_> = thread::scope(|scope| {
            let work = || self.check_partitions(check, &surroundings, &progress, &next);
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            running.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::Panicked))).collect()
        });
        progress.finish();
        let mut checked = ended.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect::<Vec<_>>();
        checked.sort_by_key(|(partition, ..)| *partition);
        let mut report = Report::default();
        let mut crossings = HashMap::new();
        for (partition, of_partition, crossing) in checked {
            report.merge(of_partition);
            crossings.insert(partition, crossing);
        }
        forwards_that_are_missing(self.topic(Topic::Commands), &crossings, &mut report);
        Ok(report)
    }
}
