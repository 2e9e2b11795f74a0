//! `command-service export`: prints the events of a type, one JSON object a line, in order per aggregate.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use millrace_shared::{
    config::{self, KafkaSettings, LogSettings, RegistrySettings},
    domain::Domains,
    envelope::{EventMeta, rfc3339_micros},
    kafka::{
        bulk::Record,
        topics::{self, Names, Topic},
    },
    registry::Registry,
    serve::blocking,
    telemetry,
};
use serde_json::json;
use tokio::runtime::Handle;

use super::whole::read_whole;
use crate::types::{CommandType, Secrets, build_all};

/// Flags of `export`.
#[derive(Args)]
#[command(after_help = "Exit status: 0 everything was printed; 1 something can't be read; 2 a setting is wrong.")]
pub struct Arguments {
    /// Aggregate type
    #[arg(long, value_name = "TYPE", default_value = "bank-account")]
    aggregate: String,
    /// Only the events of this aggregate
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    log: LogSettings,
}

/// Runs it. Exit status 0: everything was printed; 1: something can't be read; 2: wrong settings.
pub async fn run<D: Domains>(arguments: Arguments) -> ExitCode {
    let url = arguments.registry.url().unwrap_or_else(|error| config::exit_with(&error));
    if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..arguments.log.clone() }) {
        config::exit_with(&error);
    }
    match export::<D>(arguments, url).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(unreadable) => {
            eprintln!("error: {unreadable} records can't be read");
            ExitCode::FAILURE
        }
        // Whoever reads the output has seen enough.
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("{0}")]
    Registry(#[from] millrace_shared::registry::Error),
    #[error("the output can't be written: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Topics(#[from] topics::Error),
    #[error("there is no aggregate type {0:?}")]
    NoType(String),
}

async fn export<D: Domains>(arguments: Arguments, registry_url: String) -> Result<u64, Error> {
    let names = Names::new(&arguments.kafka.topic_prefix);
    let types = build_all::<D>(&Registry::new(&registry_url)?, &names, &Secrets::default()).await?;
    let kind = types
        .into_iter()
        .find(|kind| kind.info().aggregate_type == arguments.aggregate)
        .ok_or_else(|| Error::NoType(arguments.aggregate.clone()))?;
    let runtime = Handle::current();
    blocking(move || print(&arguments, &kind, &runtime)).await
}

/// Prints all events up to the ends as they are now; returns how many records can't be read.
fn print(arguments: &Arguments, kind: &Arc<dyn CommandType>, runtime: &Handle) -> Result<u64, Error> {
    let (bootstrap, topic) = (&arguments.kafka.kafka_bootstrap, kind.topic(Topic::Events));
    let names = Names::new(&arguments.kafka.topic_prefix);
    let types = [kind.info().aggregate_type];
    topics::check(bootstrap, &names, &types, arguments.kafka.partitions, |_| topics::Said::Configured)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut unreadable = 0;
    read_whole(&arguments.kafka, topic, |record| {
        let key = record.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        if arguments.id.as_deref().is_some_and(|id| id != key) {
            return Ok(());
        }
        match line(record, key, kind, runtime) {
            Ok(line) => writeln!(out, "{line}")?,
            Err(reason) => {
                unreadable += 1;
                eprintln!("{topic}/{}/{}: {reason}", record.partition(), record.offset());
            }
        }
        Ok::<_, Error>(())
    })?;
    out.flush()?;
    Ok(unreadable)
}

fn line(
    record: &Record<'_>,
    id: &str,
    kind: &Arc<dyn CommandType>,
    runtime: &Handle,
) -> Result<serde_json::Value, String> {
    let meta = EventMeta::read(record.raw_headers())?;
    let (event, data) =
        kind.read_event(record.value().unwrap_or_default(), runtime).map_err(|error| error.to_string())?;
    Ok(json!({
        "aggregate": kind.info().aggregate_type,
        "id": id,
        "event": event,
        "sequence": meta.sequence,
        "command_id": meta.command_id,
        "time": rfc3339_micros(meta.time),
        "data": data,
    }))
}
