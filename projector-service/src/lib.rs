//! projector-service folds the events of Kafka's topics into the views that query-service answers from.
//!
//! Reading order: [`app`] puts it together; [`membership`] learns from the consumer group which partitions are ours and
//! tells the [`roster`]; [`crew`] keeps a worker for each version of each projection; [`worker`] is the one loop that
//! brings a partition's records into Redis, whatever they are; [`target`] says what a worker has to know about them, and
//! [`events`], [`groups`] and [`outcomes`] say it; [`keyring`] opens personal data; [`store`] is all access to Redis, by a [`link`]; [`monitor`] watches what we depend on.
//! [`cli`] holds the tools, of which [`verify`] proves that the views equal the log; [`loan`] is how a tool writes beside a
//! running worker; [`projections`] lists what there is by name.

pub mod app;
pub mod board;
pub mod cli;
pub mod command;
pub mod crew;
pub mod events;
pub mod groups;
pub mod keyring;
pub mod link;
pub mod loan;
pub mod membership;
pub mod monitor;
pub mod outcomes;
mod partition;
mod program;
pub mod projections;
pub mod roster;
mod scheduled;
pub mod startup;
pub mod store;
pub mod target;
pub mod verify;
pub mod worker;

pub use program::main;
