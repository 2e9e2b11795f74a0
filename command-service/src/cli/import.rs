//! `command-service import FILE`: sends the commands of a file to their topics and waits for their outcomes.
//!
//! Run twice it has no second effect: a line without `command_id` gets one from what the file holds up to and
//! including it, so the same file gives the same ids, also after lines were added to its end, and another file others.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millrace_shared::{
    codec::{Codec, Foreign},
    config::{self, HashSettings, KafkaSettings, LogSettings, RegistrySettings},
    domain::Domains,
    envelope::{CommandHeaders, names},
    fingerprint::Fingerprint,
    kafka::{
        Logged,
        bulk::{BulkReader, Item, Record},
        client_config, partition_of, reader_config,
        topics::{self, Names, Topic},
        watcher, watermarks,
    },
    outcome::{OutcomeRecord, Verdict},
    registry::Registry,
    serve::blocking,
    telemetry,
};
use rdkafka::{
    error::KafkaError,
    producer::{BaseRecord, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::line::{Line, MAX_LINE_BYTES};
use crate::types::{CommandType, Secrets, build_all};

/// Commands whose outcome is awaited, at most.
const MAX_PENDING: usize = 20_000;
/// No outcome for so long: nobody decides.
const STALL: Duration = Duration::from_secs(60);
const SAY_INTERVAL: Duration = Duration::from_secs(2);

/// Flags of `import`.
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 every line was decided (accepted or rejected); 1 there are bad lines or commands \
    without outcome, or Kafka or the registry can't be used; 2 the file or a setting is wrong."
)]
pub struct Arguments {
    /// Newline-delimited JSON: {"aggregate": "bank-account", "id": …, "command": "deposit", "command_id": …, "time": …,
    /// "data": {…}}; `command_id` and `time` may be left out
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Stop at the first bad line; the lines before it are imported
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    hash: HashSettings,
    #[command(flatten)]
    log: LogSettings,
}

