//! The fold of a batch: events and the views before them in, commands for Redis out. No I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use millrace_shared::{
    domain::{Aggregate, Counted, Projection},
    envelope::{EventMeta, rfc3339_micros},
    records::Records,
    views::{BY_ID, Keys, Parked},
};

use super::{Happened, Incoming, Limits, Loaded, Memory, View, people::People};
use crate::{
    command::Command,
    target::{At, Batch, Error},
};

/// Reasons are shown to people and kept in Redis; what a hostile record says is cut.
const MAX_REASON_CHARACTERS: usize = 500;

/// A history that has become too long, or is that of somebody who was erased.
#[derive(Debug, PartialEq)]
pub struct Grown {
    /// The aggregate.
    pub id: String,
    /// Its events up to this sequence are to be dropped, where it has become too long.
    pub upto: Option<u64>,
    /// The last of its events, where they are erased: a base of before would tell what they were.
    pub erased: Option<u64>,
    /// The last of its events before the batch.
    pub before: u64,
    /// Its events in the batch.
    pub fresh: Vec<Vec<u8>>,
}

/// Somebody was erased whose events wait: the view can't follow, but must not tell of them any more.
#[derive(Debug, PartialEq)]
pub struct Forgotten<V> {
    /// The aggregate.
    pub id: String,
    /// The view, where the batch has changed it.
    pub view: Option<V>,
    /// The events in the batch that the view has.
    pub fresh: Vec<Vec<u8>>,
}

/// What a batch becomes.
#[derive(Debug)]
pub struct Folded<V> {
    /// What is written.
    pub batch: Batch,
    /// Histories to be looked at.
    pub grown: Vec<Grown>,
    /// Views to be looked at, after all else is written.
    pub forgotten: Vec<Forgotten<V>>,
}

/// An aggregate that the batch touches.
pub(super) struct Touched<V> {
    pub(super) before: Option<V>,
    pub(super) now: Option<V>,
    pub(super) history: Vec<[Vec<u8>; 1]>,
}

/// What became of one event.
enum Step {
    Applied,
    Repeated,
    Parked(String),
}

