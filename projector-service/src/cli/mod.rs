//! Tools that work on the views, beside the service.

pub mod parked;
pub mod rebuild;
pub mod verify;

use clap::Args;
use millrace_shared::{
    config::{self, KafkaSettings, LogSettings, PersonalSettings, RedisSettings, RegistrySettings},
    kafka::topics::Names,
    ops::Health,
    registry::Registry,
    telemetry,
};
use tokio::runtime::Handle;

use crate::{app::Error, board::Board, crew::Means, events::Limits, roster::Roster};

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
    pub personal: PersonalSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub redis: RedisSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub log: LogSettings,
}

impl ToolSettings {
    /// Starts logging: warnings only, beside what the tool prints. Ends the process where that can't be.
    pub fn start_log(&self) {
        if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..self.log.clone() }) {
            config::exit_with(&error);
        }
    }

    /// What a tool works with: as the service has it, but no group tells its workers what is theirs. To be called on a
    /// thread of the runtime.
    pub fn means(&self, instance: String, limits: Limits) -> Result<Means, Error> {
        Ok(Means {
            bootstrap: self.kafka.kafka_bootstrap.clone(),
            partitions: self.kafka.partitions,
            instance,
            limits,
            names: Names::new(&self.kafka.topic_prefix),
            registry: Registry::new(&self.registry.url()?)?,
            master_keys: self.personal.given()?,
            redis: self.redis.address()?,
            redis_timeout: self.redis.timeout(),
            runtime: Handle::current(),
            board: Board::new(Health::default()),
            roster: Roster::default(),
        })
    }
}
