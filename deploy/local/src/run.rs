//! `millrace-local run`: a whole run, from the options to the last part's end.

use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::data_dir::DataDir;
use crate::layout::Layout;
use crate::supervise::{Event, Supervisor, Wait, say};
use crate::{demo, fetch, kafka, redis, registry, services};

const START_LIMIT: Duration = Duration::from_secs(120);

pub const AFTER_HELP: &str = "\
Ports (each plus --port-offset, on 127.0.0.1 only):
  command-service 8080, operations 9080     Kafka 9092, 9094, ...; controllers 19092, 19094, ...
  query-service   8081, operations 9081     registry 8090
  projector-service     operations 9082     Redis 6379 (a cluster: 6379 to 6384)
  further instances: 100 more each

Files in the data folder:
  env     addresses as KEY=value, there while everything is ready: set -a; . .millrace/env
  logs/   one log for each part; <name>.log.1 is that of the run before

Variables that begin with MILLRACE_ (MILLRACE_LOG, MILLRACE_PARTITIONS, ...) are passed on to the
services, except for the addresses, which are those of this run. A part that dies is started again.
The services are taken from the folder in which this program lies.";

/// Options of `run`.
#[derive(clap::Args)]
pub struct Options {
    /// Start Kafka, the registry and Redis, but none of the services
    #[arg(long)]
    infra_only: bool,
    /// Kafka brokers: 1, or 3 to 9. Default: as the data folder was made; 1 for a new one
    #[arg(long, value_name = "N")]
    brokers: Option<u16>,
    /// Six Redis nodes as a cluster instead of one Redis
    #[arg(long)]
    redis_cluster: bool,
    /// Folder of all data and logs
    #[arg(long, value_name = "DIR", default_value = ".millrace")]
    data: PathBuf,
    /// Start empty: delete what is in the data folder (only if it is one of Millrace's)
    #[arg(long)]
    fresh: bool,
    /// Added to every port, so that several runs can live side by side
    #[arg(long, value_name = "N", default_value_t = 0)]
    port_offset: u16,
    /// Instances of each service
    #[arg(long, value_name = "N", default_value_t = 1)]
    instances: u16,
    /// Open some accounts and move money about all the time, so that there is something to see
    #[arg(long, conflicts_with = "infra_only")]
    demo: bool,
    /// Each broker also listens one port higher, for a proxy 100 ports above that (none is started)
    #[arg(long, hide = true)]
    proxied: bool,
    /// Stop when standard input ends: a program that starts this one cannot leave it behind
    #[arg(long)]
    stop_at_eof: bool,
}

/// Runs until the user asks for an end, and leaves nothing running.
pub fn run(options: &Options) -> Result<()> {
    let (sender, events) = mpsc::channel();
    forward_stops(&sender, options.stop_at_eof)?;
    let mut layout = Layout {
        offset: options.port_offset,
        brokers: options.brokers.unwrap_or(1),
        instances: options.instances,
        redis_cluster: options.redis_cluster,
        infra_only: options.infra_only,
        proxied: options.proxied,
    };
    layout.check()?;
    let data = DataDir::open(&options.data, options.fresh, options.brokers)?;
    layout.brokers = data.brokers;
    layout.check()?;
    layout.check_free()?;

    let mut parts = Supervisor::new(sender, events);
    let ran = start_and_watch(&layout, &data, options, &mut parts);
    if let Some(reason) = parts.stop_reason() {
        say(&format!("stopping everything ({reason})"));
    }
    let removed = data.remove_env();
    parts.shut_down();
    ran.and(removed)
}

fn start_and_watch(layout: &Layout, data: &DataDir, options: &Options, parts: &mut Supervisor) -> Result<()> {
    let started = Instant::now();
    // Looked for early: it would be a pity to say so only once Kafka runs.
    let services = if layout.infra_only { Vec::new() } else { services::prepare(layout, data)? };
    services::check(&services)?;
    let fetched = fetch::parts()?;
    say(&format!("starting Kafka, the registry and Redis in {}", data.path.display()));
    parts.start(redis::prepare(layout, data)?)?;
    parts.start(kafka::prepare(layout, data, &fetched)?)?;
    parts.start(vec![registry::prepare(layout, data, &fetched)?])?;
    if parts.wait_until_ready(START_LIMIT)? == Wait::Stop {
        return Ok(());
    }
    if layout.redis_cluster {
        redis::join_cluster(layout, data)?;
    }
    if !services.is_empty() {
        say("starting the services");
        parts.start(services)?;
        if parts.wait_until_ready(START_LIMIT)? == Wait::Stop {
            return Ok(());
        }
    }
    data.write_env(&services::env_file(layout, data, |key| std::env::var(key).ok())?)?;
    say(&table(layout, data, started.elapsed()));
    if options.demo {
        demo::start(layout);
    }
    parts.watch()
}

/// Sends an event for every signal that asks for an end, and for the end of standard input.
fn forward_stops(sender: &Sender<Event>, stop_at_eof: bool) -> Result<()> {
    // Blocked before the first thread starts, so that in all of them; one waits for them.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("blocking signals")?;
    let on_signal = sender.clone();
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if on_signal.send(Event::Stop(signal.as_str())).is_err() {
                return;
            }
        }
    });
    if stop_at_eof {
        let at_eof = sender.clone();
        thread::spawn(move || {
            let mut buffer = [0; 256];
            while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
            // A receiver that is gone means that the run has ended.
            let _ = at_eof.send(Event::Stop("end of input"));
        });
    }
    Ok(())
}

fn table(layout: &Layout, data: &DataDir, took: Duration) -> String {
    let mut rows = Vec::new();
    if !layout.infra_only {
        rows.push(("commands", layout.command_url()));
        rows.push(("queries", layout.query_url()));
        rows.push(("web page", format!("{}/", layout.query_url())));
        let operations = (0..layout.instances).map(|i| {
            let command = layout.command_service(i).ops;
            let query = layout.query_service(i).ops;
            let projector = layout.projector_service(i).ops;
            format!("127.0.0.1: command {command}, query {query}, projector {projector}")
        });
        rows.extend(operations.map(|ports| ("operations", ports)));
    }
    rows.push(("Kafka", layout.kafka_bootstrap()));
    rows.push(("registry", layout.registry_url()));
    rows.push(("Redis", layout.redis_url()));
    rows.push(("addresses", format!("{}/env", data.path.display())));
    rows.push(("logs", format!("{}/logs", data.path.display())));
    let rows: String = rows.into_iter().map(|(what, address)| format!("  {what:<11} {address}\n")).collect();
    let seconds = took.as_secs_f32();
    format!("\nEverything is ready after {seconds:.1} s:\n{rows}Ctrl-C stops everything.\n")
}
