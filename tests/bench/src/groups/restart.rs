//! `restart`: an instance that has all partitions ends in order and starts again, with its local stores and without them,
//! until it accepts a command for each partition. Raw: the same of an instance that has nothing to know, and reading
//! the snapshot topic.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use millrace_shared::{
    codec::{Codec, Foreign},
    domain::bank_account::Snapshot,
    registry::Registry,
};
use millrace_tests::{
    Deployment, Stack, eventually_within,
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
const MEMORY: &str = "restart.memory";

pub const GROUP: Group = Group {
    figures: &[
        (WARM, "start with local stores → accepts for every partition; raw: with nothing to know"),
        (COLD, "start without them, from snapshots → the same; raw: snapshot topic read and decoded"),
        (MEMORY, "peak of command-service meanwhile, loading included; raw: with nothing to know"),
    ],
    run,
};

/// Events for each account, on average: its opening, and deposits.
const EVENTS: usize = 4;
/// One answer in so many events is still remembered when an instance starts.
const REMEMBERED: usize = 10;
/// Answers are remembered so long.
const WINDOW: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(600);
const SAMPLING: Duration = Duration::from_secs(1);

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let accounts = if settings.quick { 5_000 } else { settings.accounts.unwrap_or(1_000_000) };
    let mut empty = Restarting::start(settings, "empty", 0)?;
    let mut full = Restarting::start(settings, "full", accounts)?;
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    for round in 1..=settings.rounds {
        full.pay_in(accounts * EVENTS / REMEMBERED)?;
        let raw = empty.restart()?;
        let with = full.restart()?;
        let again = full.restart()?;
        fs::remove_dir_all(full.deployment.data_dir())?;
        let read = full.read_snapshots()?;
        let without = full.restart()?;
        progress(format_args!(
            "restart: round {round} of {}: {:.1} s with stores, {:.1} s without; raw {:.1} s and {:.1} s",
            settings.rounds, with.all, without.all, raw.all, read
        ));
        let more = json!({
            "first": rounded(with.first), "raw_first": rounded(raw.first), "once_more": rounded(again.all),
        });
        warm.push((with.all, raw.all, more));
        cold.push((without.all, read, json!({"first": rounded(without.first)})));
    }
    let memory = vec![(full.peak(), empty.peak(), json!({}))];
    let settings: Value = json!({
        "accounts": accounts,
        "events": accounts * EVENTS,
        "outcomes_in_the_window": accounts * EVENTS / REMEMBERED,
        "partitions": full.deployment.partitions,
    });
    let figures = [
        Figure::new(WARM, "s", warm, settings.clone()),
        Figure::new(COLD, "s", cold, settings.clone()),
        Figure::new(MEMORY, "MB", memory, settings),
    ];
    for restarting in [empty, full] {
        restarting.end()?;
    }
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}

/// An instance with a history.
pub(super) struct Restarting {
    pub(super) deployment: Deployment,
    pub(super) service: Service,
    /// One in each partition.
    accounts: Vec<String>,
    bank: Option<Bank>,
    handled: u64,
    watched: Watched,
}

/// When commands were accepted, in seconds since the start.
pub(super) struct Accepted {
    pub(super) first: f64,
    pub(super) all: f64,
}

impl Restarting {
    pub(super) fn start(settings: &Settings, instance: &str, accounts: usize) -> Result<Self> {
        // Nobody wants to wait for minutes until snapshots and stores have everything.
        let interval = if settings.quick { 1 } else { 5 };
        let mut deployment = Deployment::with_defaults()
            .with("MILLRACE_IDEMPOTENCY_WINDOW", format!("{}s", WINDOW.as_secs()))
            // For all that `deadlines` has wait.
            .with("MILLRACE_SCHEDULED_BYTES", (4_u64 << 30).to_string())
            .with("MILLRACE_SNAPSHOT_INTERVAL", format!("{interval}s"))
            .with("MILLRACE_STORE_INTERVAL_MS", (1000 * interval).to_string());
        deployment.bin_dir.clone_from(&settings.bin_dir);
        let mut service = deployment.command_service(instance);
        let ids: Vec<String> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
        ids.iter().for_each(|id| open_at(&service, id, "Ada"));
        let watched = Watched::new(&mut service);
        let handled = ids.len() as u64;
        let mut restarting = Self { deployment, service, accounts: ids, bank: None, handled, watched };
        if accounts > 0 {
            restarting.load(accounts, settings.quick)?;
        }
        Ok(restarting)
    }

