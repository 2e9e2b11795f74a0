//! The fill: the service's own workers, a partition at a time each, with batches so large that a view is written once
//! for many events. While Redis works on one partition's batch another filler folds that of its partition.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use millrace_shared::{
    kafka::{Logged, watcher, watermarks},
    views::{Keys, versions::State},
};
use rdkafka::consumer::BaseConsumer;
use serde_json::json;

use super::{Error, Rebuild, lock::Lock};
use crate::{
    crew::Hired,
    roster::Roster,
    store::{self, Meta, Store},
    worker::{self, Order},
};

/// What a byte read costs in memory until Redis has it: the record decoded, what is written, and that as Redis' client
/// sends it. Measured: 8 to 10 for deposits with a UUID as command id.
pub const MEMORY_PER_BYTE: usize = 12;
/// How often the fill is looked at.
const PAUSE: Duration = Duration::from_millis(100);
/// How often people are told.
const TELL: Duration = Duration::from_secs(2);

/// How to fill.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Partitions at once.
    pub fillers: u32,
    /// Records in a batch.
    pub batch_records: usize,
    /// Bytes of records in a batch.
    pub batch_bytes: usize,
}

struct Filler {
    roster: Roster,
    hired: Hired,
    partition: Option<usize>,
}

/// How far the log reached when we looked, from its beginning: by partition.
struct Log(Vec<(i64, i64)>);

impl Log {
    fn look(rebuild: &Rebuild, watcher: &BaseConsumer<Logged>) -> Result<Self, Error> {
        let topic = rebuild.topic();
        let ends = (0..rebuild.means.partitions).map(|partition| watermarks(watcher, &topic, partition));
        Ok(Self(ends.collect::<Result<_, _>>()?))
    }

    fn records(&self) -> i64 {
        self.0.iter().map(|(first, end)| end - first).sum()
    }

    fn read(&self, metas: &[Meta]) -> i64 {
        let read = |((first, _), meta): (&(i64, i64), &Meta)| meta.offset.map_or(0, |offset| (offset - first).max(0));
        self.0.iter().zip(metas).map(read).sum()
    }
}

impl Rebuild {
    /// A client that asks where the log ends.
    pub fn watcher(&self) -> Result<BaseConsumer<Logged>, Error> {
        Ok(watcher(&self.means.bootstrap, &self.means.instance)?)
    }

    /// Fills every partition of a version up to the log's end.
    pub fn fill(&self, version: u32, lock: &Lock) -> Result<(), Error> {
        let keys = self.keys(version);
        let mut store = self.means.store();
        let log = Log::look(self, &self.watcher()?)?;
        let mut metas = metas(&mut store, &keys)?;
        let mut waiting: Vec<usize> = (0..keys.len()).filter(|partition| !metas[*partition].live).collect();
        // The longest first, so that none is left alone at the end.
        waiting.sort_by_key(|partition| log.0[*partition].0 - log.0[*partition].1);
        let mut waiting = VecDeque::from(waiting);
        let mut fillers = Vec::new();
        for _ in 0..self.options.fillers.min(waiting.len() as u32) {
            fillers.push(self.filler(version)?);
        }
        let (begun, at_first) = (Instant::now(), log.read(&metas));
        let (mut told, mut looked) = (begun, begun);
        while metas.iter().any(|meta| !meta.live) {
            for filler in &mut fillers {
                if let Some(partition) = filler.partition.take_if(|partition| metas[*partition].live) {
                    filler.roster.pass_on(&self.topic(), &Order::Revoked(vec![partition as i32]));
                }
                if filler.partition.is_none() {
                    filler.partition = waiting.pop_front();
                    let partition = filler.partition.map(|partition| partition as i32);
                    filler.roster.pass_on(&self.topic(), &Order::Assigned(partition.into_iter().collect()));
                }
            }
            std::thread::sleep(PAUSE);
            if let Some(reason) = self.means.board.stopped() {
                return Err(Error::Refused(reason));
            }
            match store.metas(&keys.iter().collect::<Vec<_>>()) {
                Ok(read) => metas = read,
                Err(store::Error::Again(reason)) => tracing::debug!("{reason}"),
                Err(error) => return Err(error.into()),
            }
            if looked.elapsed() >= TELL {
                looked = Instant::now();
                match self.require(&mut store, version, State::Filling) {
                    Err(Error::Store(store::Error::Again(reason))) => tracing::debug!("{reason}"),
                    listed => listed?,
                }
            }
            let (read, records) = (log.read(&metas), log.records());
            let seconds = begun.elapsed().as_secs_f64();
            let rate = (read - at_first) as f64 / seconds;
            let left = (records - read).max(0) as f64 / rate.max(1.0);
            lock.renew(|| {
                json!({
                    "version": version, "state": "filling", "records_read": read, "records": records,
                    "records_per_second": rate.round(), "seconds_left": left.ceil(),
                })
            })?;
            if told.elapsed() >= TELL {
                told = Instant::now();
                let percent = 100.0 * read as f64 / records.max(1) as f64;
                eprintln!("{read:>12} of {records} records ({percent:.0} %), {rate:.0}/s, {left:.0} s left");
                for (place, reason) in self.means.board.problems() {
                    eprintln!("  {}/{}: {reason}", place.topic, place.partition);
                }
            }
        }
        // In order: what is under way is written before anybody else takes the partitions over.
        fillers.iter().for_each(|filler| filler.roster.close());
        if !fillers.into_iter().all(|filler| filler.hired.join()) {
            return Err(Error::Refused("a filler panicked; its last words are above".into()));
        }
        let (read, seconds) = (log.read(&metas) - at_first, begun.elapsed().as_secs_f64());
        eprintln!("{read} records in {seconds:.1} s, {:.0}/s", read as f64 / seconds);
        Ok(())
    }

    fn filler(&self, version: u32) -> Result<Filler, Error> {
        let roster = Roster::default();
        let means = crate::crew::Means { roster: roster.clone(), ..self.means.clone() };
        let options = worker::Options {
            batch_events: self.options.batch_records,
            batch_bytes: self.options.batch_bytes,
            patient: true,
            // Whoever has it by then leaves it to us: see `lock`.
            reclaim_after: Duration::from_secs(10),
        };
        Ok(Filler { hired: (self.kind.hire)(&means, version, options)?, roster, partition: None })
    }
}

/// What Redis knows of the partitions.
pub fn metas(store: &mut Store, keys: &[Keys]) -> Result<Vec<Meta>, Error> {
    Ok(store.metas(&keys.iter().collect::<Vec<_>>())?)
}
