//! `projector-service verify`: proves that the views equal the log, or says where they don't.

use std::{process::ExitCode, time::Instant};

use clap::Args;
use millrace_shared::{
    config::{self, LogSettings},
    domain::Domains,
    kafka::topics::Names,
    registry::Registry,
    serve::blocking,
    telemetry,
};
use tokio::runtime::Handle;

use super::ToolSettings;
use crate::verify::{Error, Summary, Verify, compare::Difference};

/// The views can't be verified, or a setting is wrong.
const CANNOT_VERIFY: u8 = 2;

/// Flags of `verify`.
#[derive(Args)]
#[command(
    after_help = "A line a difference: {\"partition\", \"id\", \"kind\": \"missing\" | \"extra\" | \"different\", \
    \"key\", \"field\", \"expected\", \"found\"}. Progress and a summary go to standard error.\n\nExit status: 0 the views \
    equal the log (with --repair: they do now); 1 there are differences; 2 the views can't be verified, or a setting is wrong."
)]
pub struct Arguments {
    /// The projection, e.g. bank-accounts
    #[arg(value_name = "PROJECTION")]
    projection: String,
    /// Memory for what the log makes of the views, about; where a partition needs more, it is read several times
    #[arg(long, value_name = "BYTES", default_value_t = 268_435_456, value_parser = clap::value_parser!(u64).range(65_536..))]
    memory_bytes: u64,
    /// Version of the views [default: the one that answers]
    #[arg(long, value_name = "NUMBER")]
    views_version: Option<u32>,
    /// Rewrite the aggregates and counters found wrong, while the services run, and verify again
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    settings: ToolSettings,
}

/// Runs it. Exit status 0: no differences; 1: differences; 2: the views can't be verified.
pub async fn run<D: Domains>(arguments: Arguments) -> ExitCode {
    let ToolSettings { kafka, registry, personal, redis, log } = arguments.settings;
    let url = registry.url().unwrap_or_else(|error| config::exit_with(&error));
    let client = redis.address().unwrap_or_else(|error| config::exit_with(&error));
    let master_keys = personal.given().unwrap_or_else(|error| config::exit_with(&error));
    if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..log }) {
        config::exit_with(&error);
    }
    let verified = match Registry::new(&url) {
        Ok(registry) => {
            let verify = Verify {
                bootstrap: kafka.kafka_bootstrap,
                names: Names::new(&kafka.topic_prefix),
                partitions: kafka.partitions,
                registry,
                master_keys,
                redis: client,
                redis_timeout: redis.timeout(),
                version: arguments.views_version,
                memory_bytes: usize::try_from(arguments.memory_bytes).unwrap_or(usize::MAX),
                runtime: Handle::current(),
            };
            blocking(move || run_and_repair::<D>(&verify, &arguments.projection, arguments.repair)).await
        }
        Err(error) => Err(Error::from(error)),
    };
    match verified {
        Ok(summary) => {
            if summary.found.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(CANNOT_VERIFY)
        }
    }
}

/// Verifies, repairs where that is wanted and needed, and verifies again then.
fn run_and_repair<D: Domains>(verify: &Verify, projection: &str, repair: bool) -> Result<Summary, Error> {
    let started = Instant::now();
    let (summary, repaired) = verify.run::<D>(projection, repair, &print)?;
    summarise(&summary, started.elapsed().as_secs_f64());
    if !repair || summary.found.is_empty() {
        return Ok(summary);
    }
    eprintln!("rewritten: {} aggregates, {} counters; verifying again", repaired.aggregates, repaired.counters);
    let started = Instant::now();
    let (summary, _) = verify.run::<D>(projection, false, &print)?;
    summarise(&summary, started.elapsed().as_secs_f64());
    Ok(summary)
}

fn print(difference: &Difference) {
    println!("{}", serde_json::to_string(difference).unwrap_or_default());
}

fn summarise(summary: &Summary, seconds: f64) {
    let rate = summary.events as f64 / seconds.max(0.001);
    eprintln!("{}  {} events in {seconds:.1} s, {rate:.0}/s", summary.label, summary.events);
    for (what, count) in
        [("aggregates", summary.aggregates), ("  parked", summary.parked), ("  looked at again", summary.again)]
    {
        eprintln!("{what:<18}{count:>12}");
    }
    eprintln!("{:<18}{:>12}", "differences", summary.found.values().sum::<u64>());
    for (kind, count) in &summary.found {
        eprintln!("  {:<16}{count:>12}", format!("{kind:?}").to_lowercase());
    }
}
