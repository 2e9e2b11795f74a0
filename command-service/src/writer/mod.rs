//! A writer: one thread, one transactional producer, a share of the partitions of all aggregate types.
//!
//! It runs one transaction at a time for all its partitions. A batch is what is waiting: there is no linger, company
//! gathers by itself while the last commit runs. Only after the commit are states kept and requests answered.

mod errors;
mod transaction;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;

pub use errors::{Failure, classify};
pub use transaction::{Producer, ProducerSettings, Transaction};

use crate::{
    failpoints::{FailPoints, Point},
    grant::{Captures, Grant, Slot},
    intake::ToIntake,
    partition::Decider,
    record::CommandRecord,
    types::CommandType,
};

/// Commands in one transaction, over all partitions, at most.
const MAX_TRANSACTION_COMMANDS: usize = 4096;
/// Time for deciding in one transaction, about.
const MAX_DECIDING: Duration = Duration::from_secs(1);
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// How long a command whose schema can't be asked for holds its partition before the next attempt.
const HELD_FOR: Duration = Duration::from_millis(500);
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// What a writer is told.
pub enum ToWriter {
    /// A partition is restored and can serve.
    Serve(Arc<Grant>, Box<dyn Decider>),
    /// Commands of a grant.
    Records(Arc<Grant>, Vec<CommandRecord>),
    /// These partitions go: nothing of theirs is under way when the answer comes.
    Release(Vec<Slot>, Sender<()>),
    /// End, after what is under way.
    End,
}

/// What a writer works with.
pub struct Writer {
    /// Number among the writers.
    pub number: usize,
    /// Aggregate types by index.
    pub types: Arc<[Arc<dyn CommandType>]>,
    /// Proofs of ownership.
    pub captures: Captures,
    /// How producers are made.
    pub producer: ProducerSettings,
    /// Commands of one partition in a transaction, at most.
    pub batch_commands: usize,
    /// Orders.
    pub inbox: Receiver<ToWriter>,
    /// To the consumer.
    pub intake: Sender<ToIntake>,
    /// For fault tests.
    pub fail_points: FailPoints,
}

struct Served {
    grant: Arc<Grant>,
    decider: Box<dyn Decider>,
    queue: VecDeque<CommandRecord>,
    held_until: Option<Instant>,
}

/// One partition's part in a batch.
struct Part {
    slot: Slot,
    count: usize,
    next_offset: i64,
}

