//! The pipeline from end to end, on real Kafka, registry and Redis. Names begin with the guarantee that a test is
//! about, where there is one.

mod access;
mod answers;
mod changes;
mod checkpoints;
mod dashboard;
mod emails;
mod erasure;
mod evolution;
mod forgotten;
mod garbage;
mod import;
mod limits;
mod log_check;
mod loyalty;
mod openapi;
mod owners;
mod pages;
mod parked;
mod past;
mod queries;
mod rebuild;
mod refusals;
mod repeats;
mod replay;
mod restarts;
mod scheduling;
mod settings;
mod snapshots;
mod statement;
mod topics;
mod transfers;
mod verify;
mod versions;
mod walk;
