//! Follows the outcome topics of partitions that other instances serve, for requests that came in here.
//!
//! A partition is followed from the moment before its command was produced, and let go when nobody has waited for it
//! for a while. One thread reads, and keeps the ends of our own partitions' outcome topics fresh, so that a request
//! can be followed up should its partition go.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use millrace_shared::{
    codec::{Codec, Foreign},
    envelope::names,
    fingerprint::Fingerprint,
    kafka::{
        Logged,
        bulk::{BulkReader, Item, Record},
        reader_config,
        topics::Topic,
        watcher,
    },
    outcome::OutcomeRecord,
};
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    grant::Slot,
    types::CommandType,
    waiters::{Answer, Awaited, Waiters},
};

const READ_WAIT: Duration = Duration::from_millis(5);
const IDLE_WAIT: Duration = Duration::from_millis(50);
const KEEP: Duration = Duration::from_secs(60);
const USED_INTERVAL: Duration = Duration::from_secs(1);
/// A broker that does not answer must not hold up the requests of other partitions for long.
const END_TIMEOUT: Duration = Duration::from_secs(1);
const ENDS_INTERVAL: Duration = Duration::from_secs(5);

enum Order {
    Follow { slot: Slot, from: Option<i64>, following: Option<oneshot::Sender<Result<(), String>>> },
    End,
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Follower {
    orders: Sender<Order>,
}

/// The follower before it runs.
pub struct FollowerLoop {
    /// Kafka.
    pub bootstrap: String,
    /// Aggregate types by index.
    pub types: Arc<[Arc<dyn CommandType>]>,
    /// Codec of outcomes.
    pub outcomes: Codec<OutcomeRecord>,
    /// Who waits.
    pub waiters: Waiters,
    /// Where the registry can be asked.
    pub runtime: Handle,
    orders: Receiver<Order>,
}

impl Follower {
    /// Sees that outcomes of a partition that are produced from now on are read.
    pub async fn follow(&self, slot: Slot) -> Result<(), String> {
        let ended = || "the service is ending".to_owned();
        let (following, answer) = oneshot::channel();
        let order = Order::Follow { slot, from: None, following: Some(following) };
        self.orders.send(order).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Sees that outcomes of a partition are read from an offset on.
    pub fn follow_from(&self, slot: Slot, from: i64) {
        // An error means that the process is ending.
        let _ = self.orders.send(Order::Follow { slot, from: Some(from), following: None });
    }

    /// Ends the thread.
    pub fn end(&self) {
        // An error means that it has ended.
        let _ = self.orders.send(Order::End);
    }
}

/// A follower, and the loop for its thread.
pub fn follower(
    bootstrap: String,
    types: Arc<[Arc<dyn CommandType>]>,
    outcomes: Codec<OutcomeRecord>,
    waiters: Waiters,
    runtime: Handle,
) -> (Follower, FollowerLoop) {
    let (sender, orders) = channel();
    (Follower { orders: sender }, FollowerLoop { bootstrap, types, outcomes, waiters, runtime, orders })
}

impl FollowerLoop {
    /// Reads until told to end.
    pub fn run(self) -> Result<(), KafkaError> {
        let watcher = watcher(&self.bootstrap, "millrace-follower")?;
        let mut config = reader_config(&self.bootstrap, "millrace-follower");
        // A partition that is added joins the next fetch: a request must not wait out the one that is under way.
        config.set("fetch.wait.max.ms", "50");
        let mut reader = BulkReader::new(&config)?;
        let mut followed: HashMap<Slot, Instant> = HashMap::new();
        let (mut ends_asked, mut used_asked) = (Instant::now(), Instant::now());
        loop {
            loop {
                let order = match followed.is_empty() {
                    true => match self.orders.recv_timeout(IDLE_WAIT) {
                        Ok(order) => order,
                        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => break,
                        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                    },
                    false => match self.orders.try_recv() {
                        Ok(order) => order,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return Ok(()),
                    },
                };
                let Order::Follow { slot, from, following } = order else { return Ok(()) };
                if following.as_ref().is_some_and(oneshot::Sender::is_closed) {
                    continue;
                }
                let result = if followed.contains_key(&slot) && from.is_none() {
                    Ok(())
                } else {
                    let topic = self.types[slot.kind].topic(Topic::Outcomes);
                    let start = match from {
                        Some(from) => Ok(from),
                        None => end_of(&watcher, topic, slot.partition),
                    };
                    if followed.contains_key(&slot) {
                        // Asked for from an earlier offset.
                        let _ = reader.remove(&[(topic, slot.partition)]);
                    }
                    start.and_then(|start| reader.add(&[(topic, slot.partition, start)]))
                };
                if result.is_ok() {
                    followed.insert(slot, Instant::now());
                }
                if let Some(following) = following {
                    // An error means that the request has gone away.
                    let _ = following.send(result.map_err(|error| error.to_string()));
                }
            }
            if !followed.is_empty() {
                reader.read(READ_WAIT, |item| match item {
                    Item::Record(record) if self.waiters.any() => self.answer(&record),
                    Item::Failed { topic, partition, error } => {
                        tracing::debug!(topic, partition, %error, "outcomes can't be followed at the moment");
                    }
                    Item::Record(_) | Item::End { .. } => {}
                })?;
            }
            if used_asked.elapsed() > USED_INTERVAL {
                used_asked = Instant::now();
                followed.retain(|slot, used| {
                    if self.waiters.awaits_of(*slot) {
                        *used = Instant::now();
                    }
                    let keep = used.elapsed() < KEEP;
                    if !keep {
                        let topic = self.types[slot.kind].topic(Topic::Outcomes);
                        // An error leaves it followed, which does no harm.
                        let _ = reader.remove(&[(topic, slot.partition)]);
                    }
                    keep
                });
            }
            if ends_asked.elapsed() > ENDS_INTERVAL {
                ends_asked = Instant::now();
                for slot in self.waiters.slots_served() {
                    let topic = self.types[slot.kind].topic(Topic::Outcomes);
                    match end_of(&watcher, topic, slot.partition) {
                        Ok(end) => self.waiters.outcomes_end(slot, end),
                        Err(error) => {
                            tracing::debug!(topic, %error, "the end of a topic can't be asked for at the moment");
                            break;
                        }
                    }
                }
            }
        }
    }

