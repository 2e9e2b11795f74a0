//! One batch: what is waiting is put together, decided and written in one transaction, and taken apart when that fails
//! for a cause that lies in it.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use millrace_shared::kafka::topics::Topic;

use super::{Failure, Producer, Writer, checkpoint};
use crate::{
    failpoints::Point,
    grant::{Grant, Slot},
    partition::{Decider, Held},
    record::CommandRecord,
};

/// Commands in one transaction, over all partitions, at most.
const MAX_TRANSACTION_COMMANDS: usize = 4096;
/// Time for deciding in one transaction, about.
const MAX_DECIDING: Duration = Duration::from_secs(1);
/// A transaction of so long is told of.
const SLOW: Duration = Duration::from_secs(3);
/// How long a partition that can't go on waits before its next attempt; doubled each time.
const MIN_WAIT: Duration = Duration::from_millis(500);
const MAX_WAIT: Duration = Duration::from_secs(10);

/// A partition that a writer serves.
pub(super) struct Served {
    pub(super) grant: Arc<Grant>,
    pub(super) decider: Box<dyn Decider>,
    pub(super) queue: VecDeque<CommandRecord>,
    /// Offset of the next command to be decided.
    pub(super) next: i64,
    /// When a checkpoint was last begun, or can be tried again.
    pub(super) checkpoint_at: Instant,
    /// The same of a commit to the local store.
    pub(super) stored_at: Instant,
    /// Where events and outcomes ended when a commit to the local store became due. It is begun behind the next transaction:
    /// only that proves that the partition was still ours then, and what lay there our own. (A frozen instance that wakes
    /// sees its successor's events there, which its states don't have.)
    pub(super) store_ends: Option<(i64, i64)>,
    held: Option<Hold>,
}

struct Hold {
    until: Instant,
    wait: Duration,
}

/// One partition's part in a batch.
#[derive(Clone, Copy)]
pub(super) struct Part {
    slot: Slot,
    count: usize,
    /// Whether snapshots go with it.
    snapshots: bool,
    /// Whether commands go with it whose time has come.
    due: bool,
}

/// What a batch is decided as.
#[derive(Clone, Copy)]
enum As<'a> {
    /// Commands, by the rules.
    Commands,
    /// Dead letters, for this reason, with their values or without.
    DeadLetters(&'a str, bool),
}

impl Served {
    pub(super) fn new(grant: Arc<Grant>, decider: Box<dyn Decider>, start: i64) -> Self {
        let now = Instant::now();
        Self {
            grant,
            decider,
            queue: VecDeque::new(),
            next: start,
            checkpoint_at: now,
            stored_at: now,
            store_ends: None,
            held: None,
        }
    }

    /// Whether there are commands to be decided or snapshots to be sent, or the local store waits for a transaction.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || self.decider.is_snapshotting() || self.store_ends.is_some() || self.is_due()
    }

    /// Whether the time of a scheduled command has come.
    fn is_due(&self) -> bool {
        self.decider.next_due().is_some_and(|due| due <= Timestamp::now())
    }

    fn hold(&mut self) {
        let wait = self.held.as_ref().map_or(MIN_WAIT, |hold| (hold.wait * 2).min(MAX_WAIT));
        self.held = Some(Hold { until: Instant::now() + wait, wait });
    }
}

impl Writer {
    /// What is waiting, up to the caps; partitions that are held, or whose grants have ended, are let be.
    pub(super) fn assemble(&self, served: &HashMap<Slot, Served>) -> Vec<Part> {
        let now = Instant::now();
        let is_ready = |partition: &Served| {
            partition.has_work()
                && !partition.decider.is_full()
                && !checkpoint::waits_for_stores(partition, served)
                && partition.held.as_ref().is_none_or(|hold| hold.until <= now)
                && self.captures.holds(partition.grant.number)
        };
        let ready: Vec<_> = served.iter().filter(|(_, partition)| is_ready(partition)).collect();
        // The same share for each, so that none is always left out.
        let most = self.batch_commands.min(MAX_TRANSACTION_COMMANDS / ready.len().max(1)).max(1);
        let part = |(slot, partition): (&Slot, &Served)| Part {
            slot: *slot,
            count: partition.queue.len().min(most),
            snapshots: partition.decider.is_snapshotting(),
            due: partition.is_due(),
        };
        ready.into_iter().map(part).collect()
    }

