//! `--diff`: what the snapshot topic and the local stores hold of the aggregate, held against what the log says.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use millrace_shared::{
    codec::{Codec, Foreign},
    domain::AggregateId,
    envelope::{EventMeta, rfc3339_micros},
    kafka::{
        Logged, REQUEST_TIMEOUT,
        source::{Progress, Source},
        topic_id, watermarks,
    },
    registry::Registry,
    snapshot::{CheckpointRecord, checkpoint_key},
};
use rdkafka::consumer::BaseConsumer;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{
    CLIENT_ID, Error,
    fold::Fold,
    print::{Printer, fields},
};
use crate::{
    partition::{
        Stored,
        kept::{Kept, Unused},
    },
    store::{StatesOf, glance::glance},
};

/// A place that keeps states.
pub struct Holder {
    /// `snapshot` or `store`.
    kind: &'static str,
    place: String,
    /// Every event below this offset is in what it keeps.
    covers: Option<i64>,
    kept: Option<Kept<Value>>,
    /// Why it is not used by the service, or can't be read.
    unused: Option<String>,
    /// The version that it must have, by what it covers.
    least: u64,
    /// Time and state of its version, by the log.
    log: Option<(Timestamp, Option<Value>)>,
}

/// Where to look, and how to read it.
pub struct Places<'a> {
    /// Brokers.
    pub bootstrap: &'a str,
    /// Asks them.
    pub watcher: &'a BaseConsumer<Logged>,
    /// Topic of events.
    pub events: &'a str,
    /// Topic of snapshots.
    pub snapshots: &'a str,
    /// Aggregate type.
    pub aggregate_type: &'a str,
    /// The aggregate's partition, of how many.
    pub partition: (i32, i32),
    /// Below it lie the stores of all instances of this machine: `<instance>/<type>/<partition>.redb`.
    pub stores: PathBuf,
    /// For the checkpoints of snapshots.
    pub registry: &'a Registry,
    /// For asking the registry.
    pub runtime: &'a Handle,
}

impl Holder {
    fn new(kind: &'static str, place: String) -> Self {
        Self { kind, place, covers: None, kept: None, unused: None, least: 0, log: None }
    }

    /// An event of the aggregate, and the state after it by the log.
    pub fn compare(&mut self, offset: i64, meta: &EventMeta, state: Option<&Value>) {
        if self.covers.is_some_and(|covers| offset < covers) {
            self.least = meta.sequence;
        }
        if self.kept.as_ref().is_some_and(|kept| kept.version == meta.sequence) {
            self.log = Some((meta.time, state.cloned()));
        }
    }

    /// What is wrong with it. To be asked when the log was read to its end.
    fn difference(&self) -> Option<String> {
        let version = self.kept.as_ref().map_or(0, |kept| kept.version);
        if version < self.least {
            return Some(format!("it is of version {version}, but covers the log up to version {}", self.least));
        }
        let kept = self.kept.as_ref()?;
        match &self.log {
            None => Some(format!("it is of version {version}, which is not in the log")),
            Some((_, None)) => Some("what the log says is not known".to_owned()),
            Some((_, Some(state))) if *state != kept.state => Some(format!("the log says {}", fields(state))),
            Some((time, _)) if *time != kept.last_time => Some(format!("the log's time is {}", rfc3339_micros(*time))),
            Some(_) => None,
        }
    }

    /// Prints what it is; returns whether it differs from the log.
    pub fn print(&self, printer: &Printer<'_>) -> io::Result<bool> {
        let Self { kind, place, kept, unused, .. } = self;
        let difference = if unused.is_some() { None } else { self.difference() };
        if printer.json {
            printer.object(&json!({
                "compared": kind,
                "place": place,
                "version": kept.as_ref().map(|kept| kept.version),
                "time": kept.as_ref().map(|kept| rfc3339_micros(kept.last_time)),
                "state": kept.as_ref().map(|kept| &kept.state),
                "unused": unused,
                "difference": difference,
            }))?;
            return Ok(difference.is_some());
        }
        let what = match (unused, kept, &difference) {
            (Some(reason), ..) => format!("is not used: {reason}"),
            (None, None, None) => "has nothing of it yet".to_owned(),
            (None, Some(kept), None) => format!("version {}: agrees", kept.version),
            (None, None, Some(difference)) => format!("DIFFERS: {difference}"),
            (None, Some(kept), Some(difference)) => {
                format!("version {}: DIFFERS: {}; {difference}", kept.version, fields(&kept.state))
            }
        };
        printer.remark(&format!("{kind} {place}: {what}"))?;
        Ok(difference.is_some())
    }
}

