//! What the end-to-end tests share. The tests themselves are in `pipeline/`; they treat Millrace as a black box and
//! know only what its README promises.
//!
//! Reading order: [`stack`] starts Kafka, the registry and Redis, [`services`] the three services on top of them;
//! [`http`], [`sse`], [`kafka`] and [`avro`] talk to them; [`account`] is a second implementation of what a bank account is,
//! which the services are compared with, as is [`transfers`]; [`tool`] runs the services' tools, [`log_check`] the one that asks whether
//! the log keeps the guarantees, [`verify`] the one that asks whether the views equal it; [`redis`] looks behind them.
//! For faults: [`brokers`], a [`redis_cluster`] and the network ([`proxy`]) are hurt, [`fail_points`] stop a service at a chosen instant,
//! [`group`] says who owns what, [`load`] keeps clients busy meanwhile, and its [`ledger`] compares what they were told
//! with the log.

pub mod account;
pub mod avro;
pub mod brokers;
pub mod commands;
pub mod fail_points;
pub mod group;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod load;
pub mod log_check;
pub mod process;
pub mod proxy;
pub mod python;
pub mod redis;
pub mod redis_cluster;
pub mod services;
pub mod sse;
pub mod stack;
pub mod tool;
pub mod transfers;
pub mod verify;
pub mod wait;

use std::{
    sync::LazyLock,
    thread::{self, ScopedJoinHandle},
};

pub use services::{Deployment, Services};
pub use stack::Stack;
pub use wait::{eventually, eventually_within};

/// Whether `FAULTS=long` asks for more kills, rounds and records than CI has time for.
pub static LONG: LazyLock<bool> = LazyLock::new(|| match std::env::var("FAULTS").as_deref() {
    Ok("long") => true,
    Ok("" | "short") | Err(std::env::VarError::NotPresent) => false,
    other => panic!("FAULTS is short or long, not {other:?}"),
});

/// Runs cases side by side: most of their time is waiting. Fails when one has, after all have ended.
#[track_caller]
pub fn side_by_side<C: std::fmt::Debug + Sync>(cases: &[C], run: impl Fn(&C) + Sync) {
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
