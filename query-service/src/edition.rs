//! Which version of a projection answers: a query is answered from one *edition* from beginning to end.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use millrace_shared::{
    http,
    kafka::topics::Names,
    problem::{Problem, REBUILDING},
    views::{
        Keys, meta,
        versions::{self, Versions},
    },
};
use redis::Cmd;

use crate::{feed::Feed, store::Store, view_reader::ViewReader};

/// The list of versions is looked at again after so long.
const FRESH: Duration = Duration::from_secs(1);

/// A version of a projection.
#[derive(Debug)]
pub struct Edition {
    /// Its number.
    pub version: u32,
    /// Its keys, by partition.
    pub keys: Vec<Keys>,
    /// The question whether a partition is complete, by partition: each query asks it.
    states: Vec<Cmd>,
    /// What reads its views, by partition, once somebody asks for one.
    readers: Vec<OnceLock<ViewReader>>,
}

/// The fields of a partition's `…:meta` that say whether it is complete.
const STATE: &[&str] = &[meta::STATE, meta::BORN];

/// Their values.
pub type State = (Option<String>, Option<u64>);

/// Since when a partition is, if it is complete.
pub fn live((state, born): &State) -> Option<u64> {
    born.filter(|_| state.as_deref() == Some(meta::LIVE))
}

impl Edition {
    /// Of a projection.
    pub fn new(names: &Names, projection: &str, version: u32, partitions: i32) -> Self {
        let keys = |partition| Keys::projection(names.redis_prefix(), projection, version, partition);
        let keys: Vec<Keys> = (0..partitions).map(keys).collect();
        let state = |keys: &Keys| {
            let mut command = redis::cmd("HMGET");
            command.arg(keys.meta()).arg(STATE);
            command
        };
        let readers = keys.iter().map(|_| OnceLock::new()).collect();
        Self { version, states: keys.iter().map(state).collect(), readers, keys }
    }

    /// Asks for a partition's [`State`].
    pub fn state(&self, partition: usize) -> Cmd {
        self.states[partition].clone()
    }

    /// What reads the views of a partition.
    pub fn reader(&self, partition: usize, store: &Store) -> &ViewReader {
        let start = || ViewReader::start(store.clone(), self.keys[partition].clone(), self.state(partition));
        self.readers[partition].get_or_init(start)
    }
}

/// Knows which edition of a projection is the active one.
#[derive(Debug)]
pub struct Editions {
    projection: &'static str,
    names: Names,
    partitions: i32,
    store: Store,
    feed: Arc<Feed>,
    seen: Mutex<Option<(Instant, Arc<Edition>)>>,
}

impl Editions {
    /// Of a projection.
    pub fn new(projection: &'static str, names: Names, partitions: i32, store: Store, feed: Arc<Feed>) -> Self {
        Self { projection, names, partitions, store, feed, seen: Mutex::default() }
    }

    /// Answers a query from one edition from beginning to end. When that turns out to be no longer complete, and
    /// another one is active by now, the whole of it once more from that one.
    pub async fn answer<T, F: Future<Output = Result<T, Problem>>>(
        &self,
        query: impl Fn(Arc<Edition>) -> F,
    ) -> Result<T, Problem> {
        let edition = self.now().await?;
        let problem = match query(edition.clone()).await {
            Err(problem) if problem.is(&REBUILDING) => problem,
            answered => return answered,
        };
        let active = self.look().await?;
        if active.version == edition.version { Err(problem) } else { query(active).await }
    }

    /// The active one, as it was a second ago at the latest.
    pub async fn now(&self) -> Result<Arc<Edition>, Problem> {
        let seen = self.seen().clone();
        match seen {
            Some((at, edition)) if at.elapsed() < FRESH => Ok(edition),
            _ => self.look().await,
        }
    }

    /// The active one, asked for now.
    pub async fn look(&self) -> Result<Arc<Edition>, Problem> {
        let key = versions::key(self.names.redis_prefix(), self.projection);
        let mut pipe = redis::pipe();
        pipe.cmd("HGETALL").arg(key);
        let (fields,): (Vec<(String, String)>,) = self.store.ask(&pipe).await?;
        let version = Versions::read(fields).map_err(|reason| http::internal(&reason))?.active;
        let mut seen = self.seen();
        let edition = match &*seen {
            Some((_, edition)) if edition.version == version => edition.clone(),
            _ => {
                let edition = Edition::new(&self.names, self.projection, version, self.partitions);
                self.feed.watch(self.projection, edition.keys.iter().map(Keys::changes).collect());
                Arc::new(edition)
            }
        };
        *seen = Some((Instant::now(), edition.clone()));
        Ok(edition)
    }

    fn seen(&self) -> MutexGuard<'_, Option<(Instant, Arc<Edition>)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
