//! Taking a partition over: its states and remembered outcomes are read back from the log.
//!
//! In this order: the group's committed offset with stable offsets required (this waits for a predecessor's open
//! transaction); *then* the high watermarks of events and outcomes, and after them that of the keys, as a `read_uncommitted` consumer sees them (an open
//! transaction of a dead producer would hide newer committed records behind the last stable offset); then all records
//! up to these, `read_committed`. Whether a target is reached is judged by the end that the reader reports, which lies
//! behind transaction markers, never by the offsets of records.

mod progress;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use millrace_shared::{
    fast_hash::FastMap,
    kafka::{
        Logged,
        bulk::{BulkReader, Item},
        successive_reader_config,
        topics::Topic,
        watcher,
    },
};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};

use super::{Decider, RestoreError, Settings, Stored};
use crate::{grant::Grant, types::CommandType};
use progress::Progress;

const READ_WAIT: Duration = Duration::from_millis(100);
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);
/// Others wait for it.
const ENDS_TIMEOUT: Duration = Duration::from_secs(3);
/// Partitions that a thread reads at a time: what they gather before their stores are written lies in memory.
const SIDE_BY_SIDE: usize = 2;
/// One that nothing was read of for so long (it has no leader, say) does not hold up the next.
const PATIENCE: Duration = Duration::from_secs(1);
/// Outcomes are read from the beginning of the window on (their time stamps are their writers'), and at least from so many offsets before the end: the last ones
/// tell which commands were decided.
const OUTCOMES_AT_LEAST: i64 = 1_000;

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
    /// In a domain, most likely.
    #[error("it panicked, the reason is above")]
    Panicked,
    /// Kafka's retention was faster.
    #[error("{0}: records were deleted while they were to be read")]
    Deleted(String),
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
    /// How long outcomes are remembered.
    pub window: Duration,
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
    /// All else waits for the keys.
    begun: bool,
    /// Events wait for the snapshots, which say from where on they count.
    events_begun: bool,
    /// When something of it was read.
    moved: Instant,
}

/// First offset and end of a partition of each topic.
#[derive(Clone, Copy)]
struct Ends {
    commands: (i64, i64),
    events: (i64, i64),
    /// From the first that may still be remembered.
    outcomes: (i64, i64),
    snapshots: (i64, i64),
    scheduled: (i64, i64),
    /// Asked for last: an event whose key is not there then was erased.
    keys: (i64, i64),
}

/// What all partitions of a job share.
struct Reading<'a> {
    types: &'a [Arc<dyn CommandType>],
    reader: BulkReader,
    sources: Sources,
    progress: Progress,
}

