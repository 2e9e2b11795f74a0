//! What the end-to-end tests share. The tests themselves are in `pipeline/`; they treat Millrace as a black box and
//! know only what its README promises.
//!
//! Reading order: [`stack`] starts Kafka, the registry and Redis, [`services`] the three services on top of them;
//! [`http`], [`kafka`] and [`avro`] talk to them; [`account`] is a second implementation of what a bank account is,
//! which the services are compared with; [`log_check`] asks whether the log keeps the guarantees.
//! For faults: [`brokers`] and the network ([`proxy`]) are hurt, [`fail_points`] stop a service at a chosen instant,
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
pub mod services;
pub mod stack;
pub mod wait;

pub use services::{Deployment, Services};
pub use stack::Stack;
pub use wait::{eventually, eventually_within};