impl Writer {
    /// Works until told to end.
    pub fn run(self) {
        let mut served: HashMap<Slot, Served> = HashMap::new();
        let mut producer: Option<Producer> = None;
        let mut pause = Duration::ZERO;
        loop {
            let waiting = served.values().any(|partition| !partition.queue.is_empty());
            let wait = match (waiting, pause.is_zero()) {
                (true, true) => Duration::ZERO,
                (true, false) => pause,
                (false, _) if producer.is_none() => pause.max(MIN_PAUSE),
                (false, _) => IDLE_WAIT,
            };
            let first = match wait.is_zero() {
                true => self.inbox.try_recv().ok(),
                false => match self.inbox.recv_timeout(wait) {
                    Ok(order) => Some(order),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            let rest = std::iter::from_fn(|| self.inbox.try_recv().ok());
            for order in first.into_iter().chain(rest) {
                match order {
                    ToWriter::Serve(grant, decider) => {
                        let queue = VecDeque::new();
                        served.insert(grant.slot, Served { grant, decider, queue, held_until: None });
                    }
                    ToWriter::Records(grant, records) => match served.get_mut(&grant.slot) {
                        Some(partition) if partition.grant.number == grant.number => partition.queue.extend(records),
                        // Of an older grant: whoever owns the partition reads them again.
                        _ => grant.dequeue(&records),
                    },
                    ToWriter::Release(slots, done) => {
                        for slot in slots {
                            if let Some(partition) = served.remove(&slot) {
                                partition.grant.dequeue(&partition.queue);
                            }
                        }
                        // An error means that the drain has run out of time.
                        let _ = done.send(());
                    }
                    ToWriter::End => return,
                }
            }
            // Made before anything is there to be written: it ends an open transaction of this instance's former life,
            // which the restores wait for.
            let made = match producer.take() {
                Some(made) => made,
                None => match Producer::new(&self.producer, self.number) {
                    Ok(made) => made,
                    Err(error) => {
                        tracing::warn!(writer = self.number, %error, "no transactional producer yet; trying again");
                        pause = MAX_PAUSE;
                        continue;
                    }
                },
            };
            let batch = self.assemble(&mut served);
            if batch.is_empty() {
                producer = Some(made);
                // What waits is held, or its grant has ended and word of it is on the way.
                let waiting = served.values().any(|partition| !partition.queue.is_empty());
                pause = if waiting { MIN_PAUSE } else { Duration::ZERO };
                continue;
            }
            match self.write(&made, &batch, &mut served) {
                Ok(()) => {
                    pause = Duration::ZERO;
                    producer = Some(made);
                }
                Err(Failure::Abort(error)) => {
                    tracing::warn!(writer = self.number, error, "transaction aborted; the batch runs again");
                    metrics::counter!("millrace_transactions_total", "result" => "aborted").increment(1);
                    pause = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
                    producer = Some(made);
                }
                Err(Failure::Fatal(error)) => {
                    tracing::error!(
                        writer = self.number,
                        error,
                        "transaction's end unknown; taking the partitions over anew"
                    );
                    metrics::counter!("millrace_transactions_total", "result" => "unknown").increment(1);
                    drop(made);
                    for (_, partition) in served.drain() {
                        partition.grant.dequeue(&partition.queue);
                        // An error means that the process is ending.
                        let _ = self.intake.send(ToIntake::TakeOver(partition.grant));
                    }
                }
            }
        }
    }

    /// What is waiting, up to the caps; partitions of grants that have ended are let be.
    fn assemble(&self, served: &mut HashMap<Slot, Served>) -> Vec<Part> {
        let now = Instant::now();
        let mut room = MAX_TRANSACTION_COMMANDS;
        let mut batch = Vec::new();
        for (slot, partition) in served.iter_mut() {
            if partition.held_until.is_some_and(|until| until > now) || !self.captures.holds(partition.grant.number) {
                continue;
            }
            partition.held_until = None;
            let count = partition.queue.len().min(self.batch_commands).min(room);
            if let Some(last) = count.checked_sub(1).and_then(|last| partition.queue.get(last)) {
                batch.push(Part { slot: *slot, count, next_offset: last.offset + 1 });
                room -= count;
            }
        }
        batch
    }

    /// One transaction.
    fn write(&self, producer: &Producer, batch: &[Part], served: &mut HashMap<Slot, Served>) -> Result<(), Failure> {
        let started = Instant::now();
        self.fail_points.reach(Point::Begin);
        let mut transaction = producer.begin(&self.types, &self.fail_points)?;
        let now = Timestamp::now();
        let mut decided = Vec::with_capacity(batch.len());
        for part in batch {
            let Some(partition) = served.get_mut(&part.slot) else { continue };
            let (mut count, mut next_offset) = (part.count, part.next_offset);
            for (at, record) in partition.queue.iter().take(part.count).enumerate() {
                // Schemas are asked for one by one: a transaction that is full of new ones must not time out over it.
                if started.elapsed() > MAX_DECIDING {
                    (count, next_offset) = (at, record.offset);
                    break;
                }
                if let Err(held) = partition.decider.decide(record, now, &mut transaction.sink(part.slot.kind)) {
                    tracing::warn!(
                        partition = part.slot.partition,
                        reason = held.0,
                        "a command has to wait, and its partition with it"
                    );
                    partition.held_until = Some(Instant::now() + HELD_FOR);
                    (count, next_offset) = (at, record.offset);
                    break;
                }
            }
            if count > 0 {
                decided.push((part.slot, count, next_offset));
            }
        }
        let fence = || {
            let next = decided.iter().filter_map(|(slot, _, next)| Some((&*served.get(slot)?.grant, *next)));
            self.captures.fence(next)
        };
        let result = if decided.is_empty() { transaction.abandon() } else { transaction.commit(fence) };
        let commands: usize = decided.iter().map(|(_, count, _)| count).sum();
        match &result {
            Ok(()) => {
                self.fail_points.reach(Point::Committed);
                for (slot, count, _) in decided {
                    let Some(partition) = served.get_mut(&slot) else { continue };
                    partition.decider.commit(now);
                    partition.grant.dequeue(partition.queue.iter().take(count));
                    partition.queue.drain(..count);
                }
                metrics::counter!("millrace_transactions_total", "result" => "committed").increment(1);
                metrics::histogram!("millrace_transaction_seconds").record(started.elapsed().as_secs_f64());
                metrics::histogram!("millrace_transaction_commands").record(commands as f64);
            }
            Err(_) => {
                for part in batch {
                    if let Some(partition) = served.get_mut(&part.slot) {
                        partition.decider.rollback();
                    }
                }
            }
        }
        result
    }
}
