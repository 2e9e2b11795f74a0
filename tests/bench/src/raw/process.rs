//! The raw client as the benches see it: a process, and the topics that it writes.

use std::{fs, num::NonZero, path::PathBuf, thread};

use anyhow::{Context, Result};
use millrace_shared::kafka::bulk::Record;
use millrace_tests::{
    Deployment, Stack,
    process::{Process, binary, command},
};

use super::{Headers, Mode, Options, Pace, Sample};
use crate::kafka;

/// A raw client that runs.
pub struct RawClient {
    /// Its process.
    pub process: Process,
    /// Its consumer group.
    pub group: String,
    /// Where its events go.
    pub events: String,
    /// What it says.
    pub log: PathBuf,
}

impl RawClient {
    /// Starts one that reads a topic of a deployment and writes to topics of its own.
    pub fn start(deployment: &Deployment, name: &str, task: Task<'_>) -> Result<Self> {
        let stack = Stack::shared();
        let group = format!("{}.{name}", deployment.prefix);
        let options = Options {
            bootstrap: stack.kafka.clone(),
            commands: task.commands.to_owned(),
            events: format!("{group}.events"),
            outcomes: format!("{group}.outcomes"),
            partitions: deployment.partitions,
            writers: writers(),
            mode: task.mode,
            session_timeout_ms: task.session_timeout_ms,
            sample: task.sample.clone(),
            pace: task.pace,
            group: group.clone(),
        };
        kafka::create(&[options.events.as_str(), &options.outcomes], options.partitions)?;
        let file = stack.dir.join(format!("{group}.json"));
        fs::write(&file, serde_json::to_vec(&options)?).with_context(|| format!("writing {}", file.display()))?;
        let mut raw = command(binary("millrace-bench"));
        raw.arg("raw").arg(file);
        let log = stack.log(&group);
        Ok(Self { process: Process::start(&raw, &log), group, events: options.events, log })
    }
}

/// What a raw client is to do.
pub struct Task<'a> {
    /// Topic to read.
    pub commands: &'a str,
    /// With or without transactions.
    pub mode: Mode,
    /// Session time-out.
    pub session_timeout_ms: u64,
    /// How much to write.
    pub sample: &'a Sample,
    /// Commands that it produces itself.
    pub pace: Option<Pace>,
}

/// As many writers as the service has by default.
pub fn writers() -> usize {
    thread::available_parallelism().map_or(2, NonZero::get)
}

impl Sample {
    /// Of what the service wrote for the command that came last.
    pub fn of_last(deployment: &Deployment) -> Result<Self> {
        let partitions: Vec<i32> = (0..deployment.partitions).collect();
        let last = |suffix| -> Result<(Headers, Vec<u8>)> {
            let mut last = (-1, Vec::new(), Vec::new());
            let copy = |record: &Record<'_>| {
                let headers = record.headers();
                headers.map(|(name, value)| (name.to_owned(), value.unwrap_or_default().to_vec())).collect()
            };
            kafka::read(&deployment.topic(suffix), &partitions, |record| {
                let at = record.timestamp_ms().unwrap_or_default();
                if at >= last.0 {
                    last = (at, copy(record), record.value().unwrap_or_default().to_vec());
                }
            })?;
            Ok((last.1, last.2))
        };
        let (_, command) = last("commands")?;
        let ((event_headers, event), (outcome_headers, outcome)) = (last("events")?, last("outcomes")?);
        Ok(Self { command, event_headers, event, outcome_headers, outcome })
    }
}
