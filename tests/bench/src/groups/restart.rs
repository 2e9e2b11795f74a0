//! `restart`: an instance that has all partitions ends in order and starts again, with its local stores and without them,
//! until it accepts a command for each partition. Raw: the same of an instance that has nothing to know, and reading
//! the snapshot topic.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use millrace_tests::{
    Deployment, eventually_within,
    services::{Service, open_at},
};
use serde_json::{Value, json};

use super::{Group, Settings, takeover::accepted_at};
use crate::{
    kafka::{self, Progress},
    load::{Bank, Bulk},
    progress,
    report::{Figure, rounded},
    side::Side,
};

const WARM: &str = "restart.warm";
const COLD: &str = "restart.cold";

pub const GROUP: Group = Group {
    name: "restart",
    figures: &[
        (WARM, "start with local stores → accepts for every partition; raw: with nothing to know"),
        (COLD, "start without them, from snapshots → the same; raw: reading the snapshot topic"),
    ],
    run,
};

/// Deposits for each account, on average.
const DEPOSITS: usize = 3;
const LIMIT: Duration = Duration::from_secs(300);

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let accounts = if settings.quick { 5_000 } else { 1_000_000 };
    let mut empty = Restarting::start(settings, "empty", 0)?;
    let mut full = Restarting::start(settings, "full", accounts)?;
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    for round in 1..=settings.rounds {
        let raw = empty.restart()?;
        let with = full.restart()?;
        fs::remove_dir_all(full.deployment.data_dir())?;
        let read = full.read_snapshots()?;
        let without = full.restart()?;
        progress(format_args!(
            "restart: round {round} of {}: {:.1} s with stores, {:.1} s without; raw {:.1} s and {:.1} s",
            settings.rounds, with.all, without.all, raw.all, read
        ));
        warm.push((with.all, raw.all, json!({"first": rounded(with.first), "raw_first": rounded(raw.first)})));
        cold.push((without.all, read, json!({"first": rounded(without.first)})));
        // For the next round.
        full.wait_stored(accounts)?;
    }
    let settings: Value = json!({
        "accounts": accounts,
        "events": accounts * (1 + DEPOSITS),
        "outcomes_in_the_window": accounts * (1 + DEPOSITS),
        "partitions": full.deployment.partitions,
    });
    let figures = [Figure::new(WARM, "s", warm, settings.clone()), Figure::new(COLD, "s", cold, settings)];
    for restarting in [empty, full] {
        restarting.end()?;
    }
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}

/// An instance with a history.
struct Restarting {
    deployment: Deployment,
    service: Service,
    /// One in each partition.
    accounts: Vec<String>,
}

/// When commands were accepted, in seconds since the start.
struct Accepted {
    first: f64,
    all: f64,
}

impl Restarting {
    fn start(settings: &Settings, instance: &str, accounts: usize) -> Result<Self> {
        // Nobody wants to wait for minutes until snapshots and stores have everything.
        let interval = if settings.quick { 1 } else { 5 };
        let mut deployment = Deployment::with_defaults()
            .with("MILLRACE_SNAPSHOT_INTERVAL", format!("{interval}s"))
            .with("MILLRACE_STORE_INTERVAL_MS", (1000 * interval).to_string());
        deployment.bin_dir.clone_from(&settings.bin_dir);
        let mut service = deployment.command_service(instance);
        let (commands, group) = (deployment.topic("commands"), format!("{}.command", deployment.prefix));
        let done = Side::new(service.process(), Progress::new(&group, &commands, deployment.partitions)?);
        let ids: Vec<String> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
        ids.iter().for_each(|id| open_at(&service, id, "Ada"));
        if accounts > 0 {
            progress(format_args!("restart: opening {accounts} accounts, {DEPOSITS} deposits for each"));
            let (mut bank, to) = (Bank::new(0, accounts, deployment.partitions), Bulk::new(&commands)?);
            bank.open_all(&to)?;
            done.wait((accounts + ids.len()) as u64)?;
            bank.deposit(&to, accounts * DEPOSITS)?;
            done.wait((accounts * (1 + DEPOSITS) + ids.len()) as u64)?;
        }
        let mut restarting = Self { deployment, service, accounts: ids };
        restarting.wait_stored(accounts)?;
        Ok(restarting)
    }

    /// Waits until snapshots and stores have what happened.
    fn wait_stored(&mut self, accounts: usize) -> Result<()> {
        for account in &self.accounts {
            accepted_at(&self.service, account);
        }
        let counts = || {
            ["millrace_checkpoints_total{type=\"bank-account\"}", "millrace_store_commit_seconds_count"]
                .map(|name| self.service.metric(name))
        };
        let partitions = f64::from(self.deployment.partitions);
        let [checkpoints, commits] = counts().map(|count| count + 2.0 * partitions);
        eventually_within(LIMIT, "snapshots and stores that are written", || {
            let now = counts();
            // There is something to be written in each partition.
            for account in &self.accounts {
                accepted_at(&self.service, account);
            }
            thread::sleep(Duration::from_secs(1));
            if now[0] >= checkpoints && now[1] >= commits {
                Ok(())
            } else {
                Err(format!("{now:?}, {accounts} accounts"))
            }
        });
        Ok(())
    }

    fn restart(&mut self) -> Result<Accepted> {
        self.service.terminate();
        let begin = Instant::now();
        self.service.launch();
        let service = &self.service;
        let accepted = thread::scope(|scope| {
            let asking: Vec<_> =
                self.accounts.iter().map(|account| scope.spawn(move || accepted_at(service, account))).collect();
            let accepted = asking.into_iter().map(|asking| asking.join());
            accepted.collect::<Result<Vec<_>, _>>().map_err(|_| anyhow!("a partition is not served again"))
        })?;
        let seconds = accepted.iter().map(|at| (*at - begin).as_secs_f64());
        Ok(Accepted { first: seconds.clone().fold(f64::INFINITY, f64::min), all: seconds.fold(0.0, f64::max) })
    }

    /// How long it takes just to read the snapshots.
    fn read_snapshots(&self) -> Result<f64> {
        let partitions: Vec<i32> = (0..self.deployment.partitions).collect();
        let begin = Instant::now();
        kafka::read(&self.deployment.topic("snapshots"), &partitions, |_| {})?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn end(self) -> Result<()> {
        let prefix = format!("{}.", self.deployment.prefix);
        drop(self);
        kafka::delete(&prefix)
    }
}
