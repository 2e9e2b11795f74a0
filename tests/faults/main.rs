//! Processes that are killed, frozen or stalled at chosen and at random instants: whatever happens, the log shows each
//! command's events once, in order, by the rules, and nobody is told what it does not show. Names begin with the
//! guarantee that a test is about.
//!
//! `FAULTS=long` does more of everything; see `deploy/local/test --help`.
//!
//! Do they find a wrong design? The one that is known to be wrong was tried once by hand: `Captures::fence` changed to ask
//! the consumer for its metadata just before the commit, whoever owns the partition by then. Three cases failed:
//! an instance frozen at `begin` whose consumer rejoined before its writer went on, and a writer that hung at `begin`
//! through a rebalance (log check: handled-twice, sequence-repeat); and a writer that hung at `produced`, which decided a
//! command after its partition had gone. All that wake at once pass also with that design, since there is nothing fresh to be had yet. In cases after `produced` the open
//! transaction itself protects: the successor waits for its end before it serves.

mod bounds;
mod forwarding;
mod kills;
mod offsets;
mod rebalances;
mod redis_cluster;
mod repeats;
mod stalls;
mod stores;
mod threads;
mod transfers;
mod views;
mod zombies;

use millrace_tests::Deployment;

/// A deployment of bank accounts alone, whose silent instances are missed after two seconds, so that nobody has to wait for
/// longer. With transfers beside them, the second of two instances is given all partitions of the accounts, and none of the
/// transfers: librdkafka's `cooperative-sticky` counts partitions, whatever topic they are of.
fn deployment() -> Deployment {
    quick().with("MILLRACE_ONLY_TYPE", "bank-account")
}

/// The same of all types.
fn quick() -> Deployment {
    // Checkpoints and commits to local stores all the time: what hurts may hurt them, too.
    Deployment::new()
        .with("MILLRACE_SESSION_TIMEOUT_MS", "2000")
        .with("MILLRACE_TRANSACTION_TIMEOUT_MS", "3000")
        .with("MILLRACE_SNAPSHOT_EVENTS", "20")
        .with("MILLRACE_STORE_INTERVAL_MS", "100")
}
