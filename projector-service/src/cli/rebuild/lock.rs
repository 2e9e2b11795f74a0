//! One rebuild of a projection at a time, and what it says of itself meanwhile.
//!
//! The lock expires when its holder is silent; so a rebuild that was killed can be run again soon. Nothing depends on
//! it but manners: partitions are fenced by their epochs, and each change to the list of versions compares first.

use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use millrace_shared::views::versions;
use redis::Script;
use serde_json::{Value, json};

use super::{Error, Rebuild};
use crate::store::Store;

/// A holder that was silent for so long has lost it.
const EXPIRY: Duration = Duration::from_secs(5);
/// How often its holder speaks.
const RENEWAL: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(500);

/// See the module. Given back when it is dropped.
pub struct Lock {
    store: RefCell<Store>,
    key: String,
    holder: String,
    renewed: Cell<Instant>,
}

impl Lock {
    /// Waits for another rebuild that is under way, or was killed just now.
    pub fn take(rebuild: &Rebuild) -> Result<Self, Error> {
        let key = versions::rebuild_key(rebuild.means.names.redis_prefix(), rebuild.kind.name);
        let holder = format!("{}@{}", std::process::id(), RandomState::new().build_hasher().finish());
        let now = Instant::now();
        let lock = Self { store: rebuild.means.store().into(), key, holder, renewed: now.into() };
        loop {
            if lock.speak(&json!({"state": "starting"}))? {
                return Ok(lock);
            }
            if now.elapsed() > EXPIRY + RENEWAL {
                return Err(Error::Refused("another rebuild of this projection is under way".into()));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Says how it goes; to be called often.
    ///
    /// # Errors
    /// When the lock was lost meanwhile.
    pub fn renew(&self, progress: impl FnOnce() -> Value) -> Result<(), Error> {
        if self.renewed.get().elapsed() < RENEWAL {
            return Ok(());
        }
        match self.speak(&progress()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Refused("another rebuild of this projection has begun meanwhile".into())),
            // The work itself finds out whether Redis comes back.
            Err(_) if self.renewed.get().elapsed() < EXPIRY => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn speak(&self, progress: &Value) -> Result<bool, Error> {
        let mut progress = progress.clone();
        progress["by"] = self.holder.as_str().into();
        let script = Script::new(
            r"
            local there = redis.call('GET', KEYS[1])
            if there and not string.find(there, ARGV[1], 1, true) then return 0 end
            redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
            return 1
            ",
        );
        let mut call = script.key(&self.key);
        call.arg(&self.holder).arg(progress.to_string()).arg(EXPIRY.as_millis() as u64);
        let held: bool = self.store.borrow_mut().ask(|redis| call.invoke(redis))?;
        if held {
            self.renewed.set(Instant::now());
        }
        Ok(held)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let script = Script::new(
            r"
            local there = redis.call('GET', KEYS[1])
            if there and string.find(there, ARGV[1], 1, true) then redis.call('DEL', KEYS[1]) end
            ",
        );
        let mut call = script.key(&self.key);
        call.arg(&self.holder);
        // It expires by itself as well.
        let _ = self.store.borrow_mut().ask(|redis| call.invoke::<()>(redis));
    }
}