/// Folds a batch. The memory is changed with it. `change_id` gives the change feed's id for the event at an offset; ids
/// only rise.
///
/// # Errors
/// [`Error::Stop`] when more aggregates would be parked than may be.
#[allow(clippy::too_many_arguments, reason = "what a batch is made of")]
pub fn fold<A: Aggregate>(
    keys: &Keys,
    limits: Limits,
    memory: &mut Memory,
    people: &mut People<'_, A>,
    mut loaded: Loaded<View<A>>,
    items: Vec<At<Incoming<A::Event>>>,
    change_id: &mut dyn FnMut(i64) -> String,
) -> Result<Folded<View<A>>, Error> {
    let mut batch = Batch::default();
    let mut touched: BTreeMap<String, Touched<View<A>>> = BTreeMap::new();
    let (mut counted, mut moved) = (Counted::default(), BTreeSet::<String>::new());
    let mut parked: BTreeSet<String> = BTreeSet::new();
    let mut forgotten: BTreeSet<String> = BTreeSet::new();
    let mut changes: Vec<Command> = Vec::new();
    for At { offset, item: Incoming { id, content } } in items {
        let erases = content.as_ref().is_ok_and(|happened| A::erases(&happened.event));
        let step = if memory.parked.contains_key(&id) {
            Step::Parked(String::new())
        } else {
            match (content, loaded.remove(&id)) {
                (Err(reason), before) => {
                    loaded.extend(before.map(|before| (id.clone(), before)));
                    Step::Parked(reason)
                }
                (Ok(_), Some(Err(reason))) => Step::Parked(reason),
                (Ok(Happened { meta, mut event, packed }), before) => {
                    let entry = touched.entry(id.clone()).or_insert_with(|| {
                        let before = before.and_then(Result::ok).flatten();
                        Touched { now: before.clone(), before, history: Vec::new() }
                    });
                    let step = step::<A>(people, &mut entry.now, &mut counted, &id, &meta, &mut event)?;
                    if let Step::Applied = step {
                        people.applied(&id, &event);
                        entry.history.push([packed]);
                        if limits.changes_window > 0 {
                            changes.push(change(keys, limits, change_id(offset), &id, &meta, &event));
                        }
                    }
                    step
                }
            }
        };
        match step {
            Step::Applied => {
                batch.applied += 1;
                for (name, by) in counted.moves() {
                    match memory.counters.get_mut(name) {
                        Some(total) => *total += by,
                        None => drop(memory.counters.insert(name.to_owned(), by)),
                    }
                    if !moved.contains(name) {
                        moved.insert(name.to_owned());
                    }
                }
            }
            Step::Repeated => batch.repeated += 1,
            Step::Parked(reason) => {
                batch.parked += 1;
                if erases {
                    people.erased(&id);
                    forgotten.insert(id.clone());
                }
                park(&mut memory.parked, &id, offset, reason);
                parked.insert(id);
            }
        }
    }
    if memory.parked.values().filter(|parked| !parked.discarded).count() > limits.parked_max {
        let reason = parked.last().and_then(|id| memory.parked.get(id)).map_or("", |parked| &parked.reason);
        return Err(too_many_parked(limits.parked_max, reason));
    }
    batch.commands = write::<A>(keys, memory, &touched, &moved, &parked)?;
    batch.commands.extend(people.commands(keys));
    batch.commands.extend(changes);
    // What can't be done twice comes last: whatever may be refused was accepted by then.
    let mut grown = Vec::new();
    let mut waiting: Vec<Forgotten<View<A>>> = Vec::new();
    for id in &forgotten {
        let (mut view, mut fresh) = (None, Vec::new());
        if let Some(touched) = touched.get(id) {
            (view, fresh) = (touched.now.clone(), touched.history.iter().map(|[packed]| packed.clone()).collect());
        }
        waiting.push(Forgotten { id: id.clone(), view, fresh });
    }
    for (id, Touched { before, now, history }) in touched {
        let version = |view: Option<View<A>>| view.as_ref().map_or(0, A::Projection::version);
        let (before, now) = (version(before), version(now));
        let (upto, erased) = (too_long(before, now, limits.history_max), people.is_erased(&id).then_some(now));
        if upto.or(erased).is_some() && !forgotten.contains(&id) {
            let fresh = history.iter().map(|[packed]| packed.clone()).collect();
            grown.push(Grown { id: id.clone(), upto, erased, before, fresh });
        }
        batch.commands.extend(Command::chunked(&Command::new("RPUSH", keys.history(&id)), history));
    }
    Ok(Folded { batch, grown, forgotten: waiting })
}

/// The sequence up to which a history is to be dropped, when that is due. Only every tenth of the limit: the events that
/// go have to be read and folded.
fn too_long(before: u64, now: u64, limit: u64) -> Option<u64> {
    let step = (limit / 10).max(1);
    (now > limit && before / step != now / step).then(|| now - limit)
}

/// One event on one view, which is as before unless the event was applied.
fn step<A: Aggregate>(
    people: &mut People<'_, A>,
    view: &mut Option<View<A>>,
    counted: &mut Counted,
    id: &str,
    meta: &EventMeta,
    event: &mut A::Event,
) -> Result<Step, Error> {
    let version = view.as_ref().map_or(0, A::Projection::version);
    if meta.sequence <= version {
        return Ok(Step::Repeated);
    }
    if meta.sequence != version + 1 {
        let reason = format!("sequence {} follows on {version}: events are missing", meta.sequence);
        return Ok(Step::Parked(reason));
    }
    if let Err(reason) = people.open(id, event)? {
        return Ok(Step::Parked(reason));
    }
    let event = &*event;
    // A view's code that panics on one event costs that aggregate, not the partition.
    let folded = catch_unwind(AssertUnwindSafe(|| {
        let after = A::Projection::fold(view.clone(), id, meta, event)?;
        counted.clear();
        A::Projection::count(event, &after, counted);
        Ok(after)
    }));
    Ok(match folded {
        Ok(Ok(after)) if A::Projection::version(&after) != meta.sequence => {
            Step::Parked("the view does not take the event's sequence as its version".into())
        }
        Ok(Ok(after)) => {
            *view = Some(after);
            Step::Applied
        }
        Ok(Err(reason)) => Step::Parked(reason),
        Err(_) => Step::Parked("folding it panicked".into()),
    })
}