impl Job<'_> {
    /// Restores partitions, a few at a time, and hands each over as soon as it is ready.
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
        let reader = BulkReader::new(&successive_reader_config(self.bootstrap, "millrace-restore"))?;
        let mut kinds: Vec<usize> = grants.iter().map(|grant| grant.slot.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let read = [Topic::Snapshots, Topic::Events, Topic::Outcomes, Topic::Scheduled, Topic::Keys];
            let has = Topic::of(types[kind].info().is_personal).filter(|topic| read.contains(topic));
            reader.meet(&has.map(|topic| types[kind].topic(topic)).collect::<Vec<_>>())?;
        }
        let mut reading = Reading { types, reader, sources: Sources::default(), progress: Progress::new() };
        let (mut waiting, mut failed) = (VecDeque::new(), None);
        for (at, asked) in self.ask_ends(&watcher, grants, &committed, types, now).into_iter().enumerate() {
            match asked {
                Ok(ends) => {
                    reading.progress.total += ends.records();
                    waiting.push_back((at, ends));
                }
                Err(error) => failed = failed.or(Some(Error::from(error))),
            }
        }
        let mut all: Vec<Option<Restoring>> = grants.iter().map(|_| None).collect();
        loop {
            let begun = Instant::now();
            let is_busy = |restoring: &&Restoring| restoring.moved.elapsed() < PATIENCE;
            while all.iter().flatten().filter(is_busy).count() < SIDE_BY_SIDE
                && let Some((at, ends)) = waiting.pop_front()
            {
                let grant = &grants[at];
                if !(self.wanted)(grant) {
                    reading.progress.total -= ends.records();
                } else {
                    let decider = types[grant.slot.kind].clone().partition(settings(grant));
                    all[at] = Some(Restoring::begin(at, grant.clone(), decider, (committed[at], ends), &mut reading)?);
                }
            }
            for (at, place) in all.iter_mut().enumerate() {
                // One that has gone lets go of its store, for it may come back.
                if let Some(gone) = place.take_if(|restoring| !(self.wanted)(&restoring.grant)) {
                    reading.close(&gone, &gone.open)?;
                }
                // One that can't go on, or begin, does not hold up the others.
                let gone_on = place.as_mut().map_or(Ok(()), |restoring| restoring.go_on(at, &mut reading));
                if let Err(error) = gone_on {
                    failed = failed.or(Some(error));
                    if let Some(gone) = place.take() {
                        reading.close(&gone, &gone.open)?;
                    }
                }
                if let Some(restoring) = place.take_if(|restoring| restoring.open.is_empty()) {
                    match restoring.done(started) {
                        Ok(restored) => ready(restored),
                        Err(error) => failed = failed.or(Some(error)),
                    }
                }
            }
            Self::pardon(&mut all, begun.elapsed());
            let at_work = all.iter().flatten().next().is_some();
            if !at_work && waiting.is_empty() {
                return failed.map_or(Ok(()), Err);
            }
            if !grants.iter().any(|grant| (self.wanted)(grant)) {
                return Ok(());
            }
            if at_work {
                let begun = Instant::now();
                reading.read(&mut all, now)?;
                // What was read may have been written to a store meanwhile.
                Self::pardon(&mut all, begun.elapsed().saturating_sub(READ_WAIT));
                reading.progress.report();
                // One that hangs is begun again when the others are done.
                if all.iter().flatten().all(|restoring| restoring.moved.elapsed() > self.stall) {
                    return Err(Error::Stalled(self.stall));
                }
            }
        }
    }

    /// So long we did not listen: no partition is to blame that nothing was read of it.
    fn pardon(all: &mut [Option<Restoring>], by: Duration) {
        all.iter_mut().flatten().for_each(|restoring| restoring.moved += by);
    }

    /// Asks for the ends of all partitions side by side: one without a leader is asked for until the time is up.
    fn ask_ends(
        &self,
        watcher: &BaseConsumer<Logged>,
        grants: &[Arc<Grant>],
        committed: &[Option<i64>],
        types: &[Arc<dyn CommandType>],
        now: Timestamp,
    ) -> Vec<Result<Ends, KafkaError>> {
        let window = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX);
        let remembered_since = now.as_millisecond().saturating_sub(window);
        std::thread::scope(|scope| {
            let ask = |(grant, committed): (&Arc<Grant>, &Option<i64>)| {
                let (kind, partition) = (&types[grant.slot.kind], grant.slot.partition);
                // Without a committed offset the outcomes tell what was decided, however old they are.
                let since = committed.map_or(0, |_| remembered_since);
                scope.spawn(move || Ends::ask(watcher, &**kind, partition, since))
            };
            let asking: Vec<_> = grants.iter().zip(committed).map(ask).collect();
            asking.into_iter().map(|thread| thread.join().unwrap_or(Err(KafkaError::Canceled))).collect()
        })
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
type Sources = FastMap<String, BTreeMap<i32, (usize, Topic, i64)>>;

