//! Tools that work on the topics, beside the service.

pub mod check_log;
pub mod export;
pub mod import;
mod line;
pub mod replay;
pub mod transfers;
mod whole;