/// More aggregates would be parked than may be.
pub fn too_many_parked(parked_max: usize, reason: &str) -> Error {
    Error::Stop(format!(
        "more than {parked_max} aggregates of this partition would be parked, the last one because: {reason}; that many \
         point to a fault of the release or the configuration: mend it and restart"
    ))
}

/// An event waits, and with it those of its aggregate that follow.
pub fn park(parked: &mut BTreeMap<String, Parked>, id: &str, offset: i64, reason: String) {
    let reason = reason.chars().take(MAX_REASON_CHARACTERS).collect();
    let first = Parked { offset, count: 0, reason, discarded: false };
    parked.entry(id.to_owned()).or_insert(first).count += 1;
}

fn change<E: Records>(keys: &Keys, limits: Limits, change: String, id: &str, meta: &EventMeta, event: &E) -> Command {
    Command::new("XADD", keys.changes())
        .with("MAXLEN")
        .with("~")
        .with(limits.changes_window.to_string())
        .with(change)
        .with("id")
        .with(id)
        .with("seq")
        .with(meta.sequence.to_string())
        .with("type")
        .with(event.name())
        .with("time")
        .with(rfc3339_micros(meta.time))
}

/// The commands that may be done twice without harm.
pub(super) fn write<A: Aggregate>(
    keys: &Keys,
    memory: &Memory,
    touched: &BTreeMap<String, Touched<View<A>>>,
    moved: &BTreeSet<String>,
    parked: &BTreeSet<String>,
) -> Result<Vec<Command>, Error> {
    let mut views: Vec<[Vec<u8>; 2]> = Vec::new();
    let mut ranked: BTreeMap<String, Vec<[Vec<u8>; 2]>> = BTreeMap::new();
    let mut unranked: BTreeMap<String, Vec<[Vec<u8>; 1]>> = BTreeMap::new();
    for (id, Touched { before, now, .. }) in touched {
        let Some(now) = now else { continue };
        if before.as_ref() == Some(now) {
            continue;
        }
        let json = serde_json::to_vec(now).map_err(|error| Error::Stop(format!("a view can't be written: {error}")))?;
        views.push([keys.view(id).into(), json]);
        for sort in A::Projection::SORTS {
            let score = (sort.key)(now);
            if before.as_ref().map(sort.key) == Some(score) {
                continue;
            }
            for (descending, score) in [(false, score), (true, -score)] {
                // Ids alone are read backwards where they are to descend.
                if descending && sort.name == BY_ID {
                    continue;
                }
                let set = ranked.entry(keys.sort(sort.name, descending)).or_default();
                set.push([score.to_string().into(), id.as_str().into()]);
            }
        }
        for filter in A::Projection::FILTERS.iter().filter(|filter| filter.selective) {
            let (was, is) = (before.as_ref().map(filter.value), (filter.value)(now));
            if was == Some(is) {
                continue;
            }
            // What has no value is not looked for.
            if let Some(was) = was.filter(|was| !was.is_empty()) {
                unranked.entry(keys.filter(filter.name, was)).or_default().push([id.as_str().into()]);
            }
            if !is.is_empty() {
                ranked.entry(keys.filter(filter.name, is)).or_default().push(["0".into(), id.as_str().into()]);
            }
        }
    }
    let totals =
        moved.iter().filter_map(|name| Some([name.as_str().into(), memory.counters.get(name)?.to_string().into()]));
    let waiting = parked.iter().filter_map(|id| {
        let json = serde_json::to_vec(memory.parked.get(id)?).ok()?;
        Some([id.as_str().into(), json])
    });
    let mut commands: Vec<Command> = Command::chunked(&Command::bare("MSET"), views).collect();
    for (key, members) in unranked {
        commands.extend(Command::chunked(&Command::new("ZREM", key), members));
    }
    for (key, members) in ranked {
        commands.extend(Command::chunked(&Command::new("ZADD", key), members));
    }
    commands.extend(Command::chunked(&Command::new("HSET", keys.counters()), totals));
    commands.extend(Command::chunked(&Command::new("HSET", keys.parked()), waiting));
    Ok(commands)
}

#[cfg(test)]
mod tests;
