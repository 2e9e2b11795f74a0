//! The thread that writes to the stores, so that no writer waits for a disk.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use super::{Batch, Error, Store};
use crate::failpoints::{FailPoints, Point};

/// How long no store is opened after one could not be written: a disk that is full stays so for a while.
const REST: Duration = Duration::from_secs(300);

/// What became of a commit.
pub type Done = Arc<OnceLock<Result<(), Error>>>;

/// Where the stores of this process lie, and who writes to them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper {
    dir: PathBuf,
    jobs: Sender<(Arc<Store>, Batch, Done)>,
    resting: Arc<Mutex<Option<Instant>>>,
}

/// The thread's side.
#[derive(Debug)]
pub struct Keeping {
    jobs: Receiver<(Arc<Store>, Batch, Done)>,
    fail_points: FailPoints,
}

impl Keeper {
    /// One for stores in this directory, and what its thread has to [`Keeping::run`].
    pub fn new(dir: PathBuf, fail_points: FailPoints) -> (Self, Keeping) {
        let (sender, jobs) = channel();
        (Self { dir, jobs: sender, resting: Arc::default() }, Keeping { jobs, fail_points })
    }

    /// Where a partition's store lies.
    pub fn path(&self, aggregate_type: &str, partition: i32) -> PathBuf {
        self.dir.join(aggregate_type).join(format!("{partition}.redb"))
    }

    /// Makes the directory of a store.
    ///
    /// # Errors
    /// When that can't be, or when stores are let be for a while since one could not be written.
    pub fn prepare(&self, path: &Path) -> std::io::Result<()> {
        let resting = *self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if resting.is_some_and(|until| Instant::now() < until) {
            return Err(std::io::Error::other("a store could not be written a few minutes ago"));
        }
        path.parent().map_or(Ok(()), std::fs::create_dir_all)
    }

    /// Stores can't be written at the moment.
    pub fn rest(&self) {
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
    }

    /// Has a batch written. The answer comes some time later.
    pub fn commit(&self, store: Arc<Store>, batch: Batch) -> Done {
        let done = Done::default();
        // An error means that the process is ending.
        let _ = self.jobs.send((store, batch, done.clone()));
        done
    }
}

impl Keeping {
    /// Works until nobody is left who could ask for it.
    pub fn run(self) {
        for (store, batch, done) in self.jobs {
            let (states, started) = (batch.states.len(), Instant::now());
            self.fail_points.reach(Point::StoreCommit);
            let result = store.commit(batch);
            self.fail_points.reach(Point::StoreCommitted);
            metrics::histogram!("millrace_store_commit_seconds").record(started.elapsed().as_secs_f64());
            tracing::debug!(states, seconds = started.elapsed().as_secs_f64(), ?result, "store");
            // Nobody else answers.
            let _ = done.set(result);
        }
    }
}
