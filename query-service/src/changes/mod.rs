//! Changes as they come, for those who keep a stream open.
//!
//! One task (`reader`) reads the feeds of all partitions while somebody listens, makes bytes of what it reads once, and
//! hands them to everybody by way of the [`Hub`]. Who listens has a [`stream`] of his own: it reads what he has missed from
//! Redis, up to where the task is, and from there on takes what the task hands out. Who can't be brought up to date that
//! way begins again (`reset`). [`position`] says how far somebody is, [`frame`] how it looks.

pub mod frame;
pub mod places;
pub mod position;
mod reader;
mod reset;
pub mod stream;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use millrace_shared::{
    domain::{Aggregate, Projection},
    problem::Problem,
    views::{address::Address, meta},
};
use redis::streams::StreamRangeReply;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    edition::{Edition, State, live},
    service::Service,
    store::decoded,
};
use frame::{Batch, Frame};
use places::Places;
use position::{Build, EntryId, Ids, Position};

/// Batches that one who gets all changes may be behind before he is cut off; the last ones are in memory, once for all.
const BEHIND_ALL: usize = 128;
/// The same of those who get few.
const BEHIND_FEW: usize = 32;
/// Questions to Redis at a time by those who catch up.
const CATCHING_UP: usize = 8;

/// What streams need.
#[derive(Clone, Debug)]
pub struct Means {
    /// Redis.
    pub redis: Address,
    /// Longest wait for its answer.
    pub timeout: Duration,
    /// Streams that may be open.
    pub places: Arc<Places>,
    /// Ends them.
    pub shutdown: CancellationToken,
}

/// Which changes somebody wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// All.
    All,
    /// Those of one aggregate.
    Of(String),
    /// Those whose view has a value: which filter of the projection, and the value.
    With(usize, String),
}

/// Where the changes of an aggregate type are handed out.
pub struct Hub<A: Aggregate> {
    /// The views.
    pub service: Arc<Service<A>>,
    /// Their ids.
    pub ids: Ids,
    /// What all share.
    pub means: Means,
    /// Of one who has not been told everything yet.
    unfinished: Position,
    now: Mutex<Option<Now>>,
    generations: AtomicU64,
    /// Told whenever there is a `now` that there wasn't.
    began: watch::Sender<()>,
    listening: watch::Sender<usize>,
    catching_up: Semaphore,
}

/// What is being handed out.
struct Now {
    /// Each is another one.
    generation: u64,
    edition: Arc<Edition>,
    position: Arc<Position>,
    channels: HashMap<Topic, broadcast::Sender<Arc<Batch>>>,
}

/// Somebody who gets what is handed out from a position on.
pub struct Joined<A: Aggregate> {
    hub: Arc<Hub<A>>,
    topic: Topic,
    generation: u64,
    /// What is handed out.
    pub edition: Arc<Edition>,
    /// From here on.
    pub from: Arc<Position>,
    /// In order; closed when it is another build.
    pub batches: broadcast::Receiver<Arc<Batch>>,
}

/// Somebody listens.
struct Listening<A: Aggregate>(Arc<Hub<A>>);

impl<A: Aggregate> Drop for Listening<A> {
    fn drop(&mut self) {
        self.0.listening.send_modify(|listening| *listening -= 1);
    }
}

impl<A: Aggregate> Drop for Joined<A> {
    fn drop(&mut self) {
        if let Some(now) = &mut *self.hub.now()
            && now.generation == self.generation
        {
            // We are still counted.
            if now.channels.get(&self.topic).is_some_and(|channel| channel.receiver_count() <= 1) {
                now.channels.remove(&self.topic);
            }
        }
    }
}

impl<A: Aggregate> Hub<A> {
    /// Starts the task.
    pub fn start(service: Arc<Service<A>>, means: Means) -> Arc<Self> {
        let (names, partitions) = (&service.means.names, service.means.partitions.unsigned_abs() as usize);
        let hub = Arc::new(Self {
            ids: Ids::new(names.redis_prefix(), A::Projection::NAME, partitions),
            service,
            means,
            unfinished: Position { build: Build::NONE, at: vec![EntryId::default(); partitions] },
            now: Mutex::default(),
            generations: AtomicU64::default(),
            began: watch::channel(()).0,
            listening: watch::channel(0).0,
            catching_up: Semaphore::new(CATCHING_UP),
        });
        tokio::spawn(reader::run(hub.clone()));
        hub
    }

    fn listen(self: &Arc<Self>) -> Listening<A> {
        self.listening.send_modify(|listening| *listening += 1);
        Listening(self.clone())
    }

    fn now(&self) -> MutexGuard<'_, Option<Now>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins as soon as anything is handed out.
    async fn join(self: &Arc<Self>, topic: &Topic) -> Joined<A> {
        let mut began = self.began.subscribe();
        loop {
            if let Some(now) = &mut *self.now() {
                let capacity = if *topic == Topic::All { BEHIND_ALL } else { BEHIND_FEW };
                let channel = now.channels.entry(topic.clone()).or_insert_with(|| broadcast::channel(capacity).0);
                return Joined {
                    hub: self.clone(),
                    topic: topic.clone(),
                    generation: now.generation,
                    edition: now.edition.clone(),
                    from: now.position.clone(),
                    batches: channel.subscribe(),
                };
            }
            // The sender is ours.
            let _ = began.changed().await;
        }
    }

