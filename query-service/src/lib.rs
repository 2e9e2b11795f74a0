//! query-service answers from the views that projector-service keeps in Redis.
//!
//! Reading order: [`app`] puts it together; [`routes`] lists the paths, one file each; they read by way of
//! [`service`], from the version of a projection that [`edition`] says; [`view_reader`] reads single views, those asked for
//! at the same time together; [`store`] is the way to Redis, [`ends`] to Kafka (for lag only), [`feed`] wakes those who
//! wait for a change, [`changes`] tells them to those who keep a stream open; [`params`] and [`cursor`] read what callers
//! send; [`caching`] and [`compression`] have the last word on what they are sent; [`dashboard`] is the web page, which
//! also shows [`dead_letters`]; [`openapi`] describes the API.

pub mod app;
pub mod caching;
pub mod changes;
pub mod compression;
pub mod cursor;
pub mod dashboard;
pub mod dead_letters;
pub mod edition;
pub mod ends;
pub mod feed;
pub mod openapi;
pub mod params;
pub mod past;
mod program;
pub mod routes;
pub mod scan;
pub mod service;
pub mod store;
pub mod view_reader;

pub use program::main;
