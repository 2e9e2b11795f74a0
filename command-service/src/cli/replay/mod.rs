//! `command-service replay`: how an aggregate's state came to be, event by event, from the log alone.

mod diff;
mod fold;
mod print;

use std::{io, ops::ControlFlow, process::ExitCode};

use clap::Args;
use jiff::Timestamp;
use millrace_shared::{
    config::{self, DataSettings, KafkaSettings, LogSettings, RegistrySettings},
    domain::{AggregateId, AggregateInfo, Domains},
    envelope::{EventMeta, rfc3339_micros},
    kafka::{
        partition_of,
        source::{self, Progress, Source},
        topics::{self, Names, Topic},
        watcher, watermarks,
    },
    registry::Registry,
    serve::blocking,
    telemetry,
};
use serde_json::Value;
use tokio::runtime::Handle;

use diff::Places;
use fold::{Fold, Until, fold_of};
use print::{Printer, fields};

const CLIENT_ID: &str = "millrace-replay";

/// Flags of `replay`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    command-service replay --aggregate bank-account --id acc-42\n  \
    command-service replay --aggregate bank-account --id acc-42 --as-of 2026-01-31T23:59:59Z\n  \
    command-service replay --aggregate bank-account --id acc-42 --at-version 7 --json | tail -1\n  \
    command-service replay --aggregate bank-account --id acc-42 --diff\n\n\
    A line an event: sequence, time, name, fields, and after => the state. With --json: one object an event, with \
    sequence, time, event_id, command_id, event, data, state, position. A record of the aggregate that can't be read, and \
    a sequence that is missing or comes twice, is said at its place (with --json: problem, position); the rest goes on. \
    Once an event is missing the state is not known (null).\n\n\
    With --diff a line for the snapshot and one for each local store of this machine follow: whether the state that is \
    kept there is the one that the log gives at that version (with --json: compared, place, version, time, state, unused, \
    difference).\n\n\
    Exit status: 0 everything was printed; 1 there is no such aggregate or version, something can't be read, is missing or \
    differs, or Kafka or the registry can't be used; 2 a setting is wrong.")]
pub struct Arguments {
    /// Aggregate type, e.g. bank-account
    #[arg(long, value_name = "TYPE")]
    aggregate: String,
    /// The aggregate
    #[arg(long, value_name = "ID", value_parser = AggregateId::new)]
    id: AggregateId,
    /// End with this version, i.e. after the event of this sequence
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    at_version: Option<u64>,
    /// End with the last event that is not later than this time (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with = "at_version", value_parser = time)]
    as_of: Option<Timestamp>,
    /// Compare it with what the snapshot topic and the local stores of this machine hold; services may be at work
    #[arg(long, conflicts_with_all = ["at_version", "as_of"])]
    diff: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataSettings,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    log: LogSettings,
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "must be a time by RFC 3339, e.g. 2026-01-31T12:00:00Z".to_owned())
}

