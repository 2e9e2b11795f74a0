//! projector-service folds the events of Kafka's topics into the views that query-service answers from.
//!
//! Reading order: [`app`] puts it together; [`membership`] learns from the consumer group which partitions are ours;
//! [`worker`] is the one loop that brings a partition's records into Redis, whatever they are; [`target`] says what a
//! worker has to know about them, and [`events`] and [`outcomes`] say it; [`store`] is all access to Redis; [`monitor`]
//! watches what we depend on. [`cli`] holds the tools, of which [`verify`] proves that the views equal the log; [`loan`] is
//! how a tool writes beside a running worker.

pub mod app;
pub mod board;
pub mod cli;
pub mod command;
pub mod events;
pub mod loan;
pub mod membership;
pub mod monitor;
pub mod outcomes;
mod partition;
pub mod startup;
pub mod store;
pub mod target;
pub mod verify;
pub mod worker;
