//! Taking a partition over: its states and remembered outcomes are read back from the log.
//!
//! In this order: the group's committed offset with stable offsets required (this waits for a predecessor's open
//! transaction); *then* the high watermarks of events and outcomes as a `read_uncommitted` consumer sees them (an open
//! transaction of a dead producer would hide newer committed records behind the last stable offset); then all records
//! up to these, `read_committed`. Whether a target is reached is judged by the end that the reader reports, which lies
//! behind transaction markers, never by the offsets of records.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use millrace_shared::kafka::{
    Logged,
    bulk::{BulkReader, Item},
    reader_config,
    topics::Topic,
    watcher,
};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

use super::{Decider, RestoreError, Settings, Stored};
use crate::{grant::Grant, types::CommandType};

const READ_WAIT: Duration = Duration::from_millis(100);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);
/// Others wait for it.
const ENDS_TIMEOUT: Duration = Duration::from_secs(3);

/// A partition that can serve.
pub struct Restored {
    /// For which grant.
    pub grant: Arc<Grant>,
    /// The partition.
    pub decider: Box<dyn Decider>,
    /// First command to be decided.
    pub start: i64,
    /// End of the outcome topic as it was seen.
    pub outcomes_end: i64,
}

/// Why a restore has to begin again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka can't be asked.
    #[error("{0}")]
    Kafka(#[from] KafkaError),
    /// The registry can't be asked.
    #[error("{0}")]
    Registry(#[from] RestoreError),
    /// Nothing came for too long.
    #[error(
        "no progress for {0:?}; when the brokers answer, a transaction hangs: committed records behind it can't be read \
         until it is ended (kafka-transactions.sh find-hanging; README, Operations, says how)"
    )]
    Stalled(Duration),
    /// Nobody knows which commands were decided.
    #[error(
        "{0}: the group's committed offset and the outcomes are gone, though there are events, so nobody can tell which \
         commands were decided (a stop longer than both are kept?); set the group's offset with \
         kafka-consumer-groups.sh --reset-offsets while the service is stopped: --to-latest leaves what is in the \
         command topic undecided, --to-earliest decides all of it once more"
    )]
    NoStart(String),
    /// The topics don't belong together.
    #[error("{0}: commands are to be read from offset {1}, but the topic ends at {2}; was it made anew?")]
    BeyondEnd(String, i64, i64),
    /// A predecessor's transaction is still open.
    #[error("the committed offset of {0} is not stable yet")]
    Unstable(String),
}

/// What a restore works with.
pub struct Job<'a> {
    /// Kafka.
    pub bootstrap: &'a str,
    /// The command group's committed offsets, as its member sees them.
    pub committed: &'a dyn Fn(TopicPartitionList, Duration) -> Result<TopicPartitionList, KafkaError>,
    /// No progress for so long is an error.
    pub stall: Duration,
    /// Whether a grant is still worth the work.
    pub wanted: &'a dyn Fn(&Grant) -> bool,
}

/// One partition at work.
struct Restoring {
    grant: Arc<Grant>,
    decider: Box<dyn Decider>,
    committed: Option<i64>,
    ends: Ends,
    /// Topics whose target isn't reached yet.
    open: Vec<Topic>,
    /// Events wait for the snapshots, which say from where on they count.
    events_begun: bool,
}

/// First offset and end of a partition of each topic.
#[derive(Clone, Copy)]
struct Ends {
    commands: (i64, i64),
    events: (i64, i64),
    outcomes: (i64, i64),
    snapshots: (i64, i64),
}

