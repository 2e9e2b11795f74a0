//! Which errors of Redis pass by themselves.

use redis::{ErrorKind, RedisError};

/// Codes that say that it was not done, and that it may be the next time.
const PASSING: &[&str] = &[
    "LOADING",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    // One of a transaction's commands was refused by one of these.
    "EXECABORT",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "READONLY",
    "BUSY",
    "OOM",
    "NOREPLICAS",
    "MISCONF",
    "NOAUTH",
    "NOPERM",
    "WRONGPASS",
];

/// Whether trying again can help; whatever isn't listed would come again. It does not say whether it was done: after a
/// time-out or a lost connection that is unknown.
pub fn is_passing(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound | ErrorKind::AuthenticationFailed => {
            true
        }
        _ => PASSING.contains(&error.code().unwrap_or_default()),
    }
}
