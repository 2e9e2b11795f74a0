//! command-service: takes commands over HTTP and from Kafka, decides them, publishes events and outcomes exactly once.
//!
//! The way of a command, and the reading order:
//!
//! 1. [`http`] reads a request, and [`submit`] puts the command into its topic, like any other producer;
//! 2. [`intake`] is the one consumer: it polls, turns librdkafka's callbacks into grants ([`grant`]), and hands records
//!    to the writer of their partition;
//! 3. [`writer`] runs one transaction at a time for all its partitions; what a command leads to is decided by
//!    [`partition`], which knows the states and the remembered outcomes;
//! 4. after the commit [`waiters`] answers who waits; [`follower`] does so for commands that another instance decided.
//!
//! [`store`] is a partition's local copy of what it knows; [`partition::restore`] rebuilds a partition that was granted;
//! [`trimmer`] deletes handled commands; [`cli`] holds `import`, `export`, `replay`, and `check-log`, whose work is
//! [`log_check`]; [`failpoints`] is for fault tests.

pub mod app;
pub mod cli;
pub mod failpoints;
pub mod follower;
pub mod grant;
pub mod http;
pub mod intake;
pub mod log_check;
pub mod partition;
mod program;
pub mod record;
pub mod store;
pub mod submit;
pub mod trimmer;
pub mod types;
pub mod waiters;
pub mod writer;

pub use program::main;
