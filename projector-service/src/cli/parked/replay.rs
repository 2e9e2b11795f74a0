//! Applies what waits, in order, by the same fold as ever.
//!
//! The log is read before the partition is borrowed, so that its projector is held up for no longer than the writing
//! takes, and in rounds, so that no backlog fills the memory. An aggregate stays parked until the last of its events is
//! applied. When the tool dies between two writes, the next run reads the events again, and the fold drops those that
//! are in the view.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use millrace_shared::{
    kafka::{bulk::Record, source::Progress},
    views::{Keys, Parked},
};
use redis::streams::StreamRangeReply;

use super::{
    Error, Replayed,
    desk::{self, Desk},
    parked,
};
use crate::{
    command::Command,
    events::{Incoming, Parking},
    loan::Loan,
    store::Store,
    target::At,
};

/// Events in one script call.
const BATCH: usize = 512;

type Items<T> = Vec<At<Incoming<<T as Parking>::Event>>>;

/// Replays these aggregates of a partition; says what became of each.
pub fn replay<T: Parking>(
    desk: &mut Desk<T>,
    partition: i32,
    mut ids: BTreeSet<String>,
    at_a_time: usize,
) -> Result<BTreeMap<String, Replayed>, Error> {
    let mut replayed: BTreeMap<String, Replayed> = BTreeMap::new();
    desk.check_topic(partition)?;
    while !ids.is_empty() {
        let round = round(desk, partition, &ids, at_a_time)?;
        ids.clear();
        for (id, Round { done, left, whole }) in round {
            if !whole {
                ids.insert(id.clone());
            }
            let of_id = replayed.entry(id).or_default();
            *of_id = Replayed { done: of_id.done + done, left };
        }
    }
    Ok(replayed)
}

/// What a round did to an aggregate.
struct Round {
    done: u64,
    left: Option<Parked>,
    /// Whether there is nothing more to be tried.
    whole: bool,
}

fn round<T: Parking>(
    desk: &mut Desk<T>,
    partition: i32,
    ids: &BTreeSet<String>,
    at_a_time: usize,
) -> Result<BTreeMap<String, Round>, Error> {
    let keys = desk.events.keys(partition);
    let before: BTreeMap<String, Parked> =
        parked(&mut desk.store, &keys)?.into_iter().filter(|(id, _)| ids.contains(id)).collect();
    let Some(from) = before.values().map(|parked| parked.offset).min() else { return Ok(BTreeMap::new()) };
    let checkpoint = desk.store.metas(&[&keys])?.pop().and_then(|meta| meta.offset).unwrap_or(from);
    let progress = Progress::new((checkpoint - from).unsigned_abs());
    let mut reader = desk.reader(partition, from, &progress)?;
    let mut items: Items<T> = Vec::new();
    let events = &desk.events;
    let mut take = |record: &Record<'_>| {
        let at = desk::item(events, record)?;
        // Where its own waiting begins.
        if before.get(&at.item.id).is_some_and(|parked| parked.offset <= at.offset) {
            items.push(at);
        }
        Ok(if items.len() < at_a_time { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    };
    reader.read_to(checkpoint, ids, &mut take)?;

    let over = |error| Error::Loan(keys.meta(), error);
    let mut loan = Loan::take(&mut desk.store, keys.clone(), events.fold_version()).map_err(over)?;
    if reader.position >= checkpoint {
        // What the projector has parked since.
        reader.read_to(loan.checkpoint, ids, &mut take)?;
    }
    progress.finish();
    let whole = reader.position >= loan.checkpoint;

    let mut memory = events.remember(&keys, loan.store)?;
    let mut rounds: BTreeMap<String, Round> =
        before.keys().map(|id| (id.clone(), Round { done: 0, left: None, whole })).collect();
    for at in &items {
        if let Some(round) = rounds.get_mut(&at.item.id) {
            round.done += 1;
        }
    }
    // Counts only rise while an aggregate waits at its offset: all else is another tool's doing.
    let mut waiting: BTreeMap<String, Parked> = BTreeMap::new();
    for (id, parked) in &before {
        let now = match T::parked(&mut memory).remove(id) {
            Some(now) if now.offset == parked.offset => now,
            _ => return Err(Error::Loan(keys.meta(), crate::loan::Error::Busy)),
        };
        let waits = now.count > 0;
        waiting.insert(id.clone(), now);
        // After a round that took the last of them without knowing it, none is left.
        if whole && waits && rounds.get(id).is_none_or(|round| round.done == 0) {
            return Err(Error::NotThere(format!("the events of {id:?} that wait are not in the log")));
        }
    }

    let mut ids = change_ids(loan.store, &keys, loan.checkpoint)?;
    let mut items = items.into_iter().peekable();
    loop {
        let chunk: Items<T> = items.by_ref().take(BATCH).collect();
        let batch = events.replay(&keys, &mut memory, chunk, loan.store, &mut ids)?;
        let mut commands = batch.commands;
        let last = items.peek().is_none();
        if last {
            commands.extend(settle(&keys, T::parked(&mut memory), &waiting, &mut rounds, reader.position)?);
        }
        loan.write(&commands).map_err(over)?;
        if last {
            return Ok(rounds);
        }
    }
}

/// Who waits no longer, or waits on. `position`: up to where the log was read.
fn settle(
    keys: &Keys,
    parked: &mut BTreeMap<String, Parked>,
    waiting: &BTreeMap<String, Parked>,
    rounds: &mut BTreeMap<String, Round>,
    position: i64,
) -> Result<Vec<Command>, Error> {
    let mut commands = Vec::new();
    for (id, before) in waiting {
        let Some(round) = rounds.get_mut(id) else { continue };
        let unread = if round.whole { 0 } else { before.count.saturating_sub(round.done) };
        round.left = match parked.remove(id) {
            Some(again) => {
                round.done -= again.count;
                round.whole = true;
                Some(Parked { count: again.count + unread, discarded: before.discarded, ..again })
            }
            None if round.whole => None,
            None => Some(Parked { offset: before.offset.max(position), count: unread, ..before.clone() }),
        };
        commands.push(match &round.left {
            Some(left) => Command::new("HSET", keys.parked()).with(id.as_str()).with(desk::json(left)?),
            None => Command::new("HDEL", keys.parked()).with(id.as_str()),
        });
    }
    Ok(commands)
}

/// Ids of the change feed that are above all that it has, and below that of the next record: the ordinals of the last
/// offset before the checkpoint.
fn change_ids(store: &mut Store, keys: &Keys, checkpoint: i64) -> Result<impl FnMut(i64) -> String + use<>, Error> {
    let last: StreamRangeReply = store
        .ask(|redis| redis::cmd("XREVRANGE").arg(keys.changes()).arg("+").arg("-").arg("COUNT").arg(1).query(redis))?;
    let at = checkpoint - 1;
    let used = last.ids.first().and_then(|entry| entry.id.split_once('-'));
    let mut ordinal: u64 = match used {
        Some((offset, ordinal)) if offset.parse() == Ok(at) => ordinal.parse().unwrap_or(0),
        _ => 0,
    };
    Ok(move |_| {
        ordinal += 1;
        format!("{at}-{ordinal}")
    })
}
