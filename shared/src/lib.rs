//! What Millrace's three services share: the domains, the Avro codec, the envelope of headers, access to Kafka and
//! Redis, settings, telemetry and the problem documents.
//!
//! Reading order: [`domain`] (what a domain is, and the bank account), [`mod@records`] and [`codec`] (how commands and
//! events become bytes), [`personal`] (what can be forgotten of them), [`envelope`] (what travels in headers),
//! [`outcome`], [`kafka`], then the small ones.

pub mod auth;
pub mod codec;
pub mod compatibility;
pub mod config;
pub mod domain;
pub mod envelope;
pub mod fast_hash;
pub mod fingerprint;
pub mod http;
pub mod kafka;
pub mod openapi;
pub mod ops;
pub mod outcome;
pub mod panics;
pub mod personal;
pub mod problem;
pub mod records;
pub mod registry;
pub mod serve;
pub mod snapshot;
pub mod telemetry;
pub mod token;
pub mod views;
