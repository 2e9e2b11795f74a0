//! Tools that work on the topics, beside the service.

pub mod export;
pub mod import;
mod line;