impl Job<'_> {
    /// Restores partitions side by side and hands each over as soon as it is ready.
    pub fn run(
        &self,
        grants: &[Arc<Grant>],
        types: &[Arc<dyn CommandType>],
        settings: impl Fn(&Grant) -> Settings,
        mut ready: impl FnMut(Restored),
    ) -> Result<(), Error> {
        let (started, now) = (Instant::now(), Timestamp::now());
        let committed = self.committed_offsets(grants)?;
        let watcher = watcher(self.bootstrap, "millrace-restore")?;
        let mut reader = BulkReader::new(&reader_config(self.bootstrap, "millrace-restore"))?;
        let mut kinds: Vec<usize> = grants.iter().map(|grant| grant.slot.kind).collect();
        kinds.dedup();
        for kind in kinds {
            reader.meet(&[Topic::Snapshots, Topic::Events, Topic::Outcomes].map(|topic| types[kind].topic(topic)))?;
        }
        let mut sources = Sources::default();
        let (mut all, mut progress, mut failed) = (Vec::new(), Progress::new(), None);
        // Side by side: one without a leader is asked for until the time is up.
        let asked = std::thread::scope(|scope| {
            let ask = |grant: &Arc<Grant>| {
                let (kind, partition, watcher) = (&types[grant.slot.kind], grant.slot.partition, &watcher);
                scope.spawn(move || Ends::ask(watcher, &**kind, partition))
            };
            let asking: Vec<_> = grants.iter().map(ask).collect();
            asking.into_iter().map(|thread| thread.join().unwrap_or(Err(KafkaError::Canceled))).collect::<Vec<_>>()
        });
        for (at, (grant, asked)) in grants.iter().zip(asked).enumerate() {
            let kind = &types[grant.slot.kind];
            let ends = match asked {
                Ok(ends) => ends,
                Err(error) => {
                    failed = failed.or(Some(Error::from(error)));
                    all.push(None);
                    continue;
                }
            };
            let mut restoring = Restoring {
                grant: grant.clone(),
                decider: kind.clone().partition(settings(grant)),
                committed: committed[at],
                ends,
                open: Vec::new(),
                events_begun: false,
            };
            // What the snapshots are worth is known when all of them are read; until then nothing else is.
            let mut sources_wanted = vec![(Topic::Snapshots, ends.snapshots)];
            if let Some((events, outcomes)) = restoring.decider.stored_up_to(ends.events, ends.outcomes.1) {
                let (first, end) = ends.outcomes;
                sources_wanted =
                    vec![(Topic::Outcomes, (outcomes.max(first), end)), (Topic::Events, (events, ends.events.1))];
                restoring.events_begun = true;
            }
            for (topic, (first, end)) in sources_wanted {
                restoring.open_source(
                    at,
                    topic,
                    kind.topic(topic),
                    (first, end),
                    &mut sources,
                    &mut progress,
                    &mut reader,
                )?;
            }
            all.push(Some(restoring));
        }
        loop {
            for (at, place) in all.iter_mut().enumerate() {
                // One that has gone lets go of its store, for it may come back.
                place.take_if(|restoring| !(self.wanted)(&restoring.grant));
                let Some(restoring) = place else { continue };
                if !restoring.events_begun && !restoring.open.contains(&Topic::Snapshots) {
                    restoring.events_begun = true;
                    let (first, end) = restoring.ends.events;
                    let from = restoring.decider.first_event_to_read(first, end);
                    let kind = &types[restoring.grant.slot.kind];
                    for (topic, range) in [(Topic::Events, (from, end)), (Topic::Outcomes, restoring.ends.outcomes)] {
                        let name = kind.topic(topic);
                        restoring.open_source(at, topic, name, range, &mut sources, &mut progress, &mut reader)?;
                    }
                }
            }
            for place in &mut all {
                if place.as_ref().is_some_and(|restoring| restoring.open.is_empty())
                    && let Some(restoring) = place.take()
                {
                    // One that can't begin does not hold up the others.
                    match restoring.done(started) {
                        Ok(restored) => ready(restored),
                        Err(error) => failed = failed.or(Some(error)),
                    }
                }
            }
            if all.iter().flatten().next().is_none() {
                metrics::gauge!("millrace_restore_records_left").set(0.0);
                return failed.map_or(Ok(()), Err);
            }
            if !grants.iter().any(|grant| (self.wanted)(grant)) {
                return Ok(());
            }
            let mut failure = None;
            reader.read(READ_WAIT, |item| {
                let seen = match item {
                    Item::Record(record) => {
                        let Some(&(at, topic, end)) = sources.get(&(record.topic().to_owned(), record.partition()))
                        else {
                            return;
                        };
                        progress.records += 1;
                        let reached = record.offset() + 1 >= end;
                        if record.offset() < end
                            && let Some(restoring) = &mut all[at]
                        {
                            let stored = Stored {
                                offset: record.offset(),
                                key: record.key(),
                                value: record.value(),
                                headers: record.headers().collect(),
                            };
                            let restored = restoring.decider.restore(topic, &stored, now);
                            failure = failure.take().or(restored.err().map(Error::from));
                        }
                        reached.then_some((at, topic))
                    }
                    Item::End { topic, partition, offset } => sources
                        .get(&(topic.to_owned(), partition))
                        .filter(|(_, _, end)| offset >= *end)
                        .map(|&(at, topic, _)| (at, topic)),
                    Item::Failed { topic, partition, error } => {
                        tracing::debug!(topic, partition, %error, "restore: a partition can't be read at the moment");
                        None
                    }
                };
                if let Some((at, topic)) = seen
                    && let Some(restoring) = &mut all[at]
                {
                    restoring.open.retain(|open| *open != topic);
                }
            })?;
            if let Some(failure) = failure {
                return Err(failure);
            }
            progress.report(self.stall)?;
        }
    }

    /// By grant; waits until they are stable.
    fn committed_offsets(&self, grants: &[Arc<Grant>]) -> Result<Vec<Option<i64>>, Error> {
        let deadline = Instant::now() + self.stall;
        loop {
            let mut asked = TopicPartitionList::new();
            for grant in grants {
                asked.add_partition(&grant.topic, grant.slot.partition);
            }
            let answered = (self.committed)(asked, COMMITTED_TIMEOUT)?;
            let mut offsets = Vec::with_capacity(grants.len());
            let mut unstable = None;
            for grant in grants {
                let found = answered.find_partition(&grant.topic, grant.slot.partition);
                let Some(found) = found else {
                    offsets.push(None);
                    continue;
                };
                match found.error() {
                    Ok(()) => offsets.push(match found.offset() {
                        Offset::Offset(offset) => Some(offset),
                        _ => None,
                    }),
                    Err(_) => unstable = Some(format!("{}/{}", grant.topic, grant.slot.partition)),
                }
            }
            match unstable {
                None => return Ok(offsets),
                Some(partition) if Instant::now() > deadline => return Err(Error::Unstable(partition)),
                Some(partition) => {
                    tracing::info!(partition, "restore: waiting for a predecessor's open transaction");
                    std::thread::sleep(READ_WAIT);
                }
            }
        }
    }
}

