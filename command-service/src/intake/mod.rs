//! The one consumer of all command topics: one thread that polls, hands records to writers, and keeps the grants.
//!
//! What the group gives and takes arrives by the callbacks in `group.rs`.

mod group;
mod member;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender},
    },
    time::{Duration, Instant},
};

use millrace_shared::{
    kafka::{self, client_config, topics::Topic},
    ops::Health,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio_util::sync::CancellationToken;

use crate::{
    failpoints::{FailPoints, Point},
    follower::Follower,
    grant::{Captures, Grant, Slot},
    partition::{
        Room, Settings, StoreSettings,
        restore::{self, Job, Restored},
    },
    record::CommandRecord,
    types::CommandType,
    waiters::Waiters,
    writer::ToWriter,
};
use group::{Change, Group};

const POLL_WAIT: Duration = Duration::from_millis(20);
/// Weight of the records gathered before they are handed over, about.
const HAND_OVER: usize = 1024;
/// How many partitions' queues may be full, in weight, before the consumer waits for the writers.
const QUEUES_FULL: usize = 4;
const FULL_WAIT: Duration = Duration::from_millis(1);
/// How long the consumer waits before it pauses partitions.
const FULL_PATIENCE: Duration = Duration::from_millis(100);
const RESTORE_RETRY: Duration = Duration::from_secs(1);
/// At most: each has clients and memory of its own.
const RESTORE_THREADS: usize = 4;
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond the session time-out: a silent instance is to be replaced within 10 s more, all in all.
const POLL_GRACE: Duration = Duration::from_secs(5);

/// What the consumer is told from outside.
pub enum ToIntake {
    /// A partition is restored.
    Restored(Restored),
    /// A writer does not know what became of a transaction: the partition is to be taken over anew.
    TakeOver(Arc<Grant>),
}

/// What the consumer works with.
pub struct IntakeSettings {
    /// Kafka.
    pub bootstrap: String,
    /// Consumer group.
    pub group: String,
    /// Instance, as the client's name.
    pub instance: String,
    /// Session time-out.
    pub session_timeout: Duration,
    /// Weight of a partition's records with its writer, at most, about.
    pub queue_commands: usize,
    /// Restore without progress.
    pub restore_stall: Duration,
    /// Partitions of every topic.
    pub partitions: i32,
    /// How long outcomes are remembered.
    pub window: Duration,
    /// Bytes of answers that a partition remembers, at most, about.
    pub answers_bytes: u64,
    /// Whether the oldest answers are forgotten then; else commands wait until they expire.
    pub answers_forget: bool,
    /// For commands that wait until they are due.
    pub room: Room,
    /// After so long a destroyed key may be cleared out of Kafka's files.
    pub forget_within: Duration,
    /// Local stores.
    pub store: Option<StoreSettings>,
    /// By type.
    pub topic_ids: Vec<TopicIds>,
    /// For fault tests.
    pub fail_points: FailPoints,
}

/// The consumer before it runs.
pub struct Intake {
    settings: Arc<IntakeSettings>,
    types: Arc<[Arc<dyn CommandType>]>,
    writers: Vec<Sender<ToWriter>>,
    waiters: Waiters,
    follower: Follower,
    health: Health,
    to_self: Sender<ToIntake>,
    inbox: Receiver<ToIntake>,
    consumer: Arc<BaseConsumer<Group>>,
}

/// Grants that are restored. Records of other partitions are not for us (yet).
type Serving = HashMap<Slot, Served>;

struct Served {
    grant: Arc<Grant>,
    /// Read and not handed over yet.
    gathered: Vec<CommandRecord>,
    paused: bool,
    /// The next record is this one or a later one.
    next_offset: i64,
}

impl Intake {
    /// Joins no group yet.
    #[allow(clippy::too_many_arguments, reason = "made in one place, from parts that are made there too")]
    pub fn new(
        settings: IntakeSettings,
        types: Arc<[Arc<dyn CommandType>]>,
        writers: Vec<Sender<ToWriter>>,
        captures: Captures,
        waiters: Waiters,
        follower: Follower,
        health: Health,
        channel: (Sender<ToIntake>, Receiver<ToIntake>),
    ) -> Result<Self, KafkaError> {
        let session = settings.session_timeout.as_millis();
        let consumer = client_config(&settings.bootstrap, &format!("millrace-command-{}", settings.instance))
            .set("group.id", &settings.group)
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            // The members that stay learn by their next heartbeat that one is gone.
            .set("heartbeat.interval.ms", (session / 4).clamp(1, 1000).to_string())
            // Heartbeats come from a thread of librdkafka's, and go on when the one that polls here hangs: for as long as
            // this is, by default five minutes, no rebalance ends without its answer.
            .set("max.poll.interval.ms", (session + POLL_GRACE.as_millis()).to_string())
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // librdkafka asks for stable offsets only under read_committed: with read_uncommitted a frozen
            // predecessor's open transaction and ours could both commit.
            .set("isolation.level", "read_committed")
            .set("fetch.queue.backoff.ms", "5")
            .set("queued.max.messages.kbytes", "16384")
            .create_with_context(Group {
                types: types.clone(),
                writers: writers.clone(),
                captures,
                drain: settings.session_timeout / 2,
                state: Mutex::default(),
            })?;
        let (to_self, inbox) = channel;
        Ok(Self {
            settings: Arc::new(settings),
            types,
            writers,
            waiters,
            follower,
            health,
            to_self,
            inbox,
            consumer: Arc::new(consumer),
        })
    }

    /// Consumes until told to end, then leaves the group.
    pub fn run(self, runtime: &tokio::runtime::Handle, shutdown: &CancellationToken) -> Result<(), KafkaError> {
        let topics: Vec<&str> = self.types.iter().map(|kind| kind.topic(Topic::Commands)).collect();
        self.consumer.subscribe(&topics)?;
        let mut serving = Serving::new();
        let mut full_since = None;
        while !shutdown.is_cancelled() {
            if self.is_full(&mut serving, &mut full_since)? {
                std::thread::sleep(FULL_WAIT);
            } else {
                self.poll(&mut serving);
            }
            self.settings.fail_points.reach(Point::Poll);
            self.hand_over(&mut serving);
            let changes = std::mem::take(&mut self.consumer.context().state().changes);
            for change in changes {
                match change {
                    Change::Granted(grants) => self.restore(&grants, runtime),
                    Change::Gone(grants) => grants.iter().for_each(|grant| self.forget(grant, &mut serving)),
                }
            }
            let mut anew = Vec::new();
            while let Ok(order) = self.inbox.try_recv() {
                match order {
                    ToIntake::Restored(restored) => self.serve(restored, &mut serving)?,
                    ToIntake::TakeOver(grant) => anew.extend(self.renew(&grant, &mut serving)?),
                }
            }
            self.restore(&anew, runtime);
            self.report(&serving);
        }
        self.leave();
        for writer in &self.writers {
            // An error means that it has ended already.
            let _ = writer.send(ToWriter::End);
        }
        Ok(())
    }

    /// Leaves the group; the revocation's callback lets the writers finish.
    ///
    /// A consumer that is closed while its partitions are still being stopped never tells the group (librdkafka 2.12,
    /// seen in 2 of 40 ends): whoever follows would wait for the session to time out. So it is closed when it is a
    /// member no more.
    fn leave(&self) {
        self.consumer.unsubscribe();
        let deadline = Instant::now() + self.settings.session_timeout;
        let holds = || !self.consumer.context().state().grants.is_empty();
        while (member::is_member(&self.consumer) || holds()) && Instant::now() < deadline {
            if let Some(Err(error)) = self.consumer.poll(POLL_WAIT) {
                tracing::debug!(%error, "leaving the group");
            }
        }
    }

    fn writer(&self, slot: Slot) -> &Sender<ToWriter> {
        &self.writers[slot.partition as usize % self.writers.len()]
    }

    /// Gathers what there is, up to a measure.
    fn poll(&self, serving: &mut Serving) {
        let mut gathered = 0;
        while gathered < HAND_OVER {
            let wait = if gathered == 0 { POLL_WAIT } else { Duration::ZERO };
            let message = match self.consumer.poll(wait) {
                Some(Ok(message)) => message,
                Some(Err(error)) => return tracing::warn!(%error, "commands can't be read at the moment"),
                None => return,
            };
            let record = CommandRecord::copy(&message);
            // Those of others count as well: a stream of them must not keep the loop from its other duties.
            gathered += record.weight();
            let kind = self.types.iter().position(|kind| kind.topic(Topic::Commands) == message.topic());
            let slot = kind.map(|kind| Slot { kind, partition: message.partition() });
            if let Some(served) = slot.and_then(|slot| serving.get_mut(&slot)) {
                if record.offset < served.next_offset {
                    tracing::warn!(partition = message.partition(), offset = record.offset, "read again");
                } else {
                    served.next_offset = record.offset + 1;
                    served.gathered.push(record);
                }
            }
        }
    }

    /// Hands gathered records to their writers.
    fn hand_over(&self, serving: &mut Serving) {
        for (slot, Served { grant, gathered, .. }) in serving.iter_mut() {
            if !gathered.is_empty() {
                grant.enqueue(gathered.iter());
                // An error means that the process is ending.
                let _ = self.writer(*slot).send(ToWriter::Records(grant.clone(), std::mem::take(gathered)));
            }
        }
    }

    /// Whether the writers have enough, for now. The consumer then just waits: a pause throws away what was fetched
    /// ahead, up to seven times of what had been used (measured: a quarter of the throughput). When it lasts, the
    /// partitions with more than their share are paused, so that the others go on.
    fn is_full(&self, serving: &mut Serving, since: &mut Option<Instant>) -> Result<bool, KafkaError> {
        let most = self.settings.queue_commands;
        let mut resume = TopicPartitionList::new();
        for (slot, served) in serving.iter_mut().filter(|(_, served)| served.paused) {
            if served.grant.queued() <= most / 4 {
                served.paused = false;
                resume.add_partition(&served.grant.topic, slot.partition);
            }
        }
        if resume.count() > 0 {
            self.consumer.resume(&resume)?;
        }
        let read: Vec<usize> = serving.values().filter(|s| !s.paused).map(|served| served.grant.queued()).collect();
        if !read.iter().any(|queued| *queued >= most) && read.iter().sum::<usize>() < most * QUEUES_FULL {
            *since = None;
            return Ok(false);
        }
        if since.get_or_insert_with(Instant::now).elapsed() < FULL_PATIENCE {
            return Ok(true);
        }
        *since = None;
        let share = most.min(most * QUEUES_FULL / read.len().max(1));
        let mut pause = TopicPartitionList::new();
        for (slot, served) in serving.iter_mut().filter(|(_, served)| !served.paused) {
            if served.grant.queued() >= share {
                served.paused = true;
                pause.add_partition(&served.grant.topic, slot.partition);
            }
        }
        if pause.count() > 0 {
            tracing::info!(partitions = pause.count(), "too much is waiting for the writers: paused");
            self.consumer.pause(&pause)?;
        }
        Ok(false)
    }

    fn holds(&self, grant: &Grant) -> bool {
        self.consumer.context().state().grants.get(&grant.slot).is_some_and(|held| held.number == grant.number)
    }

    /// Restores partitions, on as many threads as there are writers.
    fn restore(&self, grants: &[Arc<Grant>], runtime: &tokio::runtime::Handle) {
        for grant in grants {
            self.waiters.restoring(grant.slot);
        }
        let threads = self.writers.len().min(grants.len()).min(RESTORE_THREADS);
        for first in 0..threads {
            self.restore_share(grants.iter().skip(first).step_by(threads).cloned().collect(), runtime);
        }
    }

    /// Restores some on a thread of their own, again and again while they are ours.
    fn restore_share(&self, grants: Vec<Arc<Grant>>, runtime: &tokio::runtime::Handle) {
        let (settings, types, consumer) = (self.settings.clone(), self.types.clone(), self.consumer.clone());
        let (to_self, waiters, runtime) = (self.to_self.clone(), self.waiters.clone(), runtime.clone());
        let restore = move || {
            let mut left = grants;
            let wanted = |grant: &Grant| {
                consumer.context().state().grants.get(&grant.slot).is_some_and(|held| held.number == grant.number)
            };
            loop {
                left.retain(|grant| wanted(grant));
                if left.is_empty() {
                    return;
                }
                let job = Job {
                    bootstrap: &settings.bootstrap,
                    committed: &|list, timeout| consumer.committed_offsets(list, timeout),
                    stall: settings.restore_stall,
                    window: settings.window,
                    wanted: &wanted,
                };
                let of = |grant: &Grant| Settings {
                    slot: grant.slot,
                    types: types.clone(),
                    partitions: settings.partitions,
                    topic_id: settings.topic_ids[grant.slot.kind].commands.clone(),
                    events_topic_id: settings.topic_ids[grant.slot.kind].events.clone(),
                    outcomes_topic_id: settings.topic_ids[grant.slot.kind].outcomes.clone(),
                    window: settings.window,
                    answers_bytes: settings.answers_bytes,
                    answers_forget: settings.answers_forget,
                    room: settings.room.clone(),
                    forget_within: settings.forget_within,
                    store: settings.store.clone(),
                    waiters: waiters.clone(),
                    runtime: runtime.clone(),
                };
                let mut ready = Vec::new();
                let run = || {
                    job.run(&left, &types, of, |restored| {
                        ready.push(restored.grant.number);
                        // An error means that the process is ending.
                        let _ = to_self.send(ToIntake::Restored(restored));
                    })
                };
                // A domain that panics must not end the thread: nobody would try again.
                let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(restore::Error::Panicked));
                left.retain(|grant| !ready.contains(&grant.number));
                match result {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, partitions = left.len(), "restore failed; beginning again"),
                }
                std::thread::sleep(RESTORE_RETRY);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("restore".into()).spawn(restore) {
            tracing::error!(%error, "no thread for a restore");
        }
    }

    fn serve(&self, restored: Restored, serving: &mut Serving) -> Result<(), KafkaError> {
        let grant = restored.grant;
        let served = serving.get(&grant.slot).is_some_and(|served| served.grant.number == grant.number);
        if served || !self.holds(&grant) {
            return Ok(());
        }
        // An error means that the process is ending.
        let _ = self.writer(grant.slot).send(ToWriter::Serve(grant.clone(), restored.decider, restored.start));
        self.seek(&grant, restored.start)?;
        let mut list = TopicPartitionList::new();
        list.add_partition(&grant.topic, grant.slot.partition);
        self.consumer.resume(&list)?;
        self.waiters.served_here(grant.slot, restored.outcomes_end);
        serving.insert(grant.slot, Served { grant, gathered: Vec::new(), paused: false, next_offset: restored.start });
        Ok(())
    }

    fn seek(&self, grant: &Grant, offset: i64) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&grant.topic, grant.slot.partition, Offset::Offset(offset))?;
        let sought = self.consumer.seek_partitions(list.clone(), SEEK_TIMEOUT)?;
        if let Some(Err(error)) = sought.elements().first().map(|element| element.error()) {
            // Its fetcher has stopped: it was asked for an offset that was deleted before the pause took hold.
            tracing::debug!(%error, "assigning again instead of seeking");
            self.consumer.incremental_unassign(&list)?;
            self.consumer.incremental_assign(&list)?;
        }
        Ok(())
    }

    /// A partition that is ours gets another grant, to be restored: what was read for the old one counts no more.
    fn renew(&self, old: &Arc<Grant>, serving: &mut Serving) -> Result<Option<Arc<Grant>>, KafkaError> {
        if !self.holds(old) {
            return Ok(None);
        }
        let mut list = TopicPartitionList::new();
        list.add_partition(&old.topic, old.slot.partition);
        self.consumer.pause(&list)?;
        let group = self.consumer.context();
        let mut state = group.state();
        state.next_grant += 1;
        let grant = Arc::new(Grant::new(state.next_grant, old.slot, &old.topic));
        group.captures.hand_over(old.number, grant.number);
        state.grants.insert(grant.slot, grant.clone());
        drop(state);
        self.forget(old, serving);
        Ok(Some(grant))
    }

    /// A partition is not served here any more: those who wait are answered from its outcome topic.
    fn forget(&self, grant: &Grant, serving: &mut Serving) {
        if serving.get(&grant.slot).is_some_and(|served| served.grant.number == grant.number) {
            serving.remove(&grant.slot);
        }
        if let Some(from) = self.waiters.served_elsewhere(grant.slot) {
            self.follower.follow_from(grant.slot, from);
        }
    }

    fn report(&self, serving: &Serving) {
        let (granted, joined) = {
            let state = self.consumer.context().state();
            (state.grants.len(), state.joined)
        };
        let restoring = granted.saturating_sub(serving.len());
        metrics::gauge!("millrace_partitions_serving").set(serving.len() as f64);
        metrics::gauge!("millrace_partitions_restoring").set(restoring as f64);
        let state = match (joined, restoring) {
            (true, 0) => Ok(()),
            (false, _) => Err("the consumer group has not let us in yet".to_owned()),
            (true, _) => Err(format!("{restoring} of {granted} partitions are being restored")),
        };
        self.health.set("partitions", state);
    }
}

/// Kafka's ids of a type's topics.
#[derive(Clone, Debug)]
pub struct TopicIds {
    /// Of the command topic.
    pub commands: String,
    /// Of the event topic.
    pub events: String,
    /// Of the outcome topic.
    pub outcomes: String,
}

/// Asks for them.
pub fn topic_ids(bootstrap: &str, types: &[Arc<dyn CommandType>]) -> Result<Vec<TopicIds>, KafkaError> {
    let client = kafka::watcher(bootstrap, "millrace-admin")?;
    let id = |kind: &Arc<dyn CommandType>, topic| kafka::topic_id(&client, kind.topic(topic), kafka::REQUEST_TIMEOUT);
    let of = |kind| {
        Ok(TopicIds {
            commands: id(kind, Topic::Commands)?,
            events: id(kind, Topic::Events)?,
            outcomes: id(kind, Topic::Outcomes)?,
        })
    };
    types.iter().map(of).collect()
}
