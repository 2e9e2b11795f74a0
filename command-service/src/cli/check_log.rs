//! `command-service check-log`: shows from the topics alone that the log keeps its guarantees.

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use clap::Args;
use millrace_shared::{
    config::{self, HashSettings, KafkaSettings, LogSettings, RegistrySettings, WindowSettings},
    domain::Domains,
    kafka::topics::Names,
    registry::Registry,
    serve::blocking,
    telemetry,
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::log_check::{Check, Report};

/// The log can't be checked, or a setting is wrong.
const CANNOT_CHECK: u8 = 2;

/// Flags of `check-log`.
#[derive(Args)]
#[command(after_help = "Exit status: 0 nothing was found; 1 there are findings, one line each; 2 the log can't be \
    checked, or a setting is wrong.\n\nOnce retention has deleted outcomes or dead letters of a partition, a command before the \
    first one that is kept counts as not judged: its own may be deleted. Where dead letters were deleted and none is kept, \
    no command of the partition can be found lost.")]
pub struct Arguments {
    /// Only this aggregate type [default: all]
    #[arg(long = "type", value_name = "TYPE")]
    aggregate_type: Option<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    hash: HashSettings,
    #[command(flatten)]
    window: WindowSettings,
    #[command(flatten)]
    log: LogSettings,
}

/// Runs it. Exit status 0: nothing was found; 1: findings; 2: the log can't be checked.
pub async fn run<D: Domains>(arguments: Arguments) -> ExitCode {
    let registry = match arguments.registry.url() {
        Ok(url) => Registry::new(&url),
        Err(error) => config::exit_with(&error),
    };
    if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..arguments.log.clone() }) {
        config::exit_with(&error);
    }
    let started = Instant::now();
    let check = Check {
        bootstrap: arguments.kafka.kafka_bootstrap,
        names: Names::new(&arguments.kafka.topic_prefix),
        partitions: arguments.kafka.partitions,
        window: arguments.window.idempotency_window.0,
        hash: arguments.hash.given().unwrap_or_else(|error| config::exit_with(&error)),
        runtime: Handle::current(),
    };
    let only = arguments.aggregate_type;
    let checked = match registry {
        Ok(registry) => blocking(move || check.run::<D>(&registry, only.as_deref())).await,
        Err(error) => Err(error.into()),
    };
    let reports = match checked {
        Ok(reports) => reports,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(CANNOT_CHECK);
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    if arguments.json {
        println!("{}", as_json(&reports, seconds));
    } else {
        reports.iter().for_each(|(name, report)| print(name, report, seconds));
    }
    let findings: u64 = reports.iter().flat_map(|(_, report)| report.found.values()).sum();
    if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(name: &str, report: &Report, seconds: f64) {
    for finding in &report.findings {
        println!("{finding}");
    }
    for (kind, count) in &report.found {
        let shown = report.findings.iter().filter(|finding| finding.kind == *kind).count() as u64;
        if *count > shown {
            println!("{}  {} more", kind.name(), count - shown);
        }
    }
    if !report.findings.is_empty() {
        println!();
    }
    let counts = &report.counts;
    let rate = counts.records() as f64 / seconds.max(0.001);
    println!("{name}  {} records in {seconds:.1} s, {rate:.0}/s", counts.records());
    for (what, count) in [
        ("aggregates", counts.aggregates),
        ("commands", counts.commands),
        ("  forwarded", counts.forwarded),
        ("    again", counts.forwarded_again),
        ("  waiting", counts.waiting),
        ("outcomes", counts.outcomes),
        ("  accepted", counts.accepted),
        ("repeats", counts.repeats),
        ("dead letters", counts.dead_letters),
        ("events", counts.events),
    ] {
        println!("{what:<14}{count:>12}");
    }
    for (what, count) in &report.unjudged {
        println!("{:<14}{count:>12}  {}", "not judged", what.text());
    }
    let found: u64 = report.found.values().sum();
    println!("{:<14}{found:>12}", "findings");
    for (kind, count) in &report.found {
        println!("  {:<22}{count:>2}", kind.name());
    }
}

fn as_json(reports: &[(&str, Report)], seconds: f64) -> Value {
    let total: u64 = reports.iter().flat_map(|(_, report)| report.found.values()).sum();
    let types: BTreeMap<_, _> = reports
        .iter()
        .map(|(name, report)| {
            let of_type = json!({
                "records": report.counts,
                "not_judged": report.unjudged,
                "found": report.found,
                "findings": report.findings,
            });
            (*name, of_type)
        })
        .collect();
    json!({"findings": total, "seconds": seconds, "types": types})
}
