//! The raw way of a command at a steady rate: produce → consume → transactional write → commit, in one process.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, ThreadedProducer},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Options, client, produce::flush, writer::Failures};
use crate::arrivals::{self, LEAD_IN};

const LIMIT: Duration = Duration::from_secs(60);

/// Commands that the raw client produces itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pace {
    /// Commands per second.
    pub per_second: f64,
    /// For how long they are counted.
    pub counted: Duration,
    /// Of the arrivals.
    pub seed: u64,
    /// Where the latencies go, in milliseconds, sorted.
    pub out: PathBuf,
}

/// From when each command was meant to be sent until its commit.
pub struct Latencies {
    schedule: Vec<Duration>,
    begin: OnceLock<Instant>,
    millis: Mutex<Vec<f64>>,
}

impl Latencies {
    /// Notes that commands are committed, by their ids.
    pub fn committed(&self, ids: impl Iterator<Item = Uuid>) {
        let (Some(begin), now) = (self.begin.get(), Instant::now()) else { return };
        let due = ids.filter_map(|id| self.schedule.get(usize::try_from(id.as_u128()).ok()?));
        let counted = due.filter(|due| **due >= LEAD_IN);
        let millis = counted.map(|due| now.saturating_duration_since(*begin + *due).as_secs_f64() * 1e3);
        self.millis.lock().unwrap_or_else(PoisonError::into_inner).extend(millis);
    }
}

/// Produces at the rate on a thread of its own; writes the latencies down when all is committed, and ends the process.
pub fn start(options: &Options, assigned: impl Fn() -> bool + Send + 'static) -> Result<Option<Arc<Latencies>>> {
    let Some(Pace { per_second, counted, seed, out }) = options.pace.clone() else { return Ok(None) };
    let schedule = arrivals::schedule(per_second, counted, seed);
    let latencies = Arc::new(Latencies { schedule, begin: OnceLock::new(), millis: Mutex::default() });
    let (options, told) = (options.clone(), latencies.clone());
    thread::Builder::new().name("raw-producer".into()).spawn(move || {
        let result = produce(&options, &told, assigned).and_then(|()| finish(&told, &out));
        if let Err(error) = &result {
            eprintln!("raw producer: {error:#}");
        }
        process::exit(i32::from(result.is_err()));
    })?;
    Ok(Some(latencies))
}

fn produce(options: &Options, latencies: &Latencies, assigned: impl Fn() -> bool) -> Result<()> {
    let producer: ThreadedProducer<Failures> = client(options)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .create_with_context(Failures)?;
    let deadline = Instant::now() + LIMIT;
    while !assigned() {
        ensure!(Instant::now() < deadline, "the group assigns nothing");
        thread::sleep(Duration::from_millis(10));
    }
    let begin = *latencies.begin.get_or_init(Instant::now);
    let mut failed = None;
    arrivals::run(begin, &latencies.schedule, |number| {
        let id = Uuid::from_u128(number as u128).to_string();
        let key = format!("acc-{number:012}");
        let partition = number as i32 % options.partitions;
        let headers = OwnedHeaders::new_with_capacity(1).insert(Header { key: "ce_id", value: Some(&id) });
        let record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&options.commands)
            .partition(partition)
            .key(key.as_str())
            .payload(options.sample.command.as_slice())
            .headers(headers);
        if let Err((error, _)) = producer.send(record) {
            failed = Some(error);
        }
    });
    failed.map_or(Ok(()), |error| Err(error).context("a command can't be produced"))?;
    // What a producer still has when it goes is not written.
    flush(&producer)
}

fn finish(latencies: &Latencies, out: &Path) -> Result<()> {
    let counted = latencies.schedule.iter().filter(|due| **due >= LEAD_IN).count();
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut millis = latencies.millis.lock().unwrap_or_else(PoisonError::into_inner);
        if millis.len() == counted {
            millis.sort_by(f64::total_cmp);
            return fs::write(out, serde_json::to_vec(&*millis)?).with_context(|| format!("writing {}", out.display()));
        }
        ensure!(Instant::now() < deadline, "{} of {counted} commands are committed", millis.len());
        drop(millis);
        thread::sleep(Duration::from_millis(10));
    }
}
