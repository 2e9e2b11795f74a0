//! Proves that the views equal the log, on a live system, or says where they don't.
//!
//! 1. Of each partition the checkpoint is taken together with the counters, the parkings and the sizes of the sorted sets, in
//!    one transaction of Redis. The log is folded up to exactly there (`fold`), so that these must be equal to the letter.
//! 2. Every view, index entry and history is then compared in large pipelines (`found`). One that differs may only have
//!    moved on; it is a *suspect*.
//! 3. Suspects are judged (`judge`): an aggregate is read together with its checkpoint in one transaction, its events are folded
//!    on up to there, and what differs now ([`compare`]) is wrong.
//! 4. One scan of Redis' keys finds what the log does not justify (`extras`): views, histories and members of indexes.
//!
//! Memory is bounded: when the aggregates of a partition need more than their share, it is folded in several passes, each
//! over the ids whose digests begin with certain bits. Histories are kept as eight bytes an entry.

pub mod compare;
mod extras;
mod fold;
mod found;
mod groups;
mod judge;
mod made;
mod partition;
mod repair;

pub use found::filters;
pub use repair::Repaired;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
    time::Duration,
};

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Domains, Grouping, GroupingVisitor, Projection, Visitor},
    fast_hash::FastMap,
    kafka::{
        REQUEST_TIMEOUT,
        source::{self, Progress, Source},
        topic_id,
        topics::{self, Names},
        watcher, watermarks,
    },
    personal::MasterKeys,
    registry::{self, Registry},
    views::address::Address,
};
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    events::{Events, Limits},
    keyring::keyring,
    loan,
    store::{self, Store},
    target::{self, Target},
};
use compare::{Difference, Kind};
use extras::Facts;
use judge::Judge;

/// Threads at most: Redis is one, and the broker works as well.
const MAX_THREADS: usize = 4;
/// Differences that are remembered, so as not to be told again, and wrong aggregates of a partition, to be repaired.
const MAX_REMEMBERED: usize = 100_000;
/// Under this name the brokers know us.
const CLIENT_ID: &str = "millrace-verify";

/// Why the views can't be verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka can't be asked.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The topics are not there, or of another shape.
    #[error("Kafka: {0}")]
    Topics(#[from] topics::Error),
    /// The registry can't be used.
    #[error("{0}")]
    Registry(#[from] registry::Error),
    /// The registry can't be asked about a schema.
    #[error("the schema registry: {0}")]
    Schema(String),
    /// Personal data can't be opened.
    #[error("{0}")]
    Keys(String),
    /// The log can't be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// Redis can't be asked.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What Redis has can't be understood at all.
    #[error("Redis has what nobody of us wrote: {0}")]
    Damaged(String),
    /// There is no such projection.
    #[error("there is no projection {0:?} that can be verified; there is {1}")]
    NoProjection(String, String),
    /// It is rebuilt instead.
    #[error("what is wrong in {0} can't be rewritten aggregate by aggregate: run `projector-service rebuild {0}`")]
    NoRepair(&'static str),
    /// There is nothing to compare with.
    #[error("{0} has no checkpoint: it is not projected yet, or Redis was emptied")]
    Emptied(String),
    /// The views can't have been made from this log.
    #[error("{0}")]
    OtherLog(String),
    /// Events are gone.
    #[error(
        "{topic}/{partition} begins at offset {first}: events before were deleted, so nothing can be proven about what \
         they led to"
    )]
    Trimmed {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Its first offset.
        first: i64,
    },
    /// What is wrong can't be rewritten.
    #[error("{0}")]
    Loan(#[from] loan::Error),
    /// Somebody else was faster.
    #[error(
        "the counters of partition {0} were mended, or Redis lost writes, since they were found wrong; verify again"
    )]
    Changed(i32),
    /// A thread could not go on.
    #[error("a thread of the verification panicked")]
    Panicked,
}

impl From<target::Error> for Error {
    fn from(error: target::Error) -> Self {
        Self::Keys(error.to_string())
    }
}

