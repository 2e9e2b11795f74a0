//! One partition as its worker sees it.

use std::time::{Duration, Instant};

use millrace_shared::views::Keys;

use crate::target::{At, Target};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often a partition that is lent to a tool is asked for.
const LENT_PAUSE: Duration = Duration::from_millis(100);
/// The list of versions is looked at every second: by then it is known whether a version that is gone was freed.
const GONE_PAUSE: Duration = Duration::from_secs(2);

/// What state a partition of ours is in.
pub enum Slot<T: Target> {
    /// It is to be opened: claimed (or found to be ours still), and read from its checkpoint.
    Waiting(Waiting),
    /// It is being projected.
    Open(Box<Open<T>>),
    /// It can't go on; the board says why. A restart, a new owner, or somebody who claims it (a tool that mends it) or
    /// empties Redis makes us look again. With our number, where we had one.
    Stopped(Option<u64>),
}

/// See [`Slot::Waiting`].
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Our number when we had it before: it is claimed again unless another projector has claimed it since.
    pub epoch: Option<u64>,
    /// Not to be tried before.
    pub not_before: Instant,
    /// How long to wait after the next failure.
    pub pause: Duration,
}

impl Waiting {
    /// To be claimed at once.
    pub fn new() -> Self {
        Self { epoch: None, not_before: Instant::now(), pause: FIRST_PAUSE }
    }

    /// To be looked at again, after something went wrong while it was ours.
    pub fn resuming(epoch: u64) -> Self {
        Self { epoch: Some(epoch), not_before: Instant::now() + FIRST_PAUSE, pause: FIRST_PAUSE * 2 }
    }

    /// After another failure.
    pub fn failed(self) -> Self {
        Self { not_before: Instant::now() + self.pause, pause: (self.pause * 2).min(LONGEST_PAUSE), ..self }
    }

    /// After somebody else turned out to have claimed it: at once it is seen whether that was a tool.
    pub fn claimed_by_another(epoch: u64) -> Self {
        Self { epoch: Some(epoch), not_before: Instant::now(), pause: FIRST_PAUSE }
    }

    /// While it is lent to a tool.
    pub fn lent(self) -> Self {
        Self { not_before: Instant::now() + LENT_PAUSE, ..self }
    }

    /// After nothing was found of it any more: it is begun anew, unless its version is no longer wanted.
    pub fn gone() -> Self {
        Self { epoch: None, not_before: Instant::now() + GONE_PAUSE, pause: FIRST_PAUSE }
    }

    /// After another projector turned out to be the owner: claimed again only if it is still assigned to us much later.
    pub fn fenced(after: Duration) -> Self {
        Self { epoch: None, not_before: Instant::now() + after, pause: FIRST_PAUSE }
    }
}

/// See [`Slot::Open`].
pub struct Open<T: Target> {
    /// Its keys.
    pub keys: Keys,
    /// Our number.
    pub epoch: u64,
    /// Id of the topic.
    pub topic_id: String,
    /// The checkpoint in Redis.
    pub checkpoint: Option<i64>,
    /// Where the next record is expected.
    pub position: i64,
    /// Since when the position is ahead of the checkpoint without any record between them.
    pub ahead_since: Option<Instant>,
    /// Whether Redis says that it has caught up once.
    pub live: bool,
    /// Whether Redis says when it was begun, and by which version of the code.
    pub begun: bool,
    /// Whether everything was read when we last looked.
    pub at_end: bool,
    /// Where the log ended, and when we looked.
    pub end: (Instant, i64),
    /// Read and not yet written.
    pub pending: Vec<At<T::Item>>,
    /// Why it must be read again from its checkpoint.
    pub broken: Option<String>,
    /// See [`Target::Memory`].
    pub memory: T::Memory,
}

impl<T: Target> Open<T> {
    /// Whether a record is the next one. Others may still come from a read that was under way when we moved.
    pub fn expects(&self, offset: i64) -> bool {
        self.broken.is_none() && offset >= self.position
    }

    /// The position is now behind a record.
    pub fn took(&mut self, offset: i64, item: T::Item) {
        self.position = offset + 1;
        self.at_end = false;
        self.pending.push(At { offset, item });
    }

    /// There is nothing more before `offset`.
    pub fn reached_end(&mut self, offset: i64) {
        if self.broken.is_none() && offset >= self.position {
            self.position = offset;
            self.at_end = true;
        }
    }

    /// Whether there is a position worth writing although no record needs it.
    pub fn is_ahead(&self) -> bool {
        self.checkpoint != Some(self.position) || (self.at_end && !self.live) || !self.begun
    }
}
