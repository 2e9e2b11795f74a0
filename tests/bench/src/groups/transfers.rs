//! `transfers`: transfers that are requested in the topic → all have ended, saturated; beside plain deposits in the same
//! topics, two for each transfer.
//!
//! The service is frozen (SIGSTOP) while a backlog is produced.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use millrace_tests::{account::partition_of, commands};
use serde_json::json;

use super::{Group, Settings};
use crate::{
    load::{Bank, Bulk, account},
    progress,
    report::Figure,
    scene::Scene,
};

const RATE: &str = "transfers.rate";

pub const GROUP: Group =
    Group { figures: &[(RATE, "transfers that have ended; raw: pairs of plain deposits by the same service")], run };

/// Nobody may lose the group while it is frozen.
const SESSION_TIMEOUT_MS: &str = "120000";
const FUNDS_MINOR: i64 = 1_000_000;
/// How often progress is asked for.
const PAUSE: Duration = Duration::from_millis(20);
const STALL: Duration = Duration::from_secs(60);
/// Events of a transfer that arrives.
const EVENTS: u64 = 3;

fn run(settings: &Settings, _: &[&'static str]) -> Result<Vec<Figure>> {
    let transfers: usize = if settings.quick { 2_000 } else { 100_000 };
    let accounts = if settings.quick { 500 } else { 20_000 };
    let mut rounds = Vec::new();
    for round in 1..=settings.rounds {
        let bank = Bank::uniform(round as u64, accounts, Scene::PARTITIONS);
        let scene = Scene::with(settings, None, bank, &[("MILLRACE_SESSION_TIMEOUT_MS", SESSION_TIMEOUT_MS)])?;
        let mut side = Backlog { scene, transfers: 0 };
        side.fund()?;
        // The first ones warm up what they need.
        side.transfer(transfers / 10)?;
        let (ours, raw) = match round % 2 {
            0 => (side.transfer(transfers)?, side.deposit(2 * transfers)?),
            _ => {
                let raw = side.deposit(2 * transfers)?;
                (side.transfer(transfers)?, raw)
            }
        };
        progress(format_args!(
            "transfers: round {round} of {}: {ours:.0}/s, pairs of deposits {:.0}/s",
            settings.rounds,
            raw / 2.0
        ));
        rounds.push((ours, raw / 2.0, json!({})));
        side.scene.end()?;
    }
    let settings = json!({
        "transfers": transfers, "accounts": accounts, "partitions": Scene::PARTITIONS,
        "commands_of_a_transfer": "request, debit, its answer, credit, its answer, two settlements",
    });
    Ok(vec![Figure::new(RATE, "transfers/s", rounds, settings)])
}

/// A service that works off backlogs.
struct Backlog {
    scene: Scene,
    /// So far.
    transfers: usize,
}

impl Backlog {
    /// Every account gets what its transfers may need.
    fn fund(&mut self) -> Result<()> {
        let (topic, deposit) = (self.scene.deployment.topic("commands"), commands::deposit(FUNDS_MINOR));
        let (to, accounts) = (Bulk::new(&topic)?, self.scene.bank.accounts());
        let before = self.accepted("bank-account");
        for number in 0..accounts {
            let id = self.scene.bank.command_id();
            to.send(self.scene.bank.partition(number), &account(number), id, &deposit)?;
        }
        to.finish()?;
        self.wait("bank-account", before + accounts as u64)
    }

    /// Deposits per second.
    fn deposit(&mut self, count: usize) -> Result<f64> {
        let topic = self.scene.deployment.topic("commands");
        let to = Bulk::new(&topic)?;
        self.work_off("bank-account", count as u64, |scene, _| scene.bank.deposit(&to, count))
            .map(|took| count as f64 / took)
    }

    /// Transfers per second.
    fn transfer(&mut self, count: usize) -> Result<f64> {
        let topic = self.scene.deployment.transfer_topic("commands");
        let to = Bulk::new(&topic)?;
        let request = |scene: &mut Scene, first: usize| {
            for number in first..first + count {
                let from = scene.bank.pick();
                let target = (from + 1 + scene.bank.pick() % (scene.bank.accounts() - 1)) % scene.bank.accounts();
                let (id, command_id) = (format!("t-{number:012}"), scene.bank.command_id());
                let value = commands::request_transfer(&account(from), &account(target), 1, "EUR");
                to.send(partition_of(id.as_bytes(), Scene::PARTITIONS), &id, command_id, &value)?;
            }
            to.finish()
        };
        let took = self.work_off("transfer", EVENTS * count as u64, request)?;
        self.transfers += count;
        Ok(count as f64 / took)
    }

    /// Seconds until so many commands of a type are accepted that follow on what is produced while the service is frozen.
    fn work_off(
        &mut self,
        aggregate_type: &str,
        commands: u64,
        produce: impl FnOnce(&mut Scene, usize) -> Result<()>,
    ) -> Result<f64> {
        let before = self.accepted(aggregate_type);
        self.scene.ours.freeze()?;
        produce(&mut self.scene, self.transfers)?;
        let begin = Instant::now();
        self.scene.ours.thaw()?;
        self.wait(aggregate_type, before + commands)?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn wait(&self, aggregate_type: &str, target: u64) -> Result<()> {
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            let accepted = self.accepted(aggregate_type);
            if accepted >= target {
                return Ok(());
            }
            if accepted > seen {
                (seen, moved) = (accepted, Instant::now());
            }
            ensure!(
                moved.elapsed() < STALL,
                "{accepted} of {target} commands of {aggregate_type} are accepted, and no more"
            );
            thread::sleep(PAUSE);
        }
    }

    fn accepted(&self, aggregate_type: &str) -> u64 {
        let metric = format!("millrace_commands_total{{type=\"{aggregate_type}\",outcome=\"accepted\"}}");
        self.scene.service.metric(&metric) as u64
    }
}