/// A short, even digest: of ids to share them out, of history entries instead of themselves, of keys.
fn digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// What to verify, and with what.
pub struct Verify {
    /// Kafka.
    pub bootstrap: String,
    /// Names of topics and keys.
    pub names: Names,
    /// Partitions of each topic.
    pub partitions: i32,
    /// The registry.
    pub registry: Registry,
    /// What personal data is encrypted with.
    pub master_keys: Option<MasterKeys>,
    /// Redis.
    pub redis: Address,
    /// Longest wait for an answer of Redis.
    pub redis_timeout: Duration,
    /// Version of the projection; the active one when it is not said.
    pub version: Option<u32>,
    /// Bytes that views and histories of the log may take in memory, about.
    pub memory_bytes: usize,
    /// Where the registry can be asked from a plain thread.
    pub runtime: Handle,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The projection with its version.
    pub label: String,
    /// Events that were folded for the first comparison.
    pub events: u64,
    /// Aggregates that these are about.
    pub aggregates: u64,
    /// Aggregates that are parked.
    pub parked: u64,
    /// Aggregates that were looked at again, since they had moved on or are wrong.
    pub again: u64,
    /// Differences by kind.
    pub found: BTreeMap<Kind, u64>,
    /// Aggregates that are wrong, by partition, with the filter sets that they may be in.
    pub wrong: BTreeMap<i32, Suspects>,
    /// Wrong counters by partition.
    pub counters: BTreeMap<i32, Corrections>,
}

/// How a counter is to be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// What has to be added.
    pub by: i128,
    /// Whether events have counted it at all.
    pub counted: bool,
}

/// How the counters of a partition are to be mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corrections {
    /// How often they had been mended, and the checkpoint then.
    since: (Option<u64>, Option<i64>),
    /// Those that are wrong.
    pub all: BTreeMap<String, Correction>,
}

impl Corrections {
    fn since(captured: &found::Captured) -> Self {
        Self { since: (captured.mended, captured.offset), all: BTreeMap::new() }
    }
}

/// Ids, each with the filter sets in which it is or may be.
pub type Suspects = BTreeMap<String, BTreeSet<String>>;

/// Hears of each difference.
pub type Tell<'a> = &'a (dyn Fn(&Difference) + Sync);

impl Verify {
    /// Verifies a projection, by its name without version, and rewrites what is wrong when that is wanted. Blocks.
    pub fn run<D: Domains>(
        &self,
        projection: &str,
        repair: bool,
        tell: Tell<'_>,
    ) -> Result<(Summary, Repaired), Error> {
        struct Find<'a> {
            verify: &'a Verify,
            tell: Tell<'a>,
            wanted: &'a str,
            repair: bool,
            names: Vec<&'static str>,
            ran: Option<Result<(Summary, Repaired), Error>>,
        }
        impl GroupingVisitor for Find<'_> {
            fn visit<G: Grouping>(&mut self) {
                self.names.push(G::NAME);
                if G::NAME == self.wanted {
                    self.ran = Some(match self.repair {
                        true => Err(Error::NoRepair(G::NAME)),
                        false => {
                            self.verify.run_on_groups::<G>(self.tell).map(|summary| (summary, Repaired::default()))
                        }
                    });
                }
            }
        }
        impl Visitor for Find<'_> {
            fn visit<A: Aggregate>(&mut self) {
                self.names.push(A::Projection::NAME);
                if A::Projection::NAME == self.wanted {
                    self.ran = Some(self.verify.run_on::<A>(self.repair, self.tell));
                }
            }
        }
        let mut find = Find { verify: self, tell, wanted: projection, repair, names: Vec::new(), ran: None };
        D::visit_all(&mut find);
        D::visit_groupings(&mut find);
        find.ran.unwrap_or_else(|| Err(Error::NoProjection(projection.to_owned(), find.names.join(", "))))
    }

    fn run_on<A: Aggregate>(&self, repair: bool, tell: Tell<'_>) -> Result<(Summary, Repaired), Error> {
        topics::check(&self.bootstrap, &self.names, &[A::TYPE], self.partitions, |_| topics::Said::Configured)?;
        let codec = Arc::new(Codec::reading(self.registry.clone())?);
        // Nothing is written, so there is nothing to limit.
        let limits = Limits { changes_window: 0, history_max: u64::MAX, parked_max: usize::MAX };
        let mut store = Store::new(self.redis.clone(), self.redis_timeout);
        let version = match self.version {
            Some(version) => version,
            None => store.versions(self.names.redis_prefix(), A::Projection::NAME)?.active,
        };
        let (clients, master) = ((self.bootstrap.clone(), CLIENT_ID.to_owned()), self.master_keys.as_ref());
        let keyring = keyring::<A>(&self.names, clients, master, &self.registry, &self.runtime)?;
        let events =
            Events::<A>::new(codec, keyring, self.runtime.clone(), &self.names, version, self.partitions, limits);
        let watcher = watcher(&self.bootstrap, CLIENT_ID)?;
        let topic_id = topic_id(&watcher, events.topic(), REQUEST_TIMEOUT)?;
        let ends = (0..self.partitions).map(|partition| watermarks(&watcher, events.topic(), partition));
        let ends = ends.collect::<Result<Vec<_>, _>>()?;
        let progress = Progress::new(ends.iter().map(|(first, end)| (end - first).unsigned_abs()).sum());
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let context = Context {
            threads: threads.min(self.partitions as usize),
            verify: self,
            events,
            topic_id,
            progress: &progress,
            tell,
            report: Mutex::new(Report { summary: Summary::default(), told: BTreeSet::new() }),
            facts: Mutex::new(Facts::default()),
            bases: OnceLock::new(),
        };
        let verified = context.run();
        progress.finish();
        verified?;
        let mut summary = context.report().summary.clone();
        summary.label = context.events.label().to_owned();
        let repaired = if repair { context.repair(&summary)? } else { Repaired::default() };
        Ok((summary, repaired))
    }
}