/// Runs it. Exit status 0: everything was printed; 1: something is missing or can't be read; 2: a setting is wrong.
pub async fn run<D: Domains>(arguments: Arguments) -> ExitCode {
    let url = arguments.registry.url().unwrap_or_else(|error| config::exit_with(&error));
    if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..arguments.log.clone() }) {
        config::exit_with(&error);
    }
    let made = Registry::new(&url).map(|registry| (fold_of::<D>(&arguments.aggregate, &registry), registry));
    let (fold, registry) = match made {
        Ok((Some(Ok(fold)), registry)) => (fold, registry),
        Ok((None, _)) => {
            let known: Vec<_> = AggregateInfo::all::<D>().iter().map(|info| info.aggregate_type).collect();
            let known = known.join(", ");
            config::exit_with(&format_args!("there is no aggregate type {:?}; there is {known}", arguments.aggregate))
        }
        Ok((Some(Err(error)), _)) | Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = Handle::current();
    match blocking(move || replay(&arguments, fold, &registry, &runtime)).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(problems) => {
            let problems = counted(problems, "problem");
            eprintln!("error: {problems}, each told at its place (check-log says more about the log)");
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
    Topics(#[from] topics::Error),
    #[error("{0}")]
    Source(#[from] source::Error),
    #[error("{0}")]
    Registry(String),
    #[error("the output can't be written: {0}")]
    Io(#[from] io::Error),
    /// What was asked for is not there.
    #[error("{0}")]
    NotThere(String),
}

/// Prints what was asked for; returns how many problems there are.
fn replay(arguments: &Arguments, mut fold: Box<dyn Fold>, registry: &Registry, runtime: &Handle) -> Result<u64, Error> {
    let (bootstrap, partitions) = (&arguments.kafka.kafka_bootstrap, arguments.kafka.partitions);
    let names = Names::new(&arguments.kafka.topic_prefix);
    topics::check(bootstrap, &names, &[&arguments.aggregate], partitions, |_| topics::Said::Configured)?;
    let topic = names.topic(&arguments.aggregate, Topic::Events);
    let key = arguments.id.as_str().as_bytes();
    let partition = partition_of(key, partitions);
    let watcher = watcher(bootstrap, CLIENT_ID)?;
    let mut holders = Vec::new();
    if arguments.diff {
        let places = Places {
            bootstrap,
            watcher: &watcher,
            events: &topic,
            snapshots: &names.topic(&arguments.aggregate, Topic::Snapshots),
            aggregate_type: &arguments.aggregate,
            partition: (partition, partitions),
            stores: arguments.data.stores(&names),
            registry,
            runtime,
        };
        holders = places.find(&arguments.id, &*fold)?;
    }
    let (first, end) = watermarks(&watcher, &topic, partition)?;

    let progress = Progress::new((end - first).unsigned_abs());
    let printer = Printer { json: arguments.json, name_width: fold.longest_name(), progress: &progress };
    let until = match (arguments.at_version, arguments.as_of) {
        (Some(version), _) => Until::Version(version),
        (None, Some(time)) => Until::Time(time),
        (None, None) => Until::Present,
    };
    let mut seen = Seen::default();
    printer.remark(&format!("{}, from {topic}/{partition}, offsets {first} to {end}", arguments.name()))?;
    if first > 0 {
        printer.remark(&format!("the records before offset {first} are gone"))?;
    }
    let mut source = Source::new(bootstrap, CLIENT_ID, &[&topic], &progress)?;
    let read = source.read_while(&topic, partition, (first, end), |record| {
        if record.key() != Some(key) {
            return Ok(ControlFlow::Continue(()));
        }
        let taken = fold.take(record, until, runtime).map_err(Error::Registry)?;
        if let Some(problem) = &taken.problem {
            printer.problem(record, problem)?;
            seen.problems += 1;
        }
        if let Some(event) = taken.event {
            printer.event(record, &event)?;
            for holder in &mut holders {
                holder.compare(record.offset(), &event.meta, event.state.as_ref());
            }
            seen.events += 1;
            seen.since.get_or_insert(event.meta.sequence);
            seen.version = event.meta.sequence;
            seen.state = event.state;
        }
        seen.beyond = taken.beyond;
        let over = seen.beyond.is_some() || arguments.at_version == Some(seen.version);
        Ok::<_, Error>(if over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    progress.finish();
    read?;
    let missing = seen.missing(arguments, first);
    if missing.is_none() {
        printer.remark(&seen.summary())?;
    }
    for holder in &holders {
        seen.problems += u64::from(holder.print(&printer)?);
    }
    if let Some(missing) = missing {
        return Err(Error::NotThere(missing));
    }
    Ok(seen.problems)
}

impl Arguments {
    /// The aggregate for people.
    fn name(&self) -> String {
        format!("{} {}", self.aggregate, self.id)
    }
}

/// What came by.
#[derive(Default)]
struct Seen {
    events: u64,
    /// Sequence of the first event.
    since: Option<u64>,
    /// Sequence of the last one.
    version: u64,
    /// After the last event; `None` once an event is missing.
    state: Option<Value>,
    problems: u64,
    /// The first event behind the end that was asked for.
    beyond: Option<EventMeta>,
}

impl Seen {
    /// Why what was asked for is not there, if so. `first` is the first offset that is kept.
    fn missing(&self, arguments: &Arguments, first: i64) -> Option<String> {
        let (name, version) = (arguments.name(), self.version);
        let whose = if self.problems > 0 { " that can be read" } else { "" };
        match (&self.beyond, arguments.at_version, arguments.as_of) {
            (Some(next), _, Some(time)) if self.events == 0 => {
                let (time, begins) = (rfc3339_micros(time), rfc3339_micros(next.time));
                Some(format!("{name} has no event up to {time}: its first is of {begins}"))
            }
            (None, ..) if self.events == 0 => {
                let cut = if first > 0 { ", and older events are gone" } else { "" };
                Some(format!("there is no {name}: the log has no event of it{whose}{cut}"))
            }
            (Some(next), Some(wanted), _) => {
                let next = next.sequence;
                Some(format!("{name} has no version {wanted}{whose}: {next} comes after {version}"))
            }
            (None, Some(wanted), _) if version < wanted => {
                let since = self.since.unwrap_or(version);
                Some(format!("{name} has no version {wanted}{whose}: its versions are {since} to {version}"))
            }
            _ => None,
        }
    }

    fn summary(&self) -> String {
        let state = self.state.as_ref().map_or_else(|| "not known".to_owned(), fields);
        let events = counted(self.events, "event");
        let problems = match self.problems {
            0 => String::new(),
            problems => format!(", {}", counted(problems, "problem")),
        };
        format!("version {}: {events}{problems}  => {state}", self.version)
    }
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