    fn load(&mut self, accounts: usize, quick: bool) -> Result<()> {
        progress(format_args!("restart: opening {accounts} accounts, {EVENTS} events for each"));
        let commands = self.deployment.topic("commands");
        let mut bank = Bank::uniform(0, accounts, self.deployment.partitions);
        bank.open_all(&Bulk::new(&commands)?)?;
        self.bank = Some(bank);
        self.wait_handled(accounts)?;
        let deposits = accounts * EVENTS * (REMEMBERED - 1) / REMEMBERED - accounts;
        self.pay_in(deposits)?;
        if !quick {
            progress(format_args!("restart: waiting {WINDOW:?} until the answers are forgotten"));
            thread::sleep(WINDOW);
        }
        Ok(())
    }

    /// Pays into accounts, and waits until snapshots and stores have it.
    fn pay_in(&mut self, count: usize) -> Result<()> {
        let commands = self.deployment.topic("commands");
        let Some(bank) = &mut self.bank else { return Ok(()) };
        bank.deposit(&Bulk::new(&commands)?, count)?;
        self.wait_handled(count)?;
        self.wait_stored()
    }

    /// Waits until so many more commands were handled.
    pub(super) fn wait_handled(&mut self, count: usize) -> Result<()> {
        self.handled += count as u64;
        let (commands, group) = (self.deployment.topic("commands"), format!("{}.command", self.deployment.prefix));
        let progress = Progress::new(&group, &commands, self.deployment.partitions)?;
        Side::new(self.service.process(), progress).wait(self.handled)
    }

    /// Waits until snapshots and stores have what happened.
    fn wait_stored(&mut self) -> Result<()> {
        self.touch();
        let counts = || {
            ["millrace_checkpoints_total{type=\"bank-account\"}", "millrace_store_commit_seconds_count"]
                .map(|name| self.service.metric(name))
        };
        let partitions = f64::from(self.deployment.partitions);
        let [checkpoints, commits] = counts().map(|count| count + 2.0 * partitions);
        eventually_within(LIMIT, "snapshots and stores that are written", || {
            let now = counts();
            self.touch();
            thread::sleep(Duration::from_secs(1));
            if now[0] >= checkpoints && now[1] >= commits { Ok(()) } else { Err(format!("{now:?}")) }
        });
        // The commands of `touch` count as well.
        let (commands, group) = (self.deployment.topic("commands"), format!("{}.command", self.deployment.prefix));
        self.handled = Progress::new(&group, &commands, self.deployment.partitions)?.done()?;
        Ok(())
    }

    /// Gives each partition something to write.
    fn touch(&self) {
        for account in &self.accounts {
            accepted_at(&self.service, account);
        }
    }

    pub(super) fn restart(&mut self) -> Result<Accepted> {
        self.service.terminate();
        let begin = Instant::now();
        self.service.launch();
        self.watched.look_at(&mut self.service);
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

    /// How long it takes just to read the snapshots and decode them.
    fn read_snapshots(&self) -> Result<f64> {
        let runtime = tokio::runtime::Runtime::new()?;
        let codec = Codec::<Snapshot>::reading(Registry::new(&Stack::shared().registry)?)?;
        let partitions: Vec<i32> = (0..self.deployment.partitions).collect();
        let (begin, mut decoded) = (Instant::now(), 0);
        kafka::read(&self.deployment.topic("snapshots"), &partitions, |record| {
            let value = record.value().unwrap_or_default();
            decoded += usize::from(codec.decode(value, Foreign::Refuse, runtime.handle()).is_ok());
        })?;
        ensure!(decoded > 0, "there are no snapshots");
        Ok(begin.elapsed().as_secs_f64())
    }

    /// The most memory that any of the processes had, in MB; pages of files don't count.
    pub(super) fn peak(&self) -> f64 {
        self.watched.peak.load(Ordering::Relaxed) as f64 / 1e6
    }

    pub(super) fn end(self) -> Result<()> {
        let prefix = format!("{}.", self.deployment.prefix);
        drop(self);
        kafka::delete(&prefix)
    }
}

/// Looks at the memory of a process, or of those that followed it.
struct Watched {
    pid: Arc<AtomicU32>,
    peak: Arc<AtomicU64>,
}

impl Watched {
    fn new(service: &mut Service) -> Self {
        let watched = Self { pid: Arc::new(AtomicU32::new(service.process().id())), peak: Arc::default() };
        let (pid, peak) = (Arc::downgrade(&watched.pid), watched.peak.clone());
        thread::spawn(move || {
            while let Some(pid) = pid.upgrade() {
                peak.fetch_max(anonymous(pid.load(Ordering::Relaxed)).unwrap_or_default(), Ordering::Relaxed);
                drop(pid);
                thread::sleep(SAMPLING);
            }
        });
        watched
    }

    fn look_at(&self, service: &mut Service) {
        self.pid.store(service.process().id(), Ordering::Relaxed);
    }
}

/// Bytes of a process that no file holds; `None` when it has ended.
fn anonymous(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
