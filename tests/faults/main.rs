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
mod repeats;
mod threads;
mod zombies;

use std::{
    panic,
    sync::LazyLock,
    thread::{self, ScopedJoinHandle},
};

use millrace_tests::Deployment;

/// Whether this is the long run.
static LONG: LazyLock<bool> = LazyLock::new(|| match std::env::var("FAULTS").as_deref() {
    Ok("long") => true,
    Ok("" | "short") | Err(std::env::VarError::NotPresent) => false,
    other => panic!("FAULTS is short or long, not {other:?}"),
});

/// A deployment whose silent instances are missed after two seconds, so that nobody has to wait for longer.
fn deployment() -> Deployment {
    Deployment::new().with("MILLRACE_SESSION_TIMEOUT_MS", "2000").with("MILLRACE_TRANSACTION_TIMEOUT_MS", "3000")
}

/// Runs cases side by side: most of their time is waiting. Fails when one has, after all have ended.
fn side_by_side<C: std::fmt::Debug + Sync>(cases: &[C], run: impl Fn(&C) + Sync) {
    let failed: Vec<String> = thread::scope(|scope| {
        let run = &run;
        let start = |case| {
            let builder = thread::Builder::new().name(format!("{case:?}"));
            (case, builder.spawn_scoped(scope, move || run(case)).expect("a thread can be started"))
        };
        let running: Vec<(&C, ScopedJoinHandle<'_, ()>)> = cases.iter().map(start).collect();
        let ended = running.into_iter().map(|(case, handle)| (case, handle.join()));
        ended.filter(|(_, result)| result.is_err()).map(|(case, _)| format!("{case:?}")).collect()
    });
    assert!(failed.is_empty(), "failed, see above: {failed:#?}");
}