impl Reading<'_> {
    /// Has a topic read, from an offset to its end.
    fn open(
        &mut self,
        at: usize,
        restoring: &mut Restoring,
        topic: Topic,
        (from, end): (i64, i64),
    ) -> Result<(), Error> {
        if end > from {
            let (slot, name) = (restoring.grant.slot, self.types[restoring.grant.slot.kind].topic(topic));
            self.progress.total += end - from;
            restoring.open.push(topic);
            self.sources.entry(name.to_owned()).or_default().insert(slot.partition, (at, topic, end));
            self.reader.add(&[(name, slot.partition, from)])?;
        }
        Ok(())
    }

    /// Reads what is there.
    fn read(&mut self, all: &mut [Option<Restoring>], now: Timestamp) -> Result<(), Error> {
        let (sources, progress, mut failure) = (&self.sources, &mut self.progress, None);
        let (moved, mut reached) = (Instant::now(), Vec::new());
        let source = |topic: &str, partition| sources.get(topic).and_then(|of| of.get(&partition)).copied();
        self.reader.read(READ_WAIT, |item| match item {
            Item::Record(record) => {
                let Some((at, topic, end)) = source(record.topic(), record.partition()) else { return };
                if record.offset() < end
                    && let Some(restoring) = &mut all[at]
                {
                    progress.records += 1;
                    restoring.moved = moved;
                    let restored = restoring.decider.restore(topic, &Stored::from(&record), now);
                    failure = failure.take().or(restored.err().map(Error::from));
                }
                if record.offset() + 1 >= end {
                    reached.push((at, topic));
                }
            }
            Item::End { topic, partition, offset } => {
                reached.extend(
                    source(topic, partition).filter(|(_, _, end)| offset >= *end).map(|(at, topic, _)| (at, topic)),
                );
            }
            Item::Failed {
                topic,
                partition,
                error: RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset,
            } => {
                // It is not tried again by itself.
                if source(topic, partition).is_some() {
                    failure = failure.take().or(Some(Error::Deleted(format!("{topic}/{partition}"))));
                }
            }
            Item::Failed { topic, partition, error } => {
                tracing::debug!(topic, partition, %error, "restore: a partition can't be read at the moment");
            }
        })?;
        for (at, topic) in reached {
            if let Some(restoring) = &mut all[at]
                && restoring.open.contains(&topic)
            {
                restoring.moved = moved;
                restoring.open.retain(|open| *open != topic);
                self.close(restoring, &[topic])?;
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Has topics of a partition read no longer: they may go on, while others are still restored.
    fn close(&mut self, restoring: &Restoring, topics: &[Topic]) -> Result<(), Error> {
        let slot = restoring.grant.slot;
        for topic in topics {
            let name = self.types[slot.kind].topic(*topic);
            if let Some(of) = self.sources.get_mut(name) {
                of.remove(&slot.partition);
            }
            self.reader.remove(&[(name, slot.partition)])?;
        }
        Ok(())
    }
}

impl Ends {
    fn ask(
        watcher: &BaseConsumer<Logged>,
        kind: &dyn CommandType,
        partition: i32,
        remembered_since: i64,
    ) -> Result<Self, KafkaError> {
        let ends = |topic| watcher.fetch_watermarks(kind.topic(topic), partition, ENDS_TIMEOUT);
        let (first, end) = ends(Topic::Outcomes)?;
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(kind.topic(Topic::Outcomes), partition, Offset::Offset(remembered_since.max(0)))?;
        let found = watcher.offsets_for_times(wanted, ENDS_TIMEOUT)?;
        let since = match found.elements().first().map(|element| element.offset()) {
            Some(Offset::Offset(since)) => since,
            // None is as young.
            Some(Offset::End) => end,
            _ => first,
        };
        let is_personal = kind.info().is_personal;
        Ok(Self {
            commands: ends(Topic::Commands)?,
            events: ends(Topic::Events)?,
            outcomes: (since.min(end - OUTCOMES_AT_LEAST).max(first), end),
            snapshots: ends(Topic::Snapshots)?,
            scheduled: ends(Topic::Scheduled)?,
            keys: if is_personal { ends(Topic::Keys)? } else { (0, 0) },
        })
    }

    /// How many there are to be read at most.
    fn records(&self) -> i64 {
        let of = |(first, end): (i64, i64)| (end - first).max(0);
        of(self.events) + of(self.outcomes) + of(self.snapshots) + of(self.scheduled) + of(self.keys)
    }
}

impl Restoring {
    fn begin(
        at: usize,
        grant: Arc<Grant>,
        decider: Box<dyn Decider>,
        (committed, ends): (Option<i64>, Ends),
        reading: &mut Reading<'_>,
    ) -> Result<Self, Error> {
        let (open, moved) = (Vec::new(), Instant::now());
        let mut restoring = Self { grant, decider, committed, ends, open, begun: false, events_begun: false, moved };
        reading.progress.total -= ends.records();
        reading.open(at, &mut restoring, Topic::Keys, ends.keys)?;
        Ok(restoring)
    }

    /// Begins with what waited for what is read now.
    fn go_on(&mut self, at: usize, reading: &mut Reading<'_>) -> Result<(), Error> {
        if !self.begun && !self.open.contains(&Topic::Keys) {
            self.begun = true;
            self.decider.end_keys()?;
            let stored = self.decider.stored_up_to(self.ends.events, self.ends.outcomes.1);
            self.events_begun = stored.is_some();
            // Neither snapshots nor stores have it.
            reading.open(at, self, Topic::Scheduled, self.ends.scheduled)?;
            match stored {
                Some((events, outcomes)) => {
                    let (first, end) = self.ends.outcomes;
                    reading.open(at, self, Topic::Outcomes, (outcomes.max(first), end))?;
                    reading.open(at, self, Topic::Events, (events, self.ends.events.1))?;
                }
                // What the snapshots are worth is known when all of them are read; until then nothing else is.
                None => reading.open(at, self, Topic::Snapshots, self.ends.snapshots)?,
            }
        }
        self.begin_events(at, reading)
    }

    /// Once the snapshots are read.
    fn begin_events(&mut self, at: usize, reading: &mut Reading<'_>) -> Result<(), Error> {
        if !self.begun || self.events_begun || self.open.contains(&Topic::Snapshots) {
            return Ok(());
        }
        self.events_begun = true;
        let (first, end) = self.ends.events;
        let from = self.decider.first_event_to_read(first, end)?;
        reading.open(at, self, Topic::Events, (from, end))?;
        reading.open(at, self, Topic::Outcomes, self.ends.outcomes)
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
