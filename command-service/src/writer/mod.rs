//! A writer: one thread, one transactional producer, a share of the partitions of all aggregate types.
//!
//! It runs one transaction at a time for all its partitions. A batch is what is waiting: there is no linger, company
//! gathers by itself while the last commit runs (and for 2 ms behind a large one: see `transaction.rs`). Only after the
//! commit are states kept and requests answered.

mod batch;
mod checkpoint;
mod errors;
mod offsets;
mod produce;
#[cfg(test)]
mod tests;
mod transaction;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use batch::Served;
pub use checkpoint::Rhythm;
pub use errors::{Failure, classify};
use jiff::Timestamp;
pub use transaction::{Producer, ProducerSettings, Transaction};

use crate::{
    failpoints::FailPoints,
    grant::{Captures, Grant, Slot},
    intake::ToIntake,
    partition::Decider,
    record::CommandRecord,
    types::CommandType,
};

const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Until a scheduled command is due, at least: one more turn costs less than two.
const MIN_DUE_WAIT: Duration = Duration::from_millis(1);
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// How long a batch whose generation was refused waits for the group to call back, at most.
const MAX_REFUSED: Duration = Duration::from_secs(5);

/// What a writer is told.
pub enum ToWriter {
    /// A partition is restored and can serve, from this command on.
    Serve(Arc<Grant>, Box<dyn Decider>, i64),
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
    /// When states are written to local stores and to the snapshot topic.
    pub rhythm: Rhythm,
    /// Orders.
    pub inbox: Receiver<ToWriter>,
    /// To the consumer.
    pub intake: Sender<ToIntake>,
    /// For fault tests.
    pub fail_points: FailPoints,
}

impl Writer {
    /// Works until told to end.
    pub fn run(self) {
        let mut served: HashMap<Slot, Served> = HashMap::new();
        let mut producer: Option<Producer> = None;
        // After a failure no transaction begins before then.
        let (mut pause, mut not_before) = (Duration::ZERO, Instant::now());
        // What waits can't go on; others may come.
        let mut held = false;
        let mut refused = None;
        loop {
            if let Some(producer) = &producer {
                std::thread::sleep(producer.rest());
            }
            let waiting = served.values().any(Served::has_work);
            let wait = match waiting || producer.is_none() {
                true if held => MIN_PAUSE,
                true => not_before.saturating_duration_since(Instant::now()),
                false => until_due(&served),
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
                    ToWriter::Serve(grant, decider, start) => {
                        served.insert(grant.slot, Served::new(grant, decider, start));
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
            if Instant::now() < not_before {
                continue;
            }
            // Made before anything is there to be written: it ends an open transaction of this instance's former life,
            // which the restores wait for.
            let made = match producer.take() {
                Some(made) => made,
                None => match Producer::new(&self.producer, &self.types, self.number) {
                    Ok(made) => made,
                    Err(error) => {
                        tracing::warn!(writer = self.number, %error, "no transactional producer yet; trying again");
                        not_before = Instant::now() + MAX_PAUSE;
                        continue;
                    }
                },
            };
            for slot in self.tend(&made, &mut served) {
                if let Some(partition) = served.remove(&slot) {
                    self.take_over_anew(partition);
                }
            }
            self.begin_checkpoints(&made, &mut served);
            let batch = match self.is_refused(&mut refused) {
                true => Vec::new(),
                false => self.assemble(&served),
            };
            if batch.is_empty() {
                producer = Some(made);
                // What waits is held, or its grant has ended and word of it is on the way.
                held = served.values().any(Served::has_work);
                continue;
            }
            held = false;
            // Before the transaction: the group may call back while it is aborted.
            let renewals = self.captures.renewals();
            match self.work(&made, &batch, &mut served) {
                Ok(()) => {
                    pause = Duration::ZERO;
                    producer = Some(made);
                }
                Err(Failure::Unknown(error)) => {
                    tracing::error!(
                        writer = self.number,
                        error,
                        "transaction's end unknown; taking the partitions over anew"
                    );
                    count_failed("unknown");
                    drop(made);
                    served.drain().for_each(|(_, partition)| self.take_over_anew(partition));
                }
                Err(failure) => {
                    tracing::warn!(writer = self.number, ?failure, "transaction aborted; the batch runs again");
                    count_failed("aborted");
                    if matches!(failure, Failure::Refused(_)) {
                        refused = Some((renewals, Instant::now()));
                    }
                    pause = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
                    not_before = Instant::now() + pause;
                    producer = Some(made);
                }
            }
        }
    }

    fn take_over_anew(&self, partition: Served) {
        partition.grant.dequeue(&partition.queue);
        // The store is closed before anybody opens it again.
        drop(partition.decider);
        // An error means that the process is ending.
        let _ = self.intake.send(ToIntake::TakeOver(partition.grant));
    }

    /// Whether the group has not called back since it refused a batch: the same generation would be refused again.
    fn is_refused(&self, refused: &mut Option<(u64, Instant)>) -> bool {
        refused.take_if(|(renewals, at)| self.captures.renewals() != *renewals || at.elapsed() > MAX_REFUSED);
        refused.is_some()
    }
}

/// How long there is nothing to be done, as far as is known.
fn until_due(served: &HashMap<Slot, Served>) -> Duration {
    let due = served.values().filter_map(|partition| partition.decider.next_due()).min();
    let wait = due.map(|due| Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default());
    wait.map_or(IDLE_WAIT, |wait| wait.clamp(MIN_DUE_WAIT, IDLE_WAIT))
}

fn count_failed(result: &'static str) {
    metrics::counter!("millrace_transactions_total", "result" => result).increment(1);
}
