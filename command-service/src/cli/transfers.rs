//! `command-service transfers`: which transfers have not ended, and how to move one that is stuck.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use millrace_shared::{
    codec::{Codec, Foreign},
    config::{self, KafkaSettings, LogSettings, RegistrySettings, Time, duration},
    domain::{
        Aggregate,
        bank_account::{self, BankAccount},
        transfer::{Command, Event, MoneyTransfer, RetryTransfer, Terms, Transfer},
    },
    envelope::{CommandHeaders, EventMeta, rfc3339_micros},
    kafka::{
        Logged, client_config, partition_of,
        topics::{self, Names, Topic},
    },
    registry::{self, Registry},
    serve::blocking,
    telemetry,
};
use rdkafka::{
    error::KafkaError,
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};
use serde_json::json;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::whole::read_whole;

const PRODUCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Flags of `transfers`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List the transfers that have not ended, the oldest first
    #[command(after_help = "Exit status: 0 all were read; 1 something can't be read; 2 a setting is wrong.")]
    List(Which),
    /// Send once more what transfers wait for
    ///
    /// For transfers that are stuck because a command of theirs was lost to a fault: it became a dead letter, say. Doing it
    /// without need does no harm: what was done is answered, not done again. A running command-service goes on from there.
    #[command(after_help = "Exit status: 0 all were sent; 1 something can't be read or sent; 2 a setting is wrong.")]
    Retry(Which),
}

#[derive(Args)]
struct Which {
    /// Only this transfer
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Only those to which nothing has happened for so long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    older_than: Time,
    /// Also those that have completed, but of which an account still waits to hear: reads all events of the accounts
    #[arg(long)]
    settlements: bool,
    /// One JSON object a line, instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    log: LogSettings,
}