    /// How far everything is that was handed out, to one who has taken all of it.
    fn level(&self, joined: &Joined<A>) -> Option<Arc<Position>> {
        let now = self.now();
        let now = now.as_ref().filter(|now| now.generation == joined.generation && joined.batches.is_empty());
        now.map(|now| now.position.clone())
    }

    /// From now on changes from this position on are handed out.
    fn begin(&self, edition: Arc<Edition>, position: Position) {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        *self.now() = Some(Now { generation, edition, position: Arc::new(position), channels: HashMap::new() });
        self.began.send_replace(());
    }

    /// Nothing is handed out any more; whoever has joined is told.
    fn end(&self) {
        *self.now() = None;
    }

    /// Hands out what was read. `about`: the aggregate of each change, and its view.
    fn publish(&self, batch: Batch, about: &[(&str, &str)]) {
        let mut now = self.now();
        let Some(now) = &mut *now else { return };
        now.position = batch.after.clone();
        // Most want all changes, or few listen at all.
        let listed = now.channels.len() > usize::from(now.channels.contains_key(&Topic::All));
        let by_value = now.channels.keys().any(|topic| matches!(topic, Topic::With(..)));
        let mut few: HashMap<Topic, Vec<Frame>> = HashMap::new();
        for (frame, (id, view)) in batch.frames.iter().zip(about).filter(|_| listed) {
            let mut topics = vec![Topic::Of((*id).to_owned())];
            if by_value {
                topics.extend(self.values(id, view));
            }
            for topic in topics {
                if now.channels.contains_key(&topic) {
                    few.entry(topic).or_default().push(frame.clone());
                }
            }
        }
        // Whoever is gone meanwhile needs none.
        for (topic, frames) in few {
            let _ = now.channels[&topic].send(Arc::new(batch.part(frames)));
        }
        if let Some(all) = now.channels.get(&Topic::All) {
            let _ = all.send(Arc::new(batch));
        }
    }

    /// The topics by value that a view belongs to.
    fn values(&self, id: &str, json: &str) -> Vec<Topic> {
        let Ok((_, view)) = self.service.parse(id, json.to_owned()) else { return Vec::new() };
        let filters = A::Projection::FILTERS.iter().enumerate().filter(|(_, filter)| filter.selective && filter.fixed);
        filters.map(|(at, filter)| Topic::With(at, (filter.value)(&view).to_owned())).collect()
    }

    /// Whether a change belongs to a topic.
    fn is_about(&self, topic: &Topic, id: &str, view: &str) -> bool {
        match topic {
            Topic::All => true,
            Topic::Of(wanted) => wanted == id,
            Topic::With(..) => self.values(id, view).contains(topic),
        }
    }

    /// The partitions in which a topic's changes are.
    fn partitions(&self, topic: &Topic) -> std::ops::Range<usize> {
        match topic {
            Topic::Of(id) => self.service.partition(id)..self.service.partition(id) + 1,
            Topic::All | Topic::With(..) => 0..self.service.means.partitions.unsigned_abs() as usize,
        }
    }

    /// Where the feeds end, and of which build they are; `None` while some partition is not complete.
    async fn ends(&self, edition: &Edition) -> Result<Option<Position>, Problem> {
        let mut pipe = redis::pipe();
        for (partition, keys) in edition.keys.iter().enumerate() {
            // In this order: what lies before the checkpoint is then in the feed.
            pipe.cmd("HGET").arg(keys.meta()).arg(meta::OFFSET);
            pipe.cmd("XREVRANGE").arg(keys.changes()).arg("+").arg("-").arg("COUNT").arg(1);
            pipe.add_command(edition.state(partition));
        }
        let read: Vec<redis::Value> = self.service.means.store.ask(&pipe).await?;
        let (mut at, mut born) = (Vec::new(), Vec::new());
        for of_partition in read.chunks_exact(3) {
            let checkpoint: Option<u64> = decoded(&of_partition[0])?;
            let last: StreamRangeReply = decoded(&of_partition[1])?;
            let state: State = decoded(&of_partition[2])?;
            let Some(since) = live(&state) else { return Ok(None) };
            born.push(since);
            // A feed may be empty though there were events: a rebuild writes none.
            let read = EntryId { offset: checkpoint.unwrap_or(0).saturating_sub(1), ordinal: 0 };
            at.push(read.max(one_of(&last)?));
        }
        Ok(Some(Position { build: Build::of(edition.version, &born), at }))
    }
}

fn one_of(entries: &StreamRangeReply) -> Result<EntryId, Problem> {
    let last = entries.ids.last().map(|entry| entry.id.parse()).transpose();
    last.map(Option::unwrap_or_default).map_err(|error: String| millrace_shared::http::internal(&error))
}