    /// Writes a batch. When the cause of a failure lies in it, it is taken apart: by partition first, then by halves,
    /// until a single command is left, which becomes a dead letter. A partition that can't be written waits, and the
    /// others go on; a broker's error never makes a dead letter.
    pub(super) fn work(
        &self,
        producer: &Producer,
        batch: &[Part],
        served: &mut HashMap<Slot, Served>,
    ) -> Result<(), Failure> {
        match self.write_again(producer, batch, served, As::Commands) {
            Err(Failure::Unavailable(partitions, error)) => {
                tracing::warn!(?partitions, error, "partitions can't be written at the moment; others go on");
                let mut blamed: Vec<Slot> = batch.iter().map(|part| part.slot).collect();
                blamed.retain(|slot| partitions.iter().any(|(topic, number)| self.is_of(*slot, topic, *number)));
                match (blamed.as_slice(), batch) {
                    // Somebody forwards to a partition that isn't in the batch: who does will be seen.
                    ([], [_, _, ..]) => return self.one_by_one(producer, batch, served),
                    ([], [part]) => blamed.push(part.slot),
                    _ => {}
                }
                blamed.iter().for_each(|slot| {
                    served.get_mut(slot).map(Served::hold);
                });
                Ok(())
            }
            Err(Failure::Poison(reason))
                if batch.iter().any(|part| part.snapshots) && !batch.iter().any(|part| part.due) =>
            {
                // Never are commands blamed for a snapshot.
                let commands = batch.iter().filter(|part| part.count > 0);
                let commands: Vec<_> = commands.map(|part| Part { snapshots: false, ..*part }).collect();
                match self.write_again(producer, &commands, served, As::Commands) {
                    Ok(()) => {
                        for part in batch.iter().filter(|part| part.snapshots) {
                            if let Some(partition) = served.get_mut(&part.slot) {
                                partition.decider.give_snapshots_up(&reason);
                            }
                        }
                        Ok(())
                    }
                    Err(Failure::Poison(_) | Failure::Unavailable(..)) => self.work(producer, &commands, served),
                    result => result,
                }
            }
            Err(Failure::Poison(reason)) => match batch {
                // What is due has its turn when the cause lies elsewhere.
                [part] if part.due && (part.count > 0 || part.snapshots) => {
                    self.work(producer, &[Part { due: false, ..*part }], served)
                }
                [part] if part.due => {
                    tracing::error!(
                        partition = part.slot.partition,
                        reason,
                        "what is due can't be written; the partition waits"
                    );
                    served.get_mut(&part.slot).map(Served::hold);
                    Ok(())
                }
                [part] if part.count == 0 => Ok(()),
                [part] if part.count == 1 => self.condemn(producer, *part, served, &reason),
                [part] => {
                    let (first, rest) = (part.count / 2, part.count - part.count / 2);
                    self.work(producer, &[Part { count: first, ..*part }], served)?;
                    self.work(producer, &[Part { count: rest, ..*part }], served)
                }
                _ => self.one_by_one(producer, batch, served),
            },
            result => result,
        }
    }

    fn one_by_one(
        &self,
        producer: &Producer,
        batch: &[Part],
        served: &mut HashMap<Slot, Served>,
    ) -> Result<(), Failure> {
        batch.iter().try_for_each(|part| self.work(producer, &[*part], served))
    }

    /// Makes a dead letter of a command that can't be written; without its value when even that can't be.
    fn condemn(
        &self,
        producer: &Producer,
        part: Part,
        served: &mut HashMap<Slot, Served>,
        reason: &str,
    ) -> Result<(), Failure> {
        tracing::error!(partition = part.slot.partition, reason, "a command can't be written; it goes to dead letters");
        match self.write_again(producer, &[part], served, As::DeadLetters(reason, true)) {
            Err(Failure::Poison(_)) => {}
            result => return result,
        }
        match self.write_again(producer, &[part], served, As::DeadLetters(reason, false)) {
            Err(Failure::Poison(reason)) => {
                tracing::error!(partition = part.slot.partition, reason, "nor its dead letter; the partition waits");
                served.get_mut(&part.slot).map(Served::hold);
                Ok(())
            }
            result => result,
        }
    }

    /// Whether a partition writes there. Of commands nobody knows who wrote them: what is forwarded, and what follows on an
    /// event or an outcome, comes from other partitions.
    fn is_of(&self, slot: Slot, topic: &str, partition: i32) -> bool {
        let kind = &self.types[slot.kind];
        let own = Topic::ALL.iter().filter(|which| **which != Topic::Commands);
        slot.partition == partition && own.map(|which| kind.topic(*which)).any(|own| own == topic)
    }

