//! Tools that work on the views, beside the service.

pub mod parked;
pub mod rebuild;
pub mod verify;

use clap::Args;
use millrace_shared::config::{KafkaSettings, LogSettings, RedisSettings, RegistrySettings};

/// Settings that every tool takes, the service's own.
#[derive(Args, Clone, Debug)]
pub struct ToolSettings {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub kafka: KafkaSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub registry: RegistrySettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub redis: RedisSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub log: LogSettings,
}
