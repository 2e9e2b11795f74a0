//! The one loop that brings the records of a topic into Redis.
//!
//! Progress is what Redis says: a partition is read from its checkpoint on, and every write compares the checkpoint and
//! the owner's number first. Whatever goes wrong ends in the same place: what was kept in memory is thrown away, the
//! checkpoint is read again, and the log is read again from there.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant},
};

use millrace_shared::{
    kafka::{
        self, Logged, REQUEST_TIMEOUT,
        bulk::{BulkReader, Item},
    },
    views::{Keys, meta},
};
use rdkafka::{consumer::BaseConsumer, error::KafkaError};

use crate::{
    board::{Board, Place},
    command::Command,
    partition::{Open, Slot, Waiting},
    store::{Applied, Claim, Meta, Store, Write},
    target::{Batch, Error, Target, Trimmed},
};

/// Longest wait for records; orders and the end are looked at as often.
const POLL: Duration = Duration::from_millis(50);
/// A position that moved without records (transaction markers) is written after so long.
const IDLE: Duration = Duration::from_millis(50);
/// Records that one reading brings at most.
const READING: usize = 1_024;
/// A partition has caught up when it has reached where the log ended so long ago.
const NEAR: Duration = Duration::from_secs(1);
/// How often Redis is asked whether an idle partition is still as we left it.
const LOOK: Duration = Duration::from_secs(2);

/// What the group says about the partitions of the worker's topic.
#[derive(Clone, Debug)]
pub enum Order {
    /// They are ours now.
    Assigned(Vec<i32>),
    /// They no longer are.
    Revoked(Vec<i32>),
}

/// How a worker works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Records in one script call at most.
    pub batch_events: usize,
    /// Bytes of the records that are read before a batch is written, about.
    pub batch_bytes: usize,
    /// Whether to wait for as many as that, until the log's end is reached.
    pub patient: bool,
    /// How long after another owner turned up a partition that is still assigned to us is claimed again.
    pub reclaim_after: Duration,
}

/// What a worker needs.
pub struct Parts<T> {
    /// What the records are.
    pub target: T,
    /// Reads them.
    pub reader: BulkReader,
    /// Makes a client that asks for the log's ends.
    pub watch: Box<dyn Fn() -> Result<BaseConsumer<Logged>, KafkaError> + Send>,
    /// Writes.
    pub store: Store,
    /// Tells.
    pub board: Board,
    /// Hears; the worker ends when nobody can speak any more.
    pub orders: Receiver<Order>,
    /// How.
    pub options: Options,
}

/// See the module.
pub struct Worker<T: Target> {
    parts: Parts<T>,
    slots: BTreeMap<i32, Slot<T>>,
    looked: Instant,
    watcher: Option<BaseConsumer<Logged>>,
}

/// Why a partition is no longer open.
enum Trouble {
    Again(String),
    Kafka(KafkaError),
    Stop(String),
    /// The epoch in Redis is another one: a tool's, or another projector's.
    Claimed,
    /// A tool has it.
    Lent,
    /// We had it, and Redis has nothing of it any more.
    Gone,
    /// Another projector has it.
    Fenced,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::Again(reason) => Self::Again(reason),
            Error::Stop(reason) => Self::Stop(reason),
        }
    }
}