    fn answer(&self, record: &Record<'_>) {
        let Some(kind) = self.types.iter().position(|kind| kind.topic(Topic::Outcomes) == record.topic()) else {
            return;
        };
        let decoded = self.outcomes.decode(record.value().unwrap_or_default(), Foreign::Refuse, &self.runtime);
        let Ok(OutcomeRecord::Outcome(outcome)) = decoded else { return };
        if outcome.is_pending() {
            return;
        }
        let Ok(fingerprint) = Fingerprint::try_from(outcome.fingerprint.as_slice()) else { return };
        let awaited = Awaited {
            slot: Slot { kind, partition: record.partition() },
            aggregate_id: outcome.aggregate_id.clone(),
            command_id: outcome.command_id.clone(),
            fingerprint,
        };
        let (mut replayed, mut position, mut origin) = (false, None, None);
        for (name, value) in record.headers() {
            let place = || value.and_then(|bytes| std::str::from_utf8(bytes).ok());
            match name {
                names::REPLAYED => replayed = true,
                names::POSITION => position = place().and_then(|text| text.rsplit('/').next()?.parse().ok()),
                names::ORIGIN => origin = place().and_then(|text| offset_in(text, record.partition())),
                _ => {}
            }
        }
        // A command that had to wait is decided elsewhere than where it lay.
        let command_offset = origin.or(position);
        self.waiters.answer(&awaited, &Answer { outcome: Arc::new(outcome), replayed, command_offset });
    }
}

/// The offset of a place `<topic>/<partition>/<offset>`, if it is in this partition.
fn offset_in(place: &str, partition: i32) -> Option<i64> {
    let (rest, offset) = place.rsplit_once('/')?;
    let (_, of) = rest.rsplit_once('/')?;
    (of.parse() == Ok(partition)).then(|| offset.parse().ok())?
}

fn end_of(watcher: &BaseConsumer<Logged>, topic: &str, partition: i32) -> Result<i64, KafkaError> {
    watcher.fetch_watermarks(topic, partition, END_TIMEOUT).map(|(_, end)| end)
}
