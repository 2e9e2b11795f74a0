//! The same for a projection by another key than the aggregate: of each partition all that it has is taken in one
//! transaction of Redis, together with the checkpoint, and the log folded up to exactly there must give the same. What a
//! partition has of its aggregates there is small, so it is held in memory as a whole, one partition at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Grouping},
    kafka::{
        REQUEST_TIMEOUT,
        source::{Progress, Source},
        topic_id,
        topics::{self, Names},
        watcher, watermarks,
    },
    views::{Keys, Parked, meta},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    CLIENT_ID, Error, Summary, Tell, Verify,
    compare::Differences,
    found::ask,
    made::{Log, Made},
};
use crate::{
    groups::{Groups, Loaded, Memory, fold},
    store::Store,
    target::{self, At, Target},
};

/// Events that are folded at a time.
const BATCH: usize = 10_000;

/// Hashes by key, as the projection writes them.
type Hashes = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;
/// A hash as it is in Redis.
type Hash = BTreeMap<String, String>;

struct Captured {
    offset: Option<i64>,
    topic_id: Option<String>,
    state: Option<String>,
    fold: Option<u32>,
    members: Hash,
    parts: Hash,
    parked: BTreeMap<String, Parked>,
}

impl Verify {
    /// Verifies it.
    pub(super) fn run_on_groups<G: Grouping>(&self, tell: Tell<'_>) -> Result<Summary, Error> {
        topics::check(&self.bootstrap, &self.names, &[G::Aggregate::TYPE], self.partitions, |_| {
            topics::Said::Configured
        })?;
        let codec = Arc::new(Codec::reading(self.registry.clone())?);
        let mut store = Store::new(self.redis.clone(), self.redis_timeout);
        let version = match self.version {
            Some(version) => version,
            None => store.versions(self.names.redis_prefix(), G::NAME)?.active,
        };
        let names: &Names = &self.names;
        let groups = Groups::<G>::new(codec, self.runtime.clone(), names, version, self.partitions, usize::MAX);
        let watcher = watcher(&self.bootstrap, CLIENT_ID)?;
        let topic_id = topic_id(&watcher, groups.topic(), REQUEST_TIMEOUT)?;
        let ends = (0..self.partitions).map(|partition| watermarks(&watcher, groups.topic(), partition));
        let ends = ends.collect::<Result<Vec<_>, _>>()?;
        let progress = Progress::new(ends.iter().map(|(first, end)| (end - first).unsigned_abs()).sum());
        let mut source = Source::new(&self.bootstrap, CLIENT_ID, &[groups.topic()], &progress)?;
        let mut summary = Summary { label: groups.label().to_owned(), ..Summary::default() };
        for partition in 0..self.partitions {
            let keys = groups.keys(partition);
            let captured = capture(&mut store, &keys)?;
            let (first, end) = source.watermarks(groups.topic(), partition)?;
            let made = Made {
                partition,
                offset: captured.offset,
                topic_id: captured.topic_id.as_deref(),
                state: captured.state.as_deref(),
                fold: captured.fold,
            };
            let log = Log { topic: groups.topic(), topic_id: &topic_id, first, end };
            let offset = made.check(&keys, &log, G::VERSION, &progress)?;
            let mut folded = Folded { keys: &keys, hashes: Hashes::new(), memory: Memory::default() };
            let mut items = Vec::new();
            source.read(groups.topic(), partition, (first, offset), |record| {
                let mut item = groups.read(record).map_err(|unreadable| Error::Schema(unreadable.0))?;
                // Whatever could be done with it by now: it waits in Redis.
                if let Some(parked) = captured.parked.get(&item.id).filter(|parked| record.offset() >= parked.offset) {
                    item.content = Err(parked.reason.clone());
                }
                items.push(At { offset: record.offset(), item });
                summary.events += 1;
                if items.len() >= BATCH { folded.take::<G>(std::mem::take(&mut items)) } else { Ok(()) }
            })?;
            folded.take::<G>(items)?;
            summary.aggregates += folded.hashes.get(keys.members().as_bytes()).map_or(0, BTreeMap::len) as u64;
            summary.parked += captured.parked.len() as u64;
            for difference in folded.compare(partition, &captured) {
                *summary.found.entry(difference.kind).or_default() += 1;
                progress.suspend(|| tell(&difference));
            }
        }
        progress.finish();
        Ok(summary)
    }
}