/// Runs it.
pub async fn run(arguments: Arguments) -> ExitCode {
    let (which, retry) = match arguments.what {
        What::List(which) => (which, false),
        What::Retry(which) => (which, true),
    };
    let url = which.registry.url().unwrap_or_else(|error| config::exit_with(&error));
    if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..which.log.clone() }) {
        config::exit_with(&error);
    }
    match work(which, &url, retry).await {
        Ok(()) => ExitCode::SUCCESS,
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
    Kafka(#[from] KafkaError),
    #[error("{0}")]
    Registry(#[from] registry::Error),
    #[error("{0}")]
    Topics(#[from] topics::Error),
    #[error("the output can't be written: {0}")]
    Io(#[from] io::Error),
    #[error("there is no transfer {0:?} that waits for anything")]
    NotOpen(String),
    #[error("{0} records can't be read")]
    Unreadable(u64),
    #[error("a command can't be encoded: {0}")]
    Encode(String),
}

/// A transfer that has not ended.
struct Open {
    id: String,
    state: Transfer,
    since: Timestamp,
}

impl Open {
    fn terms(&self) -> Option<&Terms> {
        match &self.state {
            Transfer::Requested(terms) | Transfer::Debited(terms) | Transfer::Completed(terms) => Some(terms),
            Transfer::Refunding { terms, .. } => Some(terms),
            Transfer::Unknown | Transfer::Refused { .. } | Transfer::Compensated => None,
        }
    }

    fn waits_for(&self) -> &'static str {
        match &self.state {
            Transfer::Requested(_) => "debit",
            Transfer::Debited(_) => "credit",
            Transfer::Refunding { .. } => "refund",
            Transfer::Completed(_) => "settle",
            Transfer::Unknown | Transfer::Refused { .. } | Transfer::Compensated => "nothing",
        }
    }
}

async fn work(which: Which, registry_url: &str, retry: bool) -> Result<(), Error> {
    let registry = Registry::new(registry_url)?;
    let names = Names::new(&which.kafka.topic_prefix);
    let codec = Codec::<Event>::reading(registry.clone())?;
    let runtime = Handle::current();
    let (reading, of) = (names.clone(), which.kafka.clone());
    let accounts = which.settlements.then(|| Codec::<bank_account::Event>::reading(registry.clone())).transpose()?;
    let wanted = which.id.clone();
    let read = move || {
        let held = accounts.map_or_else(|| Ok(HashSet::new()), |codec| held(&of, &reading, &codec, &runtime))?;
        read(&of, &reading, &codec, |id| wanted.as_ref().is_none_or(|wanted| wanted == id), &held, &runtime)
    };
    let (mut open, unreadable) = blocking(read).await?;
    let before = Timestamp::now() - which.older_than.0;
    match &which.id {
        Some(id) if open.is_empty() => return Err(Error::NotOpen(id.clone())),
        Some(_) => {}
        None => open.retain(|transfer| transfer.since <= before),
    }
    open.sort_by_key(|transfer| transfer.since);
    let mut out = io::stdout().lock();
    if !which.json && !open.is_empty() {
        writeln!(out, "{:<38} {:<7} {:>10}  {:>18} cur  from -> to", "transfer", "waits", "age", "amount")?;
    }
    let sender = if retry { Some(Sender::new(&which.kafka, &names, registry).await?) } else { None };
    for transfer in &open {
        if let Some(sender) = &sender {
            sender.retry(&transfer.id).await?;
        }
        let Some(terms) = transfer.terms() else { continue };
        let age = Timestamp::now().duration_since(transfer.since).as_secs().max(0);
        if which.json {
            let line = json!({
                "id": transfer.id, "waits_for": transfer.waits_for(), "since": rfc3339_micros(transfer.since),
                "age_seconds": age, "from": terms.from, "to": terms.to, "amount_minor": terms.amount_minor,
                "currency": terms.currency, "retried": retry,
            });
            writeln!(out, "{line}")?;
        } else {
            let Terms { from, to, amount_minor, currency } = terms;
            let (id, waits) = (&transfer.id, transfer.waits_for());
            writeln!(out, "{id:<38} {waits:<7} {age:>8} s  {amount_minor:>18} {currency}  {from} -> {to}")?;
        }
    }
    if !which.json {
        let done = if retry { "sent once more" } else { "not ended" };
        writeln!(out, "{} transfers {done}", open.len())?;
    }
    if unreadable > 0 { Err(Error::Unreadable(unreadable)) } else { Ok(()) }
}

/// Transfers that accounts remember.
fn held(
    kafka: &KafkaSettings,
    names: &Names,
    codec: &Codec<bank_account::Event>,
    runtime: &Handle,
) -> Result<HashSet<String>, Error> {
    let topic = names.topic(BankAccount::TYPE, Topic::Events);
    // An account holds a transfer once; two take part in it.
    let mut held = HashSet::<(Vec<u8>, String)>::new();
    read_whole::<KafkaError>(kafka, &topic, |record| {
        let account = || record.key().unwrap_or_default().to_vec();
        match codec.decode(record.value().unwrap_or_default(), Foreign::Resolve, runtime) {
            Ok(bank_account::Event::TransferHeld(event)) => _ = held.insert((account(), event.transfer_id)),
            Ok(bank_account::Event::TransferReleased(event)) => _ = held.remove(&(account(), event.transfer_id)),
            Ok(_) | Err(_) => {}
        }
        Ok(())
    })?;
    Ok(held.into_iter().map(|(_, transfer)| transfer).collect())
}

/// Folds all transfers and keeps those that wait for something; of completed ones those that accounts still remember.
fn read(
    kafka: &KafkaSettings,
    names: &Names,
    codec: &Codec<Event>,
    wanted: impl Fn(&str) -> bool,
    held: &HashSet<String>,
    runtime: &Handle,
) -> Result<(Vec<Open>, u64), Error> {
    topics::check(&kafka.kafka_bootstrap, names, &[MoneyTransfer::TYPE], kafka.partitions, |_| {
        topics::Said::Configured
    })?;
    let topic = names.topic(MoneyTransfer::TYPE, Topic::Events);
    let (mut open, mut unreadable) = (BTreeMap::<String, Open>::new(), 0);
    read_whole::<KafkaError>(kafka, &topic, |record| {
        let id = record.key().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        if !wanted(id) {
            return Ok(());
        }
        let meta = EventMeta::read(record.raw_headers());
        let event = codec.decode(record.value().unwrap_or_default(), Foreign::Refuse, runtime);
        let (Ok(meta), Ok(event)) = (meta, event) else {
            unreadable += 1;
            eprintln!("{topic}/{}/{} can't be read", record.partition(), record.offset());
            return Ok(());
        };
        let transfer = open.entry(id.to_owned()).or_insert_with(|| Open {
            id: id.to_owned(),
            state: Transfer::default(),
            since: meta.time,
        });
        transfer.state.evolve(&event);
        transfer.since = meta.time;
        match transfer.state {
            Transfer::Unknown | Transfer::Requested(_) | Transfer::Debited(_) | Transfer::Refunding { .. } => {}
            Transfer::Completed(_) if held.contains(id) => {}
            Transfer::Completed(_) | Transfer::Refused { .. } | Transfer::Compensated => drop(open.remove(id)),
        }
        Ok(())
    })?;
    Ok((open.into_values().collect(), unreadable))
}

/// Sends `RetryTransfer`.
struct Sender {
    producer: FutureProducer<Logged>,
    topic: String,
    partitions: i32,
    value: Vec<u8>,
}

impl Sender {
    async fn new(kafka: &KafkaSettings, names: &Names, registry: Registry) -> Result<Self, Error> {
        let topic = names.topic(MoneyTransfer::TYPE, Topic::Commands);
        let codec = Codec::<Command>::registering(registry, &topic, false).await?;
        let mut value = Vec::new();
        codec
            .encode(&Command::RetryTransfer(RetryTransfer {}), &mut value)
            .map_err(|error| Error::Encode(error.to_string()))?;
        let producer = client_config(&kafka.kafka_bootstrap, "millrace-transfers")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", PRODUCE_TIMEOUT.as_millis().to_string())
            .create_with_context(Logged)?;
        Ok(Self { producer, topic, partitions: kafka.partitions, value })
    }

    async fn retry(&self, id: &str) -> Result<(), Error> {
        let headers = CommandHeaders { id: Some(format!("retry-{}", Uuid::now_v7())), ..CommandHeaders::default() };
        let record = FutureRecord::to(&self.topic)
            .partition(partition_of(id.as_bytes(), self.partitions))
            .key(id)
            .payload(&self.value)
            .headers(headers.write());
        self.producer.send(record, Timeout::Never).await.map_err(|(error, _)| error)?;
        Ok(())
    }
}
