//! Follows the outcome topics of partitions that other instances serve, for requests that came in here.
//!
//! A partition is followed from the moment before its command was produced, and let go when nobody has waited for it
//! for a while. One thread reads, and keeps the ends of our own partitions' outcome topics fresh, so that a request
//! can be followed up should its partition go.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
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
/// It is asked again after so long.
const END_PAUSE: Duration = Duration::from_secs(1);
const ENDS_INTERVAL: Duration = Duration::from_secs(5);

/// Requests that wait until a partition is followed.
struct Wanted {
    by: Vec<oneshot::Sender<()>>,
    not_before: Instant,
}

enum Order {
    Follow { slot: Slot, by: oneshot::Sender<()> },
    FollowFrom { slot: Slot, from: i64 },
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
    /// Sees that outcomes of a partition that are produced from now on are read. A broker that does not answer is asked again,
    /// for as long as this is waited for.
    pub async fn follow(&self, slot: Slot) -> Result<(), String> {
        let ended = || "the service is ending".to_owned();
        let (by, answer) = oneshot::channel();
        self.orders.send(Order::Follow { slot, by }).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }

    /// Sees that outcomes of a partition are read from an offset on.
    pub fn follow_from(&self, slot: Slot, from: i64) {
        // An error means that the process is ending.
        let _ = self.orders.send(Order::FollowFrom { slot, from });
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
        let (mut wanted, mut followed): (HashMap<Slot, Wanted>, HashMap<Slot, Instant>) = Default::default();
        let (mut ends_asked, mut used_asked) = (Instant::now(), Instant::now());
        loop {
            // Where something is followed, the reading waits.
            let wait = match (followed.is_empty(), wanted.is_empty()) {
                (true, true) => IDLE_WAIT,
                (true, false) => READ_WAIT,
                (false, _) => Duration::ZERO,
            };
            let first = match self.orders.recv_timeout(wait) {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let rest = std::iter::from_fn(|| self.orders.try_recv().ok());
            for order in first.into_iter().chain(rest) {
                match order {
                    Order::Follow { slot, by } if followed.contains_key(&slot) => {
                        followed.insert(slot, Instant::now());
                        // An error means that the request has gone away.
                        let _ = by.send(());
                    }
                    Order::Follow { slot, by } => {
                        let new = || Wanted { by: Vec::new(), not_before: Instant::now() };
                        wanted.entry(slot).or_insert_with(new).by.push(by);
                    }
                    Order::FollowFrom { slot, from } => {
                        let topic = self.types[slot.kind].topic(Topic::Outcomes);
                        if followed.contains_key(&slot) {
                            // From an earlier offset.
                            let _ = reader.remove(&[(topic, slot.partition)]);
                        }
                        if reader.add(&[(topic, slot.partition, from)]).is_ok() {
                            followed.insert(slot, Instant::now());
                        }
                    }
                    Order::End => return Ok(()),
                }
            }
            self.follow_wanted(&watcher, &reader, &mut wanted, &mut followed);
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

    /// Follows what is wanted, until a broker does not answer.
    fn follow_wanted(
        &self,
        watcher: &BaseConsumer<Logged>,
        reader: &BulkReader,
        wanted: &mut HashMap<Slot, Wanted>,
        followed: &mut HashMap<Slot, Instant>,
    ) {
        let mut answers = true;
        wanted.retain(|slot, Wanted { by, not_before }| {
            by.retain(|by| !by.is_closed());
            if !answers || by.is_empty() || *not_before > Instant::now() {
                return !by.is_empty();
            }
            let topic = self.types[slot.kind].topic(Topic::Outcomes);
            let added = match followed.contains_key(slot) {
                true => Ok(()),
                false => end_of(watcher, topic, slot.partition)
                    .and_then(|start| reader.add(&[(topic, slot.partition, start)])),
            };
            if let Err(error) = added {
                tracing::warn!(topic, partition = slot.partition, %error, "outcomes can't be followed yet; trying again");
                *not_before = Instant::now() + END_PAUSE;
                answers = false;
                return true;
            }
            followed.insert(*slot, Instant::now());
            for by in by.drain(..) {
                // An error means that the request has gone away.
                let _ = by.send(());
            }
            false
        });
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

#[cfg(test)]
mod tests {
    use std::thread;

    use millrace_shared::{domain::bank_account::BankAccount, registry::Registry};
    use rdkafka::mocking::MockCluster;
    use tokio::time::timeout;

    use super::*;
    use crate::types::TypeOf;

    #[tokio::test]
    async fn g15_a_silent_broker_is_asked_again_and_holds_nobody_else_up() {
        let cluster = MockCluster::new(2).unwrap();
        let types: Arc<[Arc<dyn CommandType>]> = Arc::new([Arc::new(TypeOf::<BankAccount>::unregistered())]);
        let topic = types[0].topic(Topic::Outcomes);
        cluster.create_topic(topic, 2, 1).unwrap();
        cluster.partition_leader(topic, 0, Some(1)).unwrap();
        cluster.partition_leader(topic, 1, Some(2)).unwrap();
        cluster.broker_down(2).unwrap();
        let outcomes = Codec::reading(Registry::new("http://127.0.0.1:1").unwrap()).unwrap();
        let (follower, following) =
            follower(cluster.bootstrap_servers(), types.clone(), outcomes, Waiters::default(), Handle::current());
        let thread = thread::spawn(move || following.run());
        let slot = |partition| Slot { kind: 0, partition };
        let silent = follower.follow(slot(1));
        tokio::pin!(silent);
        let early = timeout(END_TIMEOUT + END_PAUSE, &mut silent).await;
        assert!(early.is_err(), "its leader is down: {early:?}");
        timeout(Duration::from_secs(15), follower.follow(slot(0))).await.expect("in time").unwrap();
        cluster.broker_up(2).unwrap();
        timeout(Duration::from_secs(20), silent).await.expect("it answers again").unwrap();
        follower.end();
        thread.join().unwrap().unwrap();
    }
}
