//! A sample of aggregates is compared with the log before a version answers: events are read at random places of the
//! log, and must be in their aggregates' history, which must give the view, which must be in its indexes.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Grouping, Projection},
    kafka::{
        bulk::{BulkReader, Item},
        reader_config, watcher, watermarks,
    },
    views::{BY_ID, Keys, history, people::Opener},
};
use serde_json::{Value, json};

use super::Error;
use crate::{
    crew::Means,
    events::{Happened, Incoming, View},
    groups::Member,
    store::Store,
    target::Target,
    verify::filters,
};

/// Longest history that is folded.
const MAX_FOLDED: isize = 5_000;
/// Longest wait for records.
const READ_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// What is to be done, and what came of it.
pub struct Sample<'a> {
    /// Aggregates, about.
    pub wanted: usize,
    /// What came of it.
    pub found: &'a mut Found,
    /// To be called often.
    pub alive: &'a dyn Fn() -> Result<(), Error>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Found {
    /// Aggregates that were compared.
    pub compared: u64,
    /// What is not as the log says.
    pub differences: Vec<Value>,
}

/// An aggregate as Redis has it at one moment.
type Stored = (Option<Vec<u8>>, Vec<Vec<u8>>, bool, Option<Vec<u8>>, Vec<Option<f64>>);

/// What events are unpacked and opened with.
type Reads<'a, A> = (&'a Codec<<A as Aggregate>::Event>, Option<&'a Opener>);

/// Compares some of the aggregates of each partition.
pub fn sample<A: Aggregate>(
    means: &Means,
    store: &mut Store,
    version: u32,
    sample: &mut Sample<'_>,
) -> Result<(), Error> {
    let codec = Codec::<A::Event>::datums().map_err(crate::app::Error::from)?;
    let events = means.events::<A>(version)?;
    let checkpoints = checkpoints(means, store, &events)?;
    each(means, &events, &checkpoints, sample, |keys, id, happened| {
        compare::<A>(store, keys, (&codec, events.opener()), id, happened)
    })
}

/// The same of a projection by another key: each aggregate must have got there.
pub fn grouped<G: Grouping>(
    means: &Means,
    store: &mut Store,
    version: u32,
    sample: &mut Sample<'_>,
) -> Result<(), Error> {
    let groups = means.groups::<G>(version)?;
    let checkpoints = checkpoints(means, store, &groups)?;
    each(means, &groups, &checkpoints, sample, |keys, id, happened| {
        let parked: Option<String> = store.ask(|redis| redis::cmd("HGET").arg(keys.parked()).arg(id).query(redis))?;
        let member = store.fields(&keys.members(), &[id])?.pop().flatten();
        let member = member.and_then(|json| serde_json::from_slice::<Member<G::Member>>(&json).ok());
        let there = parked.is_some() || member.is_some_and(|member| member.sequence >= happened.meta.sequence);
        Ok(if there { Ok(()) } else { Err(format!("event {} of the log did not get there", happened.meta.sequence)) })
    })
}

/// Up to where the partitions were projected before the log is read: what comes later need not be there yet.
fn checkpoints<T: Target>(means: &Means, store: &mut Store, target: &T) -> Result<Vec<i64>, Error> {
    let keys: Vec<Keys> = (0..means.partitions).map(|partition| target.keys(partition)).collect();
    let metas = store.metas(&keys.iter().collect::<Vec<_>>())?;
    Ok(metas.iter().map(|meta| meta.offset.unwrap_or(0)).collect())
}

/// Reads events at random places.
fn each<E, T: Target<Item = Incoming<E>>>(
    means: &Means,
    target: &T,
    checkpoints: &[i64],
    sample: &mut Sample<'_>,
    mut compare: impl FnMut(&Keys, &str, &Happened<E>) -> Result<Result<(), String>, Error>,
) -> Result<(), Error> {
    let watcher = watcher(&means.bootstrap, &means.instance)?;
    let mut reader = BulkReader::new(&reader_config(&means.bootstrap, &means.instance))?;
    let wanted = sample.wanted.div_ceil(means.partitions.max(1) as usize);
    for (partition, &end) in (0..).zip(checkpoints) {
        (sample.alive)()?;
        let (first, _) = watermarks(&watcher, target.topic(), partition)?;
        let place = first + somewhere((end - first - wanted as i64).max(1));
        if wanted == 0 || place >= end {
            continue;
        }
        let mut read = Vec::new();
        reader.add(&[(target.topic(), partition, place)])?;
        let (begun, mut ended) = (Instant::now(), false);
        while !ended && read.len() < wanted && begun.elapsed() < READ_LIMIT {
            reader.read(POLL, |item| match item {
                Item::Record(record) if record.partition() == partition && record.offset() >= place => {
                    // What lies behind the checkpoint ends it as the log's end does.
                    ended |= record.offset() >= end;
                    read.extend(Some(record.offset()).filter(|at| *at < end).and_then(|_| target.read(&record).ok()));
                }
                Item::End { partition: of, .. } if of == partition => ended = true,
                _ => {}
            })?;
        }
        reader.remove(&[(target.topic(), partition)])?;
        let keys = target.keys(partition);
        let mut seen = BTreeSet::new();
        for incoming in read.into_iter().take(wanted) {
            (sample.alive)()?;
            let Ok(happened) = incoming.content else { continue };
            if !seen.insert(incoming.id.clone()) {
                continue;
            }
            sample.found.compared += 1;
            if let Err(difference) = compare(&keys, &incoming.id, &happened)? {
                let line = json!({"partition": partition, "id": incoming.id, "difference": difference});
                sample.found.differences.push(line);
            }
        }
    }
    Ok(())
}

