//! Points at which fault tests stall a thread, or stop or kill the process: what no signal from outside can time.
//!
//! Off unless `MILLRACE_FAIL_POINTS` names a folder. When a thread reaches a point and the folder holds a file of its
//! name, the file's text says what happens there: `kill` (SIGKILL), `stop` (SIGSTOP), or `stall`: this thread alone
//! waits. The file is renamed to `<point>.reached` first, so that it happens once and the test learns of it; a stalled
//! thread goes on when that file is removed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::sys::signal::{Signal, raise};

/// Where a test may interfere.
#[derive(Clone, Copy, Debug)]
pub enum Point {
    /// Writer: a batch is about to be decided.
    Begin,
    /// Writer: all records of the batch are given to the client, not all are on the broker yet.
    Produced,
    /// Writer: all records of the batch are on the broker.
    Flushed,
    /// Writer: the offsets are in the transaction.
    Offsets,
    /// Writer: nothing is missing but the commit.
    Commit,
    /// Writer: committed; nobody knows yet.
    Committed,
    /// Store: a partition's part of it is about to be written; the commit that it covers is in the log.
    StoreCommit,
    /// Store: written.
    StoreCommitted,
    /// Consumer: once in each round of its loop.
    Poll,
}

impl Point {
    fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Produced => "produced",
            Self::Flushed => "flushed",
            Self::Offsets => "offsets",
            Self::Commit => "commit",
            Self::Committed => "committed",
            Self::StoreCommit => "store-commit",
            Self::StoreCommitted => "store-committed",
            Self::Poll => "poll",
        }
    }
}

/// The folder, where there is one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FailPoints(Option<Arc<Path>>);

impl FailPoints {
    /// Those of a folder; none without.
    pub fn new(folder: Option<&PathBuf>) -> Self {
        if let Some(folder) = folder {
            tracing::warn!(folder = %folder.display(), "fail points are on: for tests only");
        }
        Self(folder.map(|folder| folder.as_path().into()))
    }

    /// Does what the folder says about this point; nothing, usually.
    pub fn reach(&self, point: Point) {
        let Some(folder) = &self.0 else { return };
        let file = folder.join(point.name());
        let reached = folder.join(format!("{}.reached", point.name()));
        let Ok(action) = fs::read_to_string(&file) else { return };
        if fs::rename(&file, &reached).is_err() {
            // Another thread was here first.
            return;
        }
        // To this very thread: one sent to the process may be taken by another thread, and this one go on for a moment.
        let signal = |signal| {
            if let Err(error) = raise(signal) {
                tracing::error!(%error, "a fail point can't signal its process");
            }
        };
        match action.trim() {
            "kill" => signal(Signal::SIGKILL),
            "stop" => signal(Signal::SIGSTOP),
            "stall" => {
                while reached.exists() {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            other => tracing::error!(other, "a fail point knows no such action"),
        }
    }
}