/// Runs it. Exit status 0: every line was decided; 1: bad lines, or commands without outcome; 2: wrong settings.
pub async fn run<D: Domains>(arguments: Arguments) -> ExitCode {
    let registry = match arguments.registry.url() {
        Ok(url) => Registry::new(&url),
        Err(error) => config::exit_with(&error),
    };
    if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..arguments.log.clone() }) {
        config::exit_with(&error);
    }
    let file = match File::open(&arguments.file) {
        Ok(file) => file,
        Err(error) => config::exit_with(&format!("{} can't be read: {error}", arguments.file.display())),
    };
    let names = Names::new(&arguments.kafka.topic_prefix);
    let hash = arguments.hash.secret::<D>().unwrap_or_else(|error| config::exit_with(&error));
    let secrets = Secrets { hash, masters: None };
    let types = match registry {
        Ok(registry) => build_all::<D>(&registry, &names, &secrets).await.map(|types| (registry, types)),
        Err(error) => Err(error),
    };
    let (registry, types) = match types {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = Handle::current();
    let imported = blocking(move || Import::new(arguments, names, types.into(), registry, runtime, file)?.run()).await;
    match imported {
        Ok(summary) => {
            print!("{summary}");
            if summary.bad == 0 && summary.undecided == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
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
    Topics(#[from] topics::Error),
    #[error("{0}")]
    Registry(#[from] millrace_shared::registry::Error),
    #[error("the file can't be read: {0}")]
    Io(#[from] io::Error),
    #[error(
        "{0} commands have no outcome and none comes; is command-service running? Run the import again, it has no double effect"
    )]
    Stalled(usize),
}

/// What became of the lines.
#[derive(Default)]
struct Summary {
    lines: u64,
    sent: u64,
    accepted: u64,
    repeated: u64,
    rejected: BTreeMap<String, u64>,
    bad: u64,
    undecided: u64,
    stopped: bool,
    seconds: f64,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rejected: u64 = self.rejected.values().sum();
        writeln!(
            f,
            "lines     {:>9}  in {:.1} s{}",
            self.lines,
            self.seconds,
            if self.stopped { ", stopped at a bad line" } else { "" }
        )?;
        writeln!(f, "accepted  {:>9}", self.accepted)?;
        writeln!(f, "rejected  {rejected:>9}")?;
        for (reason, count) in &self.rejected {
            writeln!(f, "  {count:>7}  {reason}")?;
        }
        writeln!(f, "repeated  {:>9}  (decided in an earlier run; no new effect)", self.repeated)?;
        writeln!(f, "bad lines {:>9}", self.bad)?;
        if self.undecided > 0 {
            writeln!(
                f,
                "undecided {:>9}  (no outcome yet; is command-service running? Run the import again)",
                self.undecided
            )?;
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Pending {
    kind: usize,
    aggregate_id: String,
    command_id: String,
    fingerprint: Fingerprint,
}

struct Import {
    arguments: Arguments,
    types: Arc<[Arc<dyn CommandType>]>,
    outcomes: Codec<OutcomeRecord>,
    runtime: Handle,
    producer: ThreadedProducer<Logged>,
    reader: BulkReader,
    file: BufReader<File>,
    bar: ProgressBar,
    said: Instant,
    /// Commands without outcome, and how often each was sent.
    pending: HashMap<Pending, u32>,
    decided_at: Instant,
    summary: Summary,
}

impl Import {
    fn new(
        arguments: Arguments,
        names: Names,
        types: Arc<[Arc<dyn CommandType>]>,
        registry: Registry,
        runtime: Handle,
        file: File,
    ) -> Result<Self, Error> {
        let bootstrap = &arguments.kafka.kafka_bootstrap;
        let partitions = arguments.kafka.partitions;
        let type_names: Vec<&str> = types.iter().map(|kind| kind.info().aggregate_type).collect();
        topics::check(bootstrap, &names, &type_names, partitions, |_| topics::Said::Configured)?;
        let watcher = watcher(bootstrap, "millrace-import")?;
        let reader = BulkReader::new(&reader_config(bootstrap, "millrace-import"))?;
        for kind in types.iter() {
            for partition in 0..partitions {
                let (_, end) = watermarks(&watcher, kind.topic(Topic::Outcomes), partition)?;
                reader.add(&[(kind.topic(Topic::Outcomes), partition, end)])?;
            }
        }
        let producer = client_config(bootstrap, "millrace-import")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .create_with_context(Logged)?;
        let bar = ProgressBar::new(file.metadata()?.len());
        let style = ProgressStyle::with_template("{bar:30} {percent}% {msg}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        Ok(Self {
            types,
            outcomes: Codec::reading(registry)?,
            runtime,
            producer,
            reader,
            file: BufReader::new(file),
            bar,
            said: Instant::now(),
            pending: HashMap::new(),
            decided_at: Instant::now(),
            summary: Summary::default(),
            arguments,
        })
    }

    fn run(mut self) -> Result<Summary, Error> {
        let started = Instant::now();
        let mut content = Sha256::new();
        let mut line = Vec::new();
        while !self.summary.stopped {
            line.clear();
            if self.read_line(&mut line)? == 0 {
                break;
            }
            content.update(&line);
            self.summary.lines += 1;
            let trimmed = line.trim_ascii();
            if !trimmed.is_empty() {
                match Line::read(trimmed, &self.types) {
                    Ok(command) => self.send(command, &content)?,
                    Err(reason) => self.bad(&reason),
                }
            }
            self.bar.inc(line.len() as u64);
            if self.summary.lines.is_multiple_of(256) {
                self.collect(Duration::ZERO)?;
            }
        }
        while !self.pending.is_empty() && self.decided_at.elapsed() < STALL {
            self.collect(Duration::from_millis(100))?;
        }
        self.summary.undecided = self.pending.values().map(|count| u64::from(*count)).sum();
        self.summary.seconds = started.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        Ok(self.summary)
    }

    /// Reads up to the next line feed, but never more than a line may have (and one byte, so that it shows).
    fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<usize> {
        let mut read = io::Read::take(&mut self.file, MAX_LINE_BYTES as u64 + 1).read_until(b'\n', line)?;
        if read > MAX_LINE_BYTES && line.last() != Some(&b'\n') {
            // The rest of a line that is too long is passed over.
            loop {
                let buffer = self.file.fill_buf()?;
                if buffer.is_empty() {
                    break;
                }
                let end = buffer.iter().position(|byte| *byte == b'\n');
                let count = end.map_or(buffer.len(), |at| at + 1);
                self.file.consume(count);
                read += count;
                if end.is_some() {
                    break;
                }
            }
        }
        Ok(read)
    }

    fn bad(&mut self, reason: &str) {
        self.summary.bad += 1;
        self.summary.stopped = self.arguments.strict;
        let message = format!("line {}: {reason}", self.summary.lines);
        self.bar.suspend(|| eprintln!("{message}"));
    }

    fn send(&mut self, line: Line, content: &Sha256) -> Result<(), Error> {
        while self.pending.len() >= MAX_PENDING {
            if self.decided_at.elapsed() > STALL {
                return Err(Error::Stalled(self.pending.len()));
            }
            self.collect(Duration::from_millis(20))?;
        }
        let command_id = line.command_id.unwrap_or_else(|| {
            let digest = content.clone().finalize();
            let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            format!("import/{hex}/{}", self.summary.lines)
        });
        let headers = CommandHeaders { id: Some(command_id.clone()), ..CommandHeaders::default() }.write();
        let key = line.aggregate_id.as_str();
        let types = self.types.clone();
        let mut record = BaseRecord::to(types[line.kind].topic(Topic::Commands))
            .partition(partition_of(key.as_bytes(), self.arguments.kafka.partitions))
            .key(key)
            .payload(line.encoded.value.as_deref().unwrap_or_default())
            .headers(headers);
        if let Some(millis) = line.timestamp_ms {
            record = record.timestamp(millis);
        }
        while let Err((error, again)) = self.producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            record = again;
            self.collect(Duration::from_millis(5))?;
        }
        if self.pending.is_empty() {
            self.decided_at = Instant::now();
        }
        self.summary.sent += 1;
        let pending = Pending {
            kind: line.kind,
            aggregate_id: key.to_owned(),
            command_id,
            fingerprint: line.encoded.fingerprint,
        };
        *self.pending.entry(pending).or_default() += 1;
        Ok(())
    }

    /// Takes what outcomes there are.
    fn collect(&mut self, wait: Duration) -> Result<(), Error> {
        let Self { reader, types, outcomes, runtime, pending, summary, decided_at, .. } = self;
        reader.read(wait, |item| {
            let Item::Record(record) = item else { return };
            let Some((found, verdict, reason)) = outcome(&record, types, outcomes, runtime) else { return };
            let Some(count) = pending.get_mut(&found) else { return };
            *count -= 1;
            if *count == 0 {
                pending.remove(&found);
            }
            *decided_at = Instant::now();
            match verdict {
                None => summary.repeated += 1,
                Some(Verdict::Accepted) => summary.accepted += 1,
                Some(Verdict::Rejected) => *summary.rejected.entry(reason).or_default() += 1,
            }
        })?;
        self.say();
        Ok(())
    }

    fn say(&mut self) {
        let summary = &self.summary;
        let decided = summary.sent - self.pending.len() as u64;
        let rate = decided as f64 / self.bar.elapsed().as_secs_f64().max(0.001);
        let rejected: Vec<String> =
            summary.rejected.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let message = format!(
            "{} lines, {rate:.0}/s, {} accepted, {} repeated, rejected: {}",
            summary.lines,
            summary.accepted,
            summary.repeated,
            if rejected.is_empty() { "none".to_owned() } else { rejected.join(", ") }
        );
        if !io::stderr().is_terminal() && self.said.elapsed() > SAY_INTERVAL {
            self.said = Instant::now();
            let done = self.bar.position() as f64 / self.bar.length().unwrap_or(1).max(1) as f64;
            eprintln!("{:.0} % {message}, {} s left", done * 100.0, self.bar.eta().as_secs());
        }
        self.bar.set_message(message);
    }
}

/// Whom an outcome record answers and how; no verdict for a repeat.
fn outcome(
    record: &Record<'_>,
    types: &[Arc<dyn CommandType>],
    codec: &Codec<OutcomeRecord>,
    runtime: &Handle,
) -> Option<(Pending, Option<Verdict>, String)> {
    let kind = types.iter().position(|kind| kind.topic(Topic::Outcomes) == record.topic())?;
    let OutcomeRecord::Outcome(outcome) = codec.decode(record.value()?, Foreign::Refuse, runtime).ok()?;
    if outcome.is_pending() {
        return None;
    }
    let replayed = record.headers().any(|(name, _)| name == names::REPLAYED);
    let pending = Pending {
        kind,
        aggregate_id: outcome.aggregate_id,
        command_id: outcome.command_id,
        fingerprint: outcome.fingerprint.try_into().ok()?,
    };
    Some((pending, (!replayed).then_some(outcome.outcome), outcome.reason.unwrap_or_default()))
}