fn capture(store: &mut Store, keys: &Keys) -> Result<Captured, Error> {
    let mut pipe = redis::pipe();
    let of = [meta::OFFSET, meta::TOPIC_ID, meta::STATE, meta::FOLD];
    pipe.atomic().cmd("HMGET").arg(keys.meta()).arg(&of);
    for key in [keys.members(), keys.parts(), keys.parked()] {
        pipe.cmd("HGETALL").arg(key);
    }
    type Meta = (Option<i64>, Option<String>, Option<String>, Option<u32>);
    let ((offset, topic_id, state, fold), members, parts, parked): (Meta, Hash, Hash, Hash) =
        ask(store, |redis| pipe.query(redis))?;
    let damaged = |error| Error::Damaged(format!("{}: {error}", keys.parked()));
    let parked = parked.into_iter().map(|(id, json)| Ok((id, serde_json::from_str(&json).map_err(damaged)?)));
    Ok(Captured { offset, topic_id, state, fold, members, parts, parked: parked.collect::<Result<_, Error>>()? })
}

/// What the log makes of a partition.
struct Folded<'a> {
    keys: &'a Keys,
    hashes: Hashes,
    memory: Memory,
}

impl Folded<'_> {
    /// The projection's own fold, with what it would read and write in Redis kept here.
    fn take<G: Grouping>(&mut self, items: Vec<At<<Groups<G> as Target>::Item>>) -> Result<(), Error> {
        let ids: BTreeSet<&str> = items.iter().map(|at| at.item.id.as_str()).collect();
        let members = self.load(&self.keys.members(), ids);
        let placed = fold::place::<G>(&self.memory, members, items);
        let parts = self.load(&self.keys.parts(), placed.groups().collect());
        let batch = fold::fold::<G>(self.keys, usize::MAX, &mut self.memory, parts, placed);
        let batch = batch.map_err(|error: target::Error| Error::Damaged(error.to_string()))?;
        for command in batch.commands {
            // HSET key, then fields with values.
            if let [_, key, fields @ ..] = command.words() {
                let hash = self.hashes.entry(key.clone()).or_default();
                hash.extend(fields.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
            }
        }
        Ok(())
    }

    fn load<T: DeserializeOwned>(&self, key: &str, fields: BTreeSet<&str>) -> Loaded<T> {
        let Some(hash) = self.hashes.get(key.as_bytes()) else { return Loaded::new() };
        let there = fields.into_iter().filter_map(|field| Some((field, hash.get(field.as_bytes())?)));
        let parse = |json: &[u8]| serde_json::from_slice(json).map_err(|error| error.to_string());
        there.map(|(field, json)| (field.to_owned(), parse(json))).collect()
    }

    fn compare(&self, partition: i32, captured: &Captured) -> Vec<super::compare::Difference> {
        let mut all = Vec::new();
        for (key, found, of_aggregates) in
            [(self.keys.members(), &captured.members, true), (self.keys.parts(), &captured.parts, false)]
        {
            let expected: BTreeMap<String, Value> = self.hashes.get(key.as_bytes()).map(documents).unwrap_or_default();
            let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
            for name in names {
                let expected = expected.get(name).cloned().unwrap_or_default();
                let found = found.get(name).map(|text| parse(text)).unwrap_or_default();
                let mut differences = Differences::of(partition, of_aggregates.then_some(name));
                differences.compare(&key, Some(name), expected, found);
                all.extend(differences.into_all());
            }
        }
        let names: BTreeSet<&String> = self.memory.parked.keys().chain(captured.parked.keys()).collect();
        let place = |parked: Option<&Parked>| {
            parked.map(|parked| json!({"offset": parked.offset, "count": parked.count})).unwrap_or_default()
        };
        for name in names {
            let mut differences = Differences::of(partition, Some(name));
            let (expected, found) = (self.memory.parked.get(name), captured.parked.get(name));
            differences.compare(&self.keys.parked(), Some(name), place(expected), place(found));
            all.extend(differences.into_all());
        }
        all
    }
}

fn documents(hash: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<String, Value> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    hash.iter().map(|(name, json)| (text(name), parse(&text(json)))).collect()
}

/// What is no JSON is a text.
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