/// What all threads share.
struct Context<'a, A: Aggregate> {
    verify: &'a Verify,
    events: Events<A>,
    topic_id: String,
    progress: &'a Progress,
    tell: Tell<'a>,
    threads: usize,
    report: Mutex<Report>,
    facts: Mutex<Facts>,
    /// By partition: up to which version histories had been trimmed when it began.
    bases: OnceLock<BTreeMap<i32, FastMap<String, u64>>>,
}

struct Report {
    summary: Summary,
    /// What was told is not told again.
    told: BTreeSet<Place>,
}

/// Partition, aggregate, kind, key and field of a difference.
type Place = (i32, Option<String>, Kind, String, Option<String>);

impl<A: Aggregate> Context<'_, A> {
    fn run(&self) -> Result<(), Error> {
        // Before any checkpoint is taken: the events up to there go as far.
        let bases = self.judge()?.bases()?;
        self.bases.get_or_init(|| bases);
        let next = AtomicI32::new(0);
        let work = || {
            let mut judge = self.judge()?;
            loop {
                let partition = next.fetch_add(1, Ordering::Relaxed);
                if partition >= self.verify.partitions {
                    return Ok(());
                }
                // Whatever it is, the others need not begin anything more.
                judge
                    .verify_partition(partition)
                    .inspect_err(|_| next.store(self.verify.partitions, Ordering::Relaxed))?;
            }
        };
        thread::scope(|scope| {
            let running: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            running.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(Error::Panicked)))
        })?;
        let facts = std::mem::take(&mut *self.facts());
        self.judge()?.sweep(facts)
    }

    fn judge(&self) -> Result<Judge<'_, A>, Error> {
        let source = Source::new(&self.verify.bootstrap, CLIENT_ID, &[self.events.topic()], self.progress)?;
        let store = Store::new(self.verify.redis.clone(), self.verify.redis_timeout);
        Ok(Judge { context: self, source, store })
    }

    /// Bytes that one thread may take for what it folds.
    fn fold_bytes(&self) -> usize {
        self.verify.memory_bytes / 2 / self.threads
    }

    /// Bytes of facts that may wait for the scan.
    fn fact_bytes(&self) -> usize {
        self.verify.memory_bytes / 4
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of differences; `filters`: the filter sets that their aggregate is or may be in.
    fn tell(&self, differences: Vec<Difference>, filters: &BTreeSet<String>) {
        let mut report = self.report();
        for difference in differences {
            let Difference { partition, id, kind, key, field, .. } = &difference;
            let place = (*partition, id.clone(), *kind, key.clone(), field.clone());
            let wrong = report.summary.wrong.entry(*partition).or_default();
            if let Some(id) = id
                && (wrong.len() < MAX_REMEMBERED || wrong.contains_key(id))
            {
                let wrong = wrong.entry(id.clone()).or_default();
                wrong.extend(filters.iter().cloned());
            }
            // Beyond the limit one may be told twice.
            if report.told.len() >= MAX_REMEMBERED || report.told.insert(place) {
                *report.summary.found.entry(difference.kind).or_default() += 1;
                let difference = if A::IS_PERSONAL { difference.without_values() } else { difference };
                self.progress.suspend(|| (self.tell)(&difference));
            }
        }
    }
}