impl From<crate::store::Error> for Trouble {
    fn from(error: crate::store::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<KafkaError> for Trouble {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}

impl<T: Target> Parts<T> {
    fn place(&self, partition: i32) -> Place {
        Place { topic: self.target.topic().to_owned(), partition, label: self.target.label() }
    }
}

impl<T: Target> Worker<T> {
    /// A worker without partitions.
    pub fn new(parts: Parts<T>) -> Self {
        Self { parts, slots: BTreeMap::new(), looked: Instant::now(), watcher: None }
    }

    /// Works until nobody gives orders any more; the batch under way is finished.
    pub fn run(mut self) {
        while self.take_orders() {
            self.open_waiting();
            if let Err(error) = self.gather() {
                tracing::warn!(topic = self.parts.target.topic(), "reading failed: {error}");
                std::thread::sleep(POLL);
            }
            self.catch_up();
            self.write_pending();
            self.write_positions(IDLE);
            self.look();
        }
        // So that nothing seems unread while nobody reads.
        self.write_positions(Duration::ZERO);
        let partitions: Vec<i32> = self.slots.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.forget(partition));
    }

    /// False when it is time to end.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.parts.orders.try_recv() {
                Ok(Order::Assigned(partitions)) => {
                    for partition in partitions {
                        self.slots.entry(partition).or_insert_with(|| Slot::Waiting(Waiting::new()));
                    }
                }
                Ok(Order::Revoked(partitions)) => {
                    partitions.into_iter().for_each(|partition| self.forget(partition));
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// A partition is no longer ours.
    fn forget(&mut self, partition: i32) {
        self.close(partition);
        self.slots.remove(&partition);
        self.parts.target.closed(partition);
        if self.parts.board.gone(&self.parts.place(partition)) {
            let labels = [("projection", self.parts.target.label().to_owned()), ("partition", partition.to_string())];
            metrics::gauge!("millrace_projector_lag_records", &labels).set(0.0);
        }
    }

    fn open_waiting(&mut self) {
        let now = Instant::now();
        let due: Vec<(i32, Waiting)> = self
            .slots
            .iter()
            .filter_map(|(partition, slot)| match slot {
                Slot::Waiting(waiting) if waiting.not_before <= now => Some((*partition, *waiting)),
                _ => None,
            })
            .collect();
        if due.is_empty() {
            return;
        }
        let topic = self.parts.target.topic().to_owned();
        let mut topic_id = self.topic_id(&topic);
        for (partition, mut waiting) in due {
            let opened = match &topic_id {
                Ok(topic_id) => self.open(partition, &mut waiting, topic_id),
                Err(error) => Err(Trouble::Kafka(error.clone())),
            };
            // Each question waits long for its answer: they are not asked for every partition in vain.
            if let Err(Trouble::Kafka(error)) = &opened {
                topic_id = Err(error.clone());
                self.watcher = None;
            }
            let slot = match opened {
                Ok(open) => {
                    tracing::info!(
                        projection = self.parts.target.label(),
                        topic,
                        partition,
                        epoch = open.epoch,
                        offset = open.position,
                        "projecting"
                    );
                    self.parts.board.solved(&self.parts.place(partition));
                    Slot::Open(Box::new(open))
                }
                Err(trouble) => {
                    let again = match trouble {
                        Trouble::Lent => waiting.lent(),
                        Trouble::Gone => Waiting::gone(),
                        _ => waiting.failed(),
                    };
                    self.trouble(partition, trouble, again)
                }
            };
            self.slots.insert(partition, slot);
        }
    }

    /// A client whose DescribeTopics was not answered once (its broker was frozen for a while) is never answered again
    /// (librdkafka 2.12), though its other questions are: so after an error the next question goes by a new client.
    fn topic_id(&mut self, topic: &str) -> Result<String, KafkaError> {
        let watcher = match self.watcher.take() {
            Some(watcher) => watcher,
            None => (self.parts.watch)()?,
        };
        let topic_id = kafka::topic_id(&watcher, topic, REQUEST_TIMEOUT)?;
        self.watcher = Some(watcher);
        Ok(topic_id)
    }

    fn open(&mut self, partition: i32, waiting: &mut Waiting, topic_id: &str) -> Result<Open<T>, Trouble> {
        let Parts { target, watch, store, .. } = &mut self.parts;
        let keys = target.keys(partition);
        let found = match store.claim(&keys, waiting.epoch)? {
            Claim::Granted(found) => found,
            Claim::Lent => return Err(Trouble::Lent),
            Claim::Gone => return Err(Trouble::Gone),
            Claim::OtherOwner => return Err(Trouble::Fenced),
        };
        // It is ours, also when something else goes wrong now: the next attempt must not take us for another.
        waiting.epoch = Some(found.epoch);
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => none.insert(watch()?),
        };
        // Not before: the former owner's checkpoint moved until then, and would seem to be beyond the end.
        let (first, end) = kafka::watermarks(watcher, target.topic(), partition)?;
        if found.dropping {
            return Err(Trouble::Stop(format!(
                "it is half freed, and its version is in use nevertheless, since the list of versions was lost: run \
                 `projector-service rebuild {}`",
                name_in(target.label())
            )));
        }
        if let Some(fold) = found.fold.filter(|fold| *fold != target.fold_version()) {
            return Err(Trouble::Stop(other_fold(target.label(), fold, target.fold_version())));
        }
        let position = start(&found, topic_id, first, end, target.when_trimmed()).map_err(Trouble::Stop)?;
        let memory = target.remember(&keys, store)?;
        let mended = target.mend(partition, &keys, store)?;
        let mut open = Open {
            keys,
            epoch: found.epoch,
            topic_id: topic_id.to_owned(),
            checkpoint: found.offset,
            position,
            ahead_since: None,
            live: found.live,
            begun: found.fold.is_some(),
            at_end: false,
            end: (Instant::now(), end),
            pending: Vec::new(),
            broken: None,
            memory,
        };
        for command in mended {
            write(&mut self.parts, &mut open, &[command], position, false)?;
        }
        self.parts.reader.add(&[(self.parts.target.topic(), partition, position)])?;
        Ok(open)
    }

    /// Reads what is there, until there is enough for a batch or nothing more.
    fn gather(&mut self) -> Result<(), KafkaError> {
        let Parts { target, reader, options, .. } = &mut self.parts;
        let slots = &mut self.slots;
        let (mut timeout, mut gathered, mut bytes, mut ended) = (POLL, 0, 0, false);
        // Every partition costs two calls, however little there is: who is behind reads a batch for each, so that the calls
        // are shared by more the more there is to do.
        let open = slots.values().filter(|slot| matches!(slot, Slot::Open(_))).count().max(1);
        // One reading brings up to a thousand: they are to be part of the batch, not one of their own.
        let enough = if options.patient {
            options.batch_events.saturating_sub(READING).max(1)
        } else {
            options.batch_events * open
        };
        while gathered < enough && bytes < options.batch_bytes {
            let count = reader.read(timeout, |item| match item {
                Item::Record(record) => {
                    let Some(Slot::Open(open)) = slots.get_mut(&record.partition()) else { return };
                    if !open.expects(record.offset()) {
                        return;
                    }
                    match target.read(&record) {
                        Ok(item) => open.took(record.offset(), item),
                        Err(unreadable) => open.broken = Some(unreadable.0),
                    }
                    gathered += 1;
                    bytes += record.value().map_or(0, <[u8]>::len) + record.key().map_or(0, <[u8]>::len);
                }
                Item::End { partition, offset, .. } => {
                    ended = true;
                    if let Some(Slot::Open(open)) = slots.get_mut(&partition) {
                        open.reached_end(offset);
                    }
                }
                Item::Failed { partition, error, .. } => {
                    if let Some(Slot::Open(open)) = slots.get_mut(&partition) {
                        open.broken = Some(format!("Kafka: {error}"));
                    }
                }
            })?;
            if count == 0 || ended {
                break;
            }
            timeout = if options.patient { POLL } else { Duration::ZERO };
        }
        Ok(())
    }

    /// While events keep coming, nobody tells of the log's end: librdkafka does when a fetch comes back empty, which takes
    /// half a second without events. So a partition that is not live yet has caught up when it has reached what was the
    /// end a moment ago.
    fn catch_up(&mut self) {
        let topic = self.parts.target.topic();
        let Some(watcher) = &self.watcher else { return };
        for (&partition, slot) in &mut self.slots {
            let Slot::Open(open) = slot else { continue };
            if open.live || open.at_end || open.position < open.end.1 {
                continue;
            }
            if open.end.0.elapsed() > NEAR {
                // Should it not be known now, then the next time.
                let Ok((_, end)) = kafka::watermarks(watcher, topic, partition) else { return };
                open.end = (Instant::now(), end);
            }
            open.at_end = open.position >= open.end.1;
        }
    }

    fn write_pending(&mut self) {
        self.each_open(|parts, open| {
            if open.pending.is_empty() && open.broken.is_none() {
                return Ok(());
            }
            let mut pending = std::mem::take(&mut open.pending);
            while !pending.is_empty() {
                let rest = pending.split_off(pending.len().min(parts.options.batch_events));
                let next = if rest.is_empty() { open.position } else { rest[0].offset };
                let begun = Instant::now();
                let folded = parts.target.fold(&open.keys, &mut open.memory, pending, &mut parts.store);
                let batch = match folded {
                    Err(Error::Stop(reason)) => return Err(stop(parts, open, reason)),
                    folded => folded?,
                };
                let live = rest.is_empty() && open.at_end;
                write(parts, open, &batch.commands, next, live)?;
                parts.target.written(&open.keys, &mut parts.store)?;
                count(parts.target.label(), &batch, begun.elapsed());
                pending = rest;
            }
            match open.broken.take() {
                Some(reason) => Err(Trouble::Again(reason)),
                None => Ok(()),
            }
        });
    }

    /// Writes positions that moved without records, which must not cost a call for each transaction marker.
    fn write_positions(&mut self, idle: Duration) {
        self.each_open(|parts, open| {
            if !open.is_ahead() {
                open.ahead_since = None;
                return Ok(());
            }
            let since = *open.ahead_since.get_or_insert_with(Instant::now);
            // A partition is marked live without delay: queries wait for that.
            let due = since.elapsed() >= idle || (open.at_end && !open.live);
            if due { write(parts, open, &[], open.position, open.at_end) } else { Ok(()) }
        });
    }

    /// Notices that Redis was emptied, or is an older copy, although there is nothing to write.
    fn look(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        self.look_at_stopped();
        let open: Vec<&Open<T>> = self
            .slots
            .values()
            .filter_map(|slot| match slot {
                Slot::Open(open) => Some(&**open),
                _ => None,
            })
            .collect();
        if open.is_empty() {
            return;
        }
        let keys: Vec<_> = open.iter().map(|open| &open.keys).collect();
        // The next write finds out.
        let Ok(metas) = self.parts.store.metas(&keys) else { return };
        let mut metas = metas.into_iter();
        self.each_open(|_, open| match metas.next() {
            Some(meta) if meta.epoch > open.epoch => Err(Trouble::Claimed),
            Some(meta) if meta.epoch != open.epoch || meta.offset != open.checkpoint => {
                Err(Trouble::Again("Redis no longer has the checkpoint that was written".into()))
            }
            _ => Ok(()),
        });
    }

    /// Whoever claimed a partition that stopped may have mended it, and one that is gone has nothing that is wrong.
    fn look_at_stopped(&mut self) {
        let epoch_of = |slot: &Slot<T>| if let Slot::Stopped(epoch) = slot { *epoch } else { None };
        let stopped: Vec<(i32, u64)> =
            self.slots.iter().filter_map(|(partition, slot)| Some((*partition, epoch_of(slot)?))).collect();
        if stopped.is_empty() {
            return;
        }
        let keys: Vec<Keys> = stopped.iter().map(|(partition, _)| self.parts.target.keys(*partition)).collect();
        let Ok(metas) = self.parts.store.metas(&keys.iter().collect::<Vec<_>>()) else { return };
        for ((partition, epoch), meta) in stopped.into_iter().zip(metas) {
            if meta.epoch != epoch {
                self.slots.insert(partition, Slot::Waiting(Waiting::claimed_by_another(epoch)));
            }
        }
    }

    /// Does something with every open partition; one that gets into trouble is closed.
    fn each_open(&mut self, mut act: impl FnMut(&mut Parts<T>, &mut Open<T>) -> Result<(), Trouble>) {
        let mut troubled = Vec::new();
        for (&partition, slot) in &mut self.slots {
            let Slot::Open(open) = slot else { continue };
            if let Err(trouble) = act(&mut self.parts, open) {
                troubled.push((partition, open.epoch, trouble));
                continue;
            }
            self.parts.board.progress(self.parts.place(partition), open.position);
        }
        for (partition, epoch, trouble) in troubled {
            self.close(partition);
            let again = match trouble {
                Trouble::Claimed => Waiting::claimed_by_another(epoch),
                _ => Waiting::resuming(epoch),
            };
            let slot = self.trouble(partition, trouble, again);
            self.slots.insert(partition, slot);
        }
    }

    fn trouble(&self, partition: i32, trouble: Trouble, again: Waiting) -> Slot<T> {
        let board = &self.parts.board;
        let place = self.parts.place(partition);
        let (projection, topic) = (place.label, place.topic.clone());
        match trouble {
            Trouble::Gone => {
                let reason = "Redis has nothing of this partition any more: it was emptied, or the version was freed";
                self.trouble(partition, Trouble::Again(reason.into()), again)
            }
            Trouble::Kafka(error) => self.trouble(partition, Trouble::Again(format!("Kafka: {error}")), again),
            Trouble::Again(reason) => {
                // An outage is told once, not for every attempt.
                if board.problem(place, reason.clone()) {
                    tracing::warn!(projection, topic, partition, "reading again from the checkpoint: {reason}");
                } else {
                    tracing::debug!(projection, topic, partition, "not yet: {reason}");
                }
                Slot::Waiting(again)
            }
            // Nothing is amiss yet: when it was a tool, the partition is back in a moment.
            Trouble::Claimed | Trouble::Lent => {
                tracing::debug!(topic, partition, "somebody has claimed the partition");
                Slot::Waiting(again)
            }
            Trouble::Fenced => {
                let after = self.parts.options.reclaim_after;
                tracing::warn!(projection, topic, partition, "another projector has taken the partition over");
                board.problem(place, "another projector has taken the partition over".into());
                Slot::Waiting(Waiting::fenced(after))
            }
            Trouble::Stop(reason) => {
                tracing::error!(projection, topic, partition, "this partition is no longer projected: {reason}");
                board.stop(place, reason);
                Slot::Stopped(again.epoch)
            }
        }
    }

    fn close(&mut self, partition: i32) {
        if let Some(Slot::Open(_)) = self.slots.get(&partition)
            && let Err(error) = self.parts.reader.remove(&[(self.parts.target.topic(), partition)])
        {
            tracing::warn!(topic = self.parts.target.topic(), partition, "can't stop reading: {error}");
        }
    }
}

fn other_fold(label: &str, there: u32, ours: u32) -> String {
    format!(
        "its views were folded by version {there} of the projection's code, and this release has version {ours}: run \
         `projector-service rebuild {}`",
        name_in(label)
    )
}

/// A label without the number of the version.
fn name_in(label: &str) -> &str {
    label.rsplit_once(".v").map_or(label, |(name, _)| name)
}

/// Where to read from, or why that is not possible.
fn start(found: &Meta, topic_id: &str, first: i64, end: i64, when_trimmed: Trimmed) -> Result<i64, String> {
    // Outcomes have no versions.
    let way_out = match when_trimmed {
        Trimmed::Stop => "build the views again from what the log has (projector-service rebuild)",
        Trimmed::GoOn => "empty Redis",
    };
    if let Some(other) = found.topic_id.as_deref().filter(|other| *other != topic_id) {
        return Err(format!(
            "what is in Redis was made from a topic with id {other}, but the topic's id is {topic_id}: it was deleted and \
             made again, or Redis belongs to another cluster; mend the address, or {way_out}"
        ));
    }
    match found.offset {
        None => Ok(first),
        Some(offset) if offset > end => Err(format!(
            "the views in Redis go up to offset {offset}, but the log ends at {end}: the log has lost records; restore \
             it, or {way_out}"
        )),
        Some(offset) if offset < first && when_trimmed == Trimmed::Stop => Err(format!(
            "the views in Redis go up to offset {offset}, but the log begins at {first}: the records between them are \
             gone, and going on would leave a hole; restore the log or a newer copy of Redis, or {way_out}: aggregates whose \
             beginning is gone are parked then"
        )),
        Some(offset) => Ok(offset.max(first)),
    }
}

/// A partition must stop, unless somebody else had it meanwhile and knows better than our memory.
fn stop<T: Target>(parts: &mut Parts<T>, open: &Open<T>, reason: String) -> Trouble {
    match parts.store.metas(&[&open.keys]) {
        Ok(metas) if metas.iter().all(|meta| meta.epoch == open.epoch) => Trouble::Stop(reason),
        Ok(_) => Trouble::Claimed,
        Err(error) => error.into(),
    }
}

fn write<T: Target>(
    parts: &mut Parts<T>,
    open: &mut Open<T>,
    commands: &[Command],
    next: i64,
    at_end: bool,
) -> Result<(), Trouble> {
    let mark_live = at_end && !open.live;
    let live = mark_live.then(|| Command::new("HSET", open.keys.meta()).with(meta::STATE).with(meta::LIVE));
    let begun = (!open.begun).then(|| {
        let fold = parts.target.fold_version().to_string();
        let begun = Command::new("HSET", open.keys.meta()).with(meta::FOLD).with(fold);
        begun.with(meta::BORN).with(open.epoch.to_string())
    });
    let marked;
    let commands = if live.is_some() || begun.is_some() {
        marked = commands.iter().cloned().chain(live).chain(begun).collect::<Vec<_>>();
        &marked
    } else {
        commands
    };
    let write = Write { epoch: open.epoch, topic_id: &open.topic_id, expected: open.checkpoint, next, commands };
    match parts.store.apply(&open.keys, &write)? {
        Applied::Written => {
            open.checkpoint = Some(next);
            open.ahead_since = None;
            open.live |= mark_live;
            open.begun = true;
            Ok(())
        }
        Applied::OtherOwner => Err(Trouble::Claimed),
        Applied::OtherCheckpoint => Err(Trouble::Again("the checkpoint in Redis is another one".into())),
    }
}

fn count(projection: &'static str, batch: &Batch, took: Duration) {
    metrics::counter!("millrace_projector_events_applied_total", "projection" => projection).increment(batch.applied);
    metrics::counter!("millrace_projector_repeats_dropped_total", "projection" => projection).increment(batch.repeated);
    metrics::counter!("millrace_projector_events_parked_total", "projection" => projection).increment(batch.parked);
    metrics::histogram!("millrace_projector_batch_seconds", "projection" => projection).record(took);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: Option<i64>, topic_id: Option<&str>, when_trimmed: Trimmed) -> Result<i64, String> {
        let found = Meta {
            epoch: 1,
            offset,
            topic_id: topic_id.map(str::to_owned),
            live: true,
            fold: Some(1),
            dropping: false,
        };
        start(&found, "now", 10, 20, when_trimmed)
    }

    #[test]
    fn g07_a_checkpoint_is_followed_or_refused_never_jumped() {
        assert_eq!(at(None, None, Trimmed::Stop), Ok(10));
        assert_eq!(at(Some(15), Some("now"), Trimmed::Stop), Ok(15));
        assert_eq!(at(Some(20), Some("now"), Trimmed::Stop), Ok(20));
        assert!(at(Some(21), Some("now"), Trimmed::Stop).unwrap_err().contains("ends at 20"));
        assert!(at(Some(9), Some("now"), Trimmed::Stop).unwrap_err().contains("begins at 10"));
        assert!(at(Some(15), Some("before"), Trimmed::GoOn).unwrap_err().contains("before"));
    }

    #[test]
    fn outcomes_that_expired_are_not_waited_for() {
        assert_eq!(at(Some(9), Some("now"), Trimmed::GoOn), Ok(10));
    }
}
