//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long something may take that normally takes well below a second: machines may be slow, or hang for some seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Asks again and again until the answer is good; fails with the last reason after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(PATIENCE, what, ask)
}

/// Asks again and again until the answer is good; fails with the last reason after `limit`.
#[track_caller]
pub fn eventually_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(reason) if Instant::now() > deadline => panic!("no {what} within {limit:?}: {reason}"),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// `Ok` when `actual` is what is expected, else a reason for [`eventually`].
pub fn same<T: PartialEq + std::fmt::Debug>(actual: &T, expected: &T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("expected {expected:?}, found {actual:?}")) }
}