/// What is read: by topic and partition, whose it is, which topic, and up to where.
type Sources = HashMap<(String, i32), (usize, Topic, i64)>;

impl Ends {
    fn ask(watcher: &BaseConsumer<Logged>, kind: &dyn CommandType, partition: i32) -> Result<Self, KafkaError> {
        let ends = |topic| watcher.fetch_watermarks(kind.topic(topic), partition, ENDS_TIMEOUT);
        Ok(Self {
            commands: ends(Topic::Commands)?,
            events: ends(Topic::Events)?,
            outcomes: ends(Topic::Outcomes)?,
            snapshots: ends(Topic::Snapshots)?,
        })
    }
}

impl Restoring {
    /// Has a topic read, from an offset to its end.
    #[allow(clippy::too_many_arguments, reason = "the parts of one restore")]
    fn open_source(
        &mut self,
        at: usize,
        topic: Topic,
        name: &str,
        (from, end): (i64, i64),
        sources: &mut Sources,
        progress: &mut Progress,
        reader: &mut BulkReader,
    ) -> Result<(), KafkaError> {
        if end > from {
            let partition = self.grant.slot.partition;
            progress.total += end - from;
            self.open.push(topic);
            sources.insert((name.to_owned(), partition), (at, topic, end));
            reader.add(&[(name, partition, from)])?;
        }
        Ok(())
    }

    fn done(self, started: Instant) -> Result<Restored, Error> {
        // A committed offset that is missing (an expired group) or behind what the outcomes show is repaired from
        // them, never reset; "from the beginning" is right only where nothing was decided yet.
        let decided = self.decider.decided_up_to();
        let (aggregates, outcomes) = self.decider.sizes();
        let name = || format!("{}/{}", self.grant.topic, self.grant.slot.partition);
        let (first, end) = self.ends.commands;
        let start = match self.committed.max(decided) {
            Some(start) if start < first => {
                tracing::error!(partition = name(), start, first, "commands were deleted before they were decided");
                first
            }
            Some(start) if start > end => return Err(Error::BeyondEnd(name(), start, end)),
            Some(start) => start,
            None if aggregates == 0 => first,
            None => return Err(Error::NoStart(name())),
        };
        if decided.is_some() && self.committed < decided {
            tracing::warn!(
                partition = self.grant.slot.partition,
                committed = self.committed,
                decided,
                "the group's committed offset is missing or too low; going on behind the last outcome"
            );
        }
        tracing::debug!(
            topic = self.grant.topic,
            partition = self.grant.slot.partition,
            aggregates,
            outcomes,
            start,
            seconds = started.elapsed().as_secs_f64(),
            "partition restored"
        );
        metrics::histogram!("millrace_restore_seconds").record(started.elapsed().as_secs_f64());
        Ok(Restored { grant: self.grant, decider: self.decider, start, outcomes_end: self.ends.outcomes.1 })
    }
}

/// Says how far a restore is, and notices when it does not move.
struct Progress {
    total: i64,
    records: u64,
    seen: u64,
    moved: Instant,
    said: Instant,
    started: Instant,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self { total: 0, records: 0, seen: 0, moved: now, said: now, started: now }
    }

    fn report(&mut self, stall: Duration) -> Result<(), Error> {
        if self.records > self.seen {
            self.seen = self.records;
            self.moved = Instant::now();
        } else if self.moved.elapsed() > stall {
            return Err(Error::Stalled(stall));
        }
        if self.said.elapsed() > PROGRESS_INTERVAL {
            self.said = Instant::now();
            let rate = self.records as f64 / self.started.elapsed().as_secs_f64();
            let left = (self.total as f64 - self.records as f64).max(0.0);
            let remaining = left / rate.max(1.0);
            metrics::gauge!("millrace_restore_records_left").set(left);
            tracing::info!(
                records = self.records,
                of_at_most = self.total,
                per_second = rate.round(),
                remaining_seconds = remaining.round(),
                "restoring"
            );
        }
        Ok(())
    }
}
