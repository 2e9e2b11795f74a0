//! A partition in a tool's hands for a moment, so that it can be mended while its projector runs.
//!
//! The projector finds another owner, sees that it is a loan, and goes on when it is over, with nothing of what it had
//! in memory. A tool that is killed holds it up for [`TIME`] at most; one that was frozen for longer writes nothing any
//! more, since somebody has claimed the partition.

use std::time::{Duration, Instant};

use millrace_shared::views::Keys;

use crate::{
    command::Command,
    store::{self, Applied, Claim, Meta, Store, Write},
};

/// A loan lasts so long from its last write or extension.
pub const TIME: Duration = Duration::from_secs(5);
/// Longest wait for another tool's loan.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Why a loan did not come about, or is over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Another tool has the partition.
    #[error("another tool is at work on this partition")]
    Busy,
    /// It was never projected.
    #[error("this partition has no checkpoint: nothing was projected yet")]
    Empty,
    /// What is there was folded by other code, and ours must not go on from it.
    #[error("these views were folded by version {0} of the projection's code, and this release has version {1}")]
    OtherFold(u32, u32),
    /// Nothing was written.
    #[error("the partition was claimed by somebody else meanwhile; nothing of this step was written, run it again")]
    Over,
}

/// See the module. Given back when it is dropped.
#[derive(Debug)]
pub struct Loan<'a> {
    /// For reading.
    pub store: &'a mut Store,
    /// The partition's keys.
    pub keys: Keys,
    /// Next offset that its projector will read.
    pub checkpoint: i64,
    meta: Meta,
}

impl<'a> Loan<'a> {
    /// Borrows a partition that this version of the projection's code has folded.
    pub fn take(store: &'a mut Store, keys: Keys, fold_version: u32) -> Result<Self, Error> {
        let begun = Instant::now();
        let meta = loop {
            match store.borrow(&keys, TIME)? {
                Claim::Granted(meta) => break meta,
                Claim::Lent | Claim::OtherOwner | Claim::Gone if begun.elapsed() > PATIENCE => return Err(Error::Busy),
                Claim::Lent | Claim::OtherOwner | Claim::Gone => std::thread::sleep(PAUSE),
            }
        };
        // Made first, so that it is given back also when there is nothing to be done.
        let loan = Self { store, keys, checkpoint: meta.offset.unwrap_or_default(), meta };
        match loan.meta.fold {
            _ if loan.meta.offset.is_none() => Err(Error::Empty),
            Some(other) if other != fold_version => Err(Error::OtherFold(other, fold_version)),
            _ => Ok(loan),
        }
    }

    /// For another [`TIME`].
    pub fn extend(&mut self) -> Result<(), Error> {
        if self.store.extend(&self.keys, self.meta.epoch, TIME)? { Ok(()) } else { Err(Error::Over) }
    }

    /// Writes all or nothing, and extends the loan. The checkpoint stays.
    pub fn write(&mut self, commands: &[Command]) -> Result<(), Error> {
        self.extend()?;
        let topic_id = self.meta.topic_id.as_deref().unwrap_or_default();
        let (epoch, next) = (self.meta.epoch, self.checkpoint);
        match self.store.apply(&self.keys, &Write { epoch, topic_id, expected: Some(next), next, commands })? {
            Applied::Written => Ok(()),
            Applied::OtherOwner | Applied::OtherCheckpoint => Err(Error::Over),
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        // Else it ends by itself.
        let _ = self.store.extend(&self.keys, self.meta.epoch, Duration::ZERO);
    }
}