fn compare<A: Aggregate>(
    store: &mut Store,
    keys: &Keys,
    reads: Reads<'_, A>,
    id: &str,
    happened: &Happened<A::Event>,
) -> Result<Result<(), String>, Error> {
    let parse = |json: &[u8]| serde_json::from_slice::<View<A>>(json).map_err(|error| format!("its view: {error}"));
    // Which indexes it must be in, the view says; so it is read twice, and again should it have moved between.
    loop {
        let before = store.strings(&[keys.view(id)])?.pop().flatten();
        let indexes = match before.as_deref().map(parse).transpose() {
            Ok(view) => view.as_ref().map(|view| indexes::<A>(keys, view)).unwrap_or_default(),
            Err(reason) => return Ok(Err(reason)),
        };
        let (view, packed, parked, key, scores): Stored = store.ask(|redis| {
            let mut pipe = redis::pipe();
            pipe.atomic().get(keys.view(id)).lrange(keys.history(id), -MAX_FOLDED, -1).hexists(keys.parked(), id);
            pipe.hget(keys.keys(), id);
            for (key, _) in &indexes {
                pipe.zscore(key, id);
            }
            let mut values: Vec<redis::Value> = pipe.query(redis)?;
            let scores = values.split_off(4).into_iter().map(redis::from_redis_value).collect::<Result<_, _>>()?;
            let [view, packed, parked, key] = <[redis::Value; 4]>::try_from(values).unwrap_or_default();
            let (view, packed) = (redis::from_redis_value(view)?, redis::from_redis_value(packed)?);
            Ok((view, packed, redis::from_redis_value(parked)?, redis::from_redis_value(key)?, scores))
        })?;
        if parked {
            return Ok(Ok(()));
        }
        if view != before {
            continue;
        }
        let Some(json) = view else { return Ok(Err("it has no view".into())) };
        let view = match parse(&json) {
            Ok(view) => view,
            Err(reason) => return Ok(Err(reason)),
        };
        let wanted = indexes.iter().map(|(_, score)| Some(*score));
        if !scores.iter().copied().eq(wanted) {
            return Ok(Err("its indexes are not what the view says".into()));
        }
        return Ok(folded::<A>(reads, id, happened, (&packed, key.as_deref()), &view));
    }
}

/// The history must have the event and give the view.
fn folded<A: Aggregate>(
    (codec, opener): Reads<'_, A>,
    id: &str,
    Happened { meta, packed: ours, .. }: &Happened<A::Event>,
    (packed, key): (&[Vec<u8>], Option<&[u8]>),
    view: &View<A>,
) -> Result<(), String> {
    let mut sequences = Vec::new();
    let mut fold: Option<View<A>> = None;
    let whole =
        packed.first().and_then(|first| history::unpack(codec, first)).is_none_or(|(first, _)| first.sequence == 1);
    for entry in packed {
        let (of, mut happened) = history::unpack(codec, entry).ok_or("an entry of its history can't be read")?;
        if let Some(opener) = opener {
            let opened = opener.open::<A>(&mut happened, key, id);
            opened.map_err(|error| format!("an entry of its history can't be opened: {error}"))?;
        }
        sequences.push(of.sequence);
        if whole {
            fold = Some(A::Projection::fold(fold, id, &of, &happened)?);
        }
    }
    let present = A::Projection::version(view);
    if sequences.last() != Some(&present) || sequences.windows(2).any(|pair| pair[1] != pair[0] + 1) {
        return Err(format!("its history does not go in steps of one up to {present}, which its view shows"));
    }
    if whole && fold.as_ref() != Some(view) {
        return Err("its view is not the fold of its history".into());
    }
    let at = sequences.iter().position(|sequence| *sequence == meta.sequence);
    match at {
        Some(at) if packed[at] == *ours => Ok(()),
        None if meta.sequence <= present && !whole => Ok(()),
        _ => Err(format!("event {} of the log is not in its history", meta.sequence)),
    }
}

/// The sets that a view must be in, with its score there.
fn indexes<A: Aggregate>(keys: &Keys, view: &View<A>) -> Vec<(String, f64)> {
    let mut indexes = Vec::new();
    for sort in A::Projection::SORTS {
        let score = (sort.key)(view) as f64;
        indexes.push((keys.sort(sort.name, false), score));
        if sort.name != BY_ID {
            indexes.push((keys.sort(sort.name, true), -score));
        }
    }
    indexes.extend(filters::<A::Projection>(keys, view).into_iter().map(|key| (key, 0.0)));
    indexes
}

/// A number below `limit`; no two runs look at the same places.
fn somewhere(limit: i64) -> i64 {
    (RandomState::new().build_hasher().finish() % limit as u64) as i64
}