impl Places<'_> {
    /// Reads what is kept of an aggregate. To be called before the log's end is asked for: so the log has all of it.
    pub fn find(&self, id: &AggregateId, fold: &dyn Fold) -> Result<Vec<Holder>, Error> {
        let topic_id = topic_id(self.watcher, self.events, REQUEST_TIMEOUT)?;
        let mut holders = vec![self.snapshot(id, fold, &topic_id)?];
        let (partition, partitions) = self.partition;
        let states = StatesOf {
            aggregate_type: self.aggregate_type.to_owned(),
            partition,
            partitions,
            events_topic_id: topic_id,
            state_version: fold.state_version(),
        };
        // None is there where the service keeps all in memory, or never ran.
        let instances = fs::read_dir(&self.stores).into_iter().flatten().filter_map(Result::ok);
        let mut paths: Vec<_> = instances
            .map(|instance| instance.path().join(self.aggregate_type).join(format!("{partition}.redb")))
            .collect();
        paths.sort();
        holders.extend(paths.iter().filter_map(|path| stored(path, id, fold, &states)));
        Ok(holders)
    }

    fn snapshot(&self, id: &AggregateId, fold: &dyn Fold, topic_id: &str) -> Result<Holder, Error> {
        let (topic, partition) = (self.snapshots, self.partition.0);
        let checkpoints = Codec::<CheckpointRecord>::reading(self.registry.clone())
            .map_err(|error| Error::Registry(error.to_string()))?;
        let mut holder = Holder::new("snapshot", format!("{topic}/{partition}"));
        let (first, end) = watermarks(self.watcher, topic, partition)?;
        let progress = Progress::new((end - first).unsigned_abs());
        let mut source = Source::new(self.bootstrap, CLIENT_ID, &[topic], &progress)?;
        let checkpoint = checkpoint_key(partition);
        // The last record of a key counts.
        let read = source.read(topic, partition, (first, end), |record| {
            if record.key() == Some(checkpoint.as_bytes()) {
                let value = record.value().unwrap_or_default();
                holder.covers = match checkpoints.decode(value, Foreign::Refuse, self.runtime) {
                    Ok(CheckpointRecord::Checkpoint(checkpoint)) if checkpoint.events_topic_id == topic_id => {
                        Some(checkpoint.offset)
                    }
                    _ => None,
                };
            } else if record.key() == Some(id.as_str().as_bytes()) {
                holder.place = format!("{topic}/{partition}/{}", record.offset());
                (holder.kept, holder.unused) = match fold.snapshot(&Stored::from(record), topic_id, self.runtime) {
                    Ok(kept) => (Some(kept), None),
                    Err(Unused::OtherTopic) => (None, Some("it is of an event topic that was deleted".to_owned())),
                    Err(Unused::Unreadable(reason)) => (None, Some(reason)),
                    Err(Unused::Unavailable(reason)) => return Err(Error::Registry(reason)),
                };
            }
            Ok(())
        });
        progress.finish();
        read?;
        Ok(holder)
    }
}

fn stored(path: &Path, id: &AggregateId, fold: &dyn Fold, states: &StatesOf) -> Option<Holder> {
    let mut holder = Holder::new("store", path.display().to_string());
    match glance(path, id.as_str()) {
        Ok(None) => return None,
        Err(error) => holder.unused = Some(error.to_string()),
        Ok(Some(found)) => {
            holder.unused = states.differs_from(&found.identity);
            holder.covers = found.checkpoint.map(|checkpoint| checkpoint.events_offset);
            if holder.covers.is_some_and(|covers| covers < 0) {
                holder.unused = Some("a restore has not filled it yet".to_owned());
            }
            if holder.unused.is_none()
                && let Some(bytes) = found.state
            {
                holder.kept = fold.stored(&bytes);
                if holder.kept.is_none() {
                    holder.unused = Some("what it holds of the aggregate can't be read".to_owned());
                }
            }
        }
    }
    Some(holder)
}