    /// One transaction, and another one when the first was aborted: after a broker has refused a record for its own sake,
    /// librdkafka 2.12 aborts the next transaction too ("skipped sequence numbers").
    fn write_again(
        &self,
        producer: &Producer,
        batch: &[Part],
        served: &mut HashMap<Slot, Served>,
        r#as: As<'_>,
    ) -> Result<(), Failure> {
        match self.write(producer, batch, served, r#as) {
            Err(Failure::Abort(error)) => {
                tracing::info!(error, "transaction aborted; the batch runs again at once");
                self.write(producer, batch, served, r#as)
            }
            result => result,
        }
    }

    /// One transaction.
    fn write(
        &self,
        producer: &Producer,
        batch: &[Part],
        served: &mut HashMap<Slot, Served>,
        r#as: As<'_>,
    ) -> Result<(), Failure> {
        // A stall is not time for deciding.
        self.fail_points.reach(Point::Begin);
        let started = Instant::now();
        let mut transaction = producer.begin(&self.fail_points)?;
        let now = Timestamp::now();
        let mut decided = Vec::with_capacity(batch.len());
        let mut panicked = false;
        for part in batch {
            let Some(partition) = served.get_mut(&part.slot) else { continue };
            let Served { decider, queue, .. } = partition;
            let mut sink = transaction.sink(part.slot.kind);
            let (mut count, mut held) = (0_usize, None);
            for record in queue.iter().take(part.count) {
                // Schemas are asked for one by one: a transaction that is full of new ones must not time out over it.
                if started.elapsed() > MAX_DECIDING {
                    break;
                }
                let deciding = || match r#as {
                    As::Commands => decider.decide(record, now, &mut sink),
                    As::DeadLetters(reason, whole) => {
                        decider.condemn(record, reason, whole, now, &mut sink);
                        Ok(())
                    }
                };
                match catch_unwind(AssertUnwindSafe(deciding)) {
                    Ok(Ok(())) => count += 1,
                    Ok(Err(Held(reason))) => {
                        held = Some(reason);
                        break;
                    }
                    Err(_) => {
                        panicked = true;
                        break;
                    }
                }
            }
            if panicked {
                break;
            }
            if let Some(reason) = held {
                let number = part.slot.partition;
                tracing::warn!(partition = number, reason, "a command has to wait, and its partition with it");
                partition.hold();
            }
            let last = count.checked_sub(1).and_then(|last| partition.queue.get(last));
            let next = last.map_or(partition.next, |last| last.offset + 1);
            if part.snapshots {
                partition.decider.send_snapshots(now, &mut sink);
            }
            if part.due {
                partition.decider.release_due(now, &mut sink);
            }
            if count > 0 || part.snapshots || part.due || partition.store_ends.is_some() {
                decided.push((part.slot, count, next));
            }
        }
        let fence = || {
            let next = decided.iter().filter_map(|(slot, _, next)| Some((&*served.get(slot)?.grant, *next)));
            self.captures.fence(next)
        };
        let result = match (panicked, decided.is_empty()) {
            (true, _) => transaction.give_up("deciding it panicked".to_owned()),
            (false, true) => transaction.abandon(),
            (false, false) => transaction.commit(fence),
        };
        if started.elapsed() > SLOW {
            let seconds = started.elapsed().as_secs_f64();
            tracing::warn!(writer = self.number, seconds, "a transaction took long: a broker or the registry is slow");
        }
        if result.is_err() {
            for part in batch {
                if let Some(partition) = served.get_mut(&part.slot) {
                    partition.decider.rollback();
                }
            }
            return result;
        }
        if decided.is_empty() {
            return Ok(());
        }
        self.fail_points.reach(Point::Committed);
        let commands: usize = decided.iter().map(|(_, count, _)| count).sum();
        for (slot, count, next) in decided {
            let Some(partition) = served.get_mut(&slot) else { continue };
            partition.next = next;
            partition.decider.commit(now);
            if let Some((events, outcomes)) = partition.store_ends.take() {
                partition.decider.begin_store_commit(next, events, outcomes);
            }
            partition.grant.dequeue(partition.queue.iter().take(count));
            partition.queue.drain(..count);
            // What was decided before a command that has to wait doesn't make it wait no longer.
            partition.held.take_if(|hold| hold.until <= Instant::now());
        }
        metrics::counter!("millrace_transactions_total", "result" => "committed").increment(1);
        metrics::histogram!("millrace_transaction_seconds").record(started.elapsed().as_secs_f64());
        metrics::histogram!("millrace_transaction_commands").record(commands as f64);
        Ok(())
    }
}
