//! The raw limit of a projector: a client that reads the same events and sends as many bytes by the same script, one
//! call for what lies in a partition, and knows nothing of schemas, views or sequences.
//!
//! Its views and history entries are copies of one that projector-service wrote. One thread reads in bulk, as many as
//! there are cores write, each with a connection and a share of the partitions, so that Redis never waits for it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use millrace_shared::{
    kafka::{
        bulk::{BulkReader, Item},
        reader_config,
    },
    views::{Keys, script},
};
use redis::{Connection, Script};
use serde::{Deserialize, Serialize};

use super::POLL_WAIT;

/// Batches with a writer before the reader waits.
const QUEUE: usize = 16;

/// What it is told, by a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Kafka.
    pub bootstrap: String,
    /// Topic to read, from its beginning.
    pub topic: String,
    /// Its partitions.
    pub partitions: i32,
    /// Redis.
    pub redis: String,
    /// Keys begin with it.
    pub redis_prefix: String,
    /// Writers.
    pub writers: usize,
    /// Events in one call at most.
    pub batch_events: usize,
    /// What projector-service wrote.
    pub sample: ViewSample,
}

/// What projector-service wrote for a deposit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ViewSample {
    /// A view.
    pub view: Vec<u8>,
    /// A history entry.
    pub entry: Vec<u8>,
    /// An entry of the change feed: names and values.
    pub change: Vec<(String, String)>,
    /// The counters that a deposit moves, with values.
    pub counters: Vec<(String, String)>,
    /// Changes kept per partition.
    pub changes_window: u32,
}

/// The keys of a partition of the raw client.
pub fn keys(redis_prefix: &str, partition: i32) -> Keys {
    Keys::projection(redis_prefix, "bank-accounts", 0, partition)
}

/// Keys of events in order, and the offset behind them.
struct Batch {
    partition: i32,
    events: Vec<(i64, String)>,
}

/// Runs until killed.
pub fn run(file: &Path) -> Result<()> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let options: Options = serde_json::from_slice(&text).context("reading the options")?;
    let writers = (0..options.writers).map(|_| start(&options)).collect::<Result<Vec<_>>>()?;
    let mut reader = BulkReader::new(&reader_config(&options.bootstrap, "raw-views"))?;
    for partition in 0..options.partitions {
        reader.add(&[(&options.topic, partition, 0)])?;
    }
    let mut batches: Vec<Vec<(i64, String)>> = (0..options.partitions).map(|_| Vec::new()).collect();
    loop {
        let mut failed = None;
        reader.read(POLL_WAIT, |item| match item {
            Item::Record(record) => {
                let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
                batches[record.partition().unsigned_abs() as usize].push((record.offset(), key));
            }
            Item::End { .. } => {}
            Item::Failed { error, .. } => failed = Some(error),
        })?;
        if let Some(error) = failed {
            bail!("events can't be read: {error}");
        }
        for (partition, read) in (0..).zip(&mut batches) {
            let mut events = std::mem::take(read);
            while !events.is_empty() {
                let rest = events.split_off(events.len().min(options.batch_events));
                let writer = &writers[(partition % options.writers as i32) as usize];
                // A writer that has ended has said why, and ended the process.
                if writer.send(Batch { partition, events }).is_err() {
                    return Ok(());
                }
                events = rest;
            }
        }
    }
}

fn start(options: &Options) -> Result<SyncSender<Batch>> {
    let connection = redis::Client::open(options.redis.as_str())?.get_connection()?;
    let (sender, inbox) = sync_channel(QUEUE);
    let options = options.clone();
    thread::Builder::new().name("raw-views".into()).spawn(move || {
        if let Err(error) = write(&options, &inbox, connection) {
            eprintln!("raw writer: {error:#}");
        }
        process::exit(1);
    })?;
    Ok(sender)
}

fn write(options: &Options, inbox: &Receiver<Batch>, redis: Connection) -> Result<()> {
    let mut writer = Writer::new(redis, &options.redis_prefix, options.sample.clone())?;
    inbox.iter().try_for_each(|Batch { partition, events }| writer.apply(partition, &events))
}

/// Sends events by the script.
pub struct Writer {
    redis: Connection,
    redis_prefix: String,
    sample: ViewSample,
    script: Script,
    checkpoints: BTreeMap<i32, i64>,
}

impl Writer {
    /// To keys that begin with a prefix.
    pub fn new(mut redis: Connection, redis_prefix: &str, sample: ViewSample) -> Result<Self> {
        let script = script::apply();
        script.prepare_invoke().load(&mut redis)?;
        Ok(Self { redis, redis_prefix: redis_prefix.to_owned(), sample, script, checkpoints: BTreeMap::new() })
    }

    /// One call: offsets and keys of events in order.
    pub fn apply(&mut self, partition: i32, events: &[(i64, String)]) -> Result<()> {
        let keys = keys(&self.redis_prefix, partition);
        let expected = self.checkpoints.get(&partition).map(ToString::to_string);
        if expected.is_none() {
            redis::cmd("HSET").arg(keys.meta()).arg("epoch").arg(1).query::<()>(&mut self.redis)?;
        }
        let next = events.last().map_or(0, |(offset, _)| offset + 1);
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.script.get_hash())
            .arg(1)
            .arg(keys.meta())
            .arg(1)
            .arg("raw")
            .arg(expected.unwrap_or_default())
            .arg(next);
        commands(&mut call, &keys, &self.sample, events);
        let written: i64 = call.query(&mut self.redis)?;
        ensure!(written == 1, "the batch was refused: {written}");
        self.checkpoints.insert(partition, next);
        Ok(())
    }
}

/// The words of the commands that projector-service sends for as many deposits.
fn commands(call: &mut redis::Cmd, keys: &Keys, sample: &ViewSample, events: &[(i64, String)]) {
    let mut of: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, id) in events {
        *of.entry(id).or_default() += 1;
    }
    call.arg(1 + 2 * of.len()).arg("MSET");
    for id in of.keys() {
        call.arg(keys.view(id)).arg(sample.view.as_slice());
    }
    for (at, (field, descending)) in
        [("balance_minor", false), ("balance_minor", true), ("updated_at", false), ("updated_at", true)]
            .iter()
            .enumerate()
    {
        call.arg(2 + 2 * of.len()).arg("ZADD").arg(keys.sort(field, *descending));
        for ((offset, _), id) in events.iter().zip(of.keys()) {
            call.arg(1_700_000_000_000_000 + offset * 4 + at as i64).arg(*id);
        }
    }
    call.arg(2 + 2 * sample.counters.len()).arg("HSET").arg(keys.counters());
    for (name, value) in &sample.counters {
        call.arg(name).arg(value);
    }
    for (offset, _) in events {
        call.arg(6 + 2 * sample.change.len()).arg("XADD").arg(keys.changes()).arg("MAXLEN").arg("~");
        call.arg(sample.changes_window).arg(format!("{offset}-1"));
        for (name, value) in &sample.change {
            call.arg(name).arg(value);
        }
    }
    for (id, count) in of {
        call.arg(2 + count).arg("RPUSH").arg(keys.history(id));
        for _ in 0..count {
            call.arg(sample.entry.as_slice());
        }
    }
}
