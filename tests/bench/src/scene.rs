//! The scene of a bench: a topic set, a service on it whose accounts are open, and a sample of what it writes.

use anyhow::{Result, ensure};
use millrace_tests::{Deployment, account::partition_of, services::Service};

use crate::{
    groups::Settings,
    kafka::{self, Progress},
    load::{Bank, Bulk},
    raw::Sample,
    side::Side,
};

/// It. The service's settings are the defaults, but for the session time-out where one is given.
pub struct Scene {
    /// Topics and settings.
    pub deployment: Deployment,
    /// The service.
    pub service: Service,
    /// The accounts.
    pub bank: Bank,
    /// Commands so far.
    pub sent: u64,
    /// The service as one of those who are compared.
    pub ours: Side,
    /// What it wrote for a deposit.
    pub sample: Sample,
}

impl Scene {
    /// Of a deployment with the default settings.
    pub const PARTITIONS: i32 = 12;

    /// The partition of an aggregate there.
    pub fn partition_of(id: &str) -> i32 {
        partition_of(id.as_bytes(), Self::PARTITIONS)
    }

    /// Starts the service and opens the accounts of the usual bank.
    pub fn start(settings: &Settings, session_timeout_ms: Option<u64>, seed: u64) -> Result<Self> {
        Self::with(settings, session_timeout_ms, Bank::new(seed, settings.accounts(), Self::PARTITIONS), &[])
    }

    /// The same with another bank, and other settings.
    pub fn with(
        settings: &Settings,
        session_timeout_ms: Option<u64>,
        mut bank: Bank,
        others: &[(&str, &str)],
    ) -> Result<Self> {
        let mut deployment = Deployment::with_defaults();
        ensure!(deployment.partitions == Self::PARTITIONS, "the default is {} partitions", deployment.partitions);
        deployment.bin_dir.clone_from(&settings.bin_dir);
        if let Some(millis) = session_timeout_ms {
            deployment = deployment.with("MILLRACE_SESSION_TIMEOUT_MS", millis.to_string());
        }
        for (name, value) in others {
            deployment = deployment.with(name, *value);
        }
        let mut service = deployment.command_service("bench");
        let (commands, group) = (deployment.topic("commands"), format!("{}.command", deployment.prefix));
        let ours = Side::new(service.process(), Progress::new(&group, &commands, deployment.partitions)?);
        let to = Bulk::new(&commands)?;
        bank.open_all(&to)?;
        let opened = bank.accounts() as u64;
        ours.wait(opened)?;
        // Alone, so that its records are the last ones by their time.
        bank.deposit(&to, 1)?;
        let sent = opened + 1;
        ours.wait(sent)?;
        let sample = Sample::of_last(&deployment)?;
        Ok(Self { deployment, service, bank, sent, ours, sample })
    }

    /// Ends the service and deletes the topics.
    pub fn end(self) -> Result<()> {
        let prefix = format!("{}.", self.deployment.prefix);
        drop(self);
        kafka::delete(&prefix)
    }
}
