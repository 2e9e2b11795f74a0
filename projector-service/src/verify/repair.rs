//! Rewrites what was found wrong, and nothing else, by what the log says.
//!
//! A partition is borrowed for a moment ([`crate::loan`]): its projector waits, so that nothing moves between the fold and
//! the write, which is fenced like any other. The events are folded before; what is left to fold meanwhile is what
//! came since. Counters are moved by the difference that was found.

use std::collections::{BTreeMap, BTreeSet};

use millrace_shared::{
    domain::Aggregate,
    fast_hash::FastMap,
    views::{Keys, Parked, meta},
};

use super::{
    Context, Correction, Corrections, Error, Summary,
    compare::wanted_filters,
    fold::{Expected, History},
    found::{self, Found, Ranks},
    judge::{Judge, Suspect, groups},
};
use crate::{command::Command, events::View, loan::Loan, store::Store, target::Target};

/// Reasons are for people.
const PARKED_BY_US: &str = "verify --repair found that it can't be applied";

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Aggregates.
    pub aggregates: u64,
    /// Counters.
    pub counters: u64,
}

impl<A: Aggregate> Context<'_, A> {
    /// Rewrites what is wrong.
    pub(super) fn repair(&self, summary: &Summary) -> Result<Repaired, Error> {
        let mut repaired = Repaired::default();
        let mut judge = self.judge()?;
        for (&partition, wrong) in &summary.wrong {
            let suspect = |(id, filters): (&String, &BTreeSet<String>)| Suspect {
                id: id.as_str().into(),
                expected: None,
                filters: filters.clone(),
                entries: 0,
                untrimmed: false,
            };
            let mut suspects: Vec<_> = wrong.iter().map(suspect).collect();
            judge.measure(&self.events.keys(partition), &mut suspects)?;
            for group in groups(suspects) {
                repaired.aggregates += judge.rewrite(partition, group)?;
            }
        }
        for (&partition, corrections) in &summary.counters {
            repaired.counters += judge.correct(partition, corrections)?;
        }
        Ok(repaired)
    }
}

impl<A: Aggregate> Judge<'_, A> {
    /// A connection of its own, since a loan keeps one.
    fn lender(&self) -> Store {
        Store::new(self.context.verify.redis.clone(), self.context.verify.redis_timeout)
    }

    /// Rewrites aggregates of a partition.
    fn rewrite(&mut self, partition: i32, group: Vec<Suspect<View<A>>>) -> Result<u64, Error> {
        let keys = self.context.events.keys(partition);
        let ranks = Ranks::new::<A::Projection>(&keys);
        let wanted: BTreeMap<&str, &BTreeSet<String>> =
            group.iter().map(|suspect| (&*suspect.id, &suspect.filters)).collect();
        let asked: Vec<_> = wanted.iter().map(|(id, filters)| (*id, *filters)).collect();
        // Nearly all of the work, before anybody has to wait.
        let before = found::aggregates(&mut self.store, &keys, &ranks, &asked)?;
        let from = before.first().map_or(0, |found| found.offset);
        let fresh = |found: &Found, trimmed: bool| {
            let mut expected = Expected::behind(if trimmed { found.base_at::<A::Projection>() } else { 0 });
            found.parked.iter().for_each(|parked| expected.parks_at(parked.offset));
            expected
        };
        let start = asked.iter().zip(&before).map(|((id, _), found)| ((*id).into(), fresh(found, true))).collect();
        let mut people = self.people(partition, asked.iter().map(|(id, _)| *id).zip(&before));
        let folded = self.fold_these(start, &mut people, partition, (0, from))?;

        let mut lender = self.lender();
        let mut loan = Loan::take(&mut lender, keys.clone(), self.context.events.fold_version())?;
        let found = found::aggregates(loan.store, &keys, &ranks, &asked)?;
        let now: BTreeMap<&str, &Found> = asked.iter().map(|(id, _)| *id).zip(&found).collect();
        let replayed = |id: &str, expected: &Expected<_>| expected.parked.is_some() && now[id].parked.is_none();
        let trimmed = before.iter().zip(&found).any(|(before, found)| before.base != found.base);
        let again = trimmed || folded.iter().any(|(id, expected)| replayed(id, expected));
        // Keys may have come or gone since.
        let earlier = people;
        let mut people = self.people(partition, now.iter().map(|(id, found)| (*id, *found)));
        let mut folded = if loan.checkpoint < from || again {
            let start = now.iter().map(|(id, found)| ((*id).into(), fresh(found, true))).collect();
            self.fold_these(start, &mut people, partition, (0, loan.checkpoint))?
        } else {
            let mut start = folded;
            for (id, expected) in &mut start {
                now[&**id].parked.iter().for_each(|parked| expected.parks_at(parked.offset));
            }
            let folded = self.fold_these(start, &mut people, partition, (from, loan.checkpoint))?;
            people.follow(earlier);
            folded
        };
        // Whose events don't go as far as its history is said to be trimmed gets all of them.
        let untrimmed = folded.iter().filter(|(_, expected)| expected.lacks_its_base());
        let start: FastMap<_, _> = untrimmed.map(|(id, _)| (id.clone(), fresh(now[&**id], false))).collect();
        if !start.is_empty() {
            folded.extend(self.fold_these(start, &mut people, partition, (0, loan.checkpoint))?);
        }
        let mut commands = Vec::new();
        for (id, expected) in &folded {
            write(&mut commands, &keys, &ranks, id, expected, now[&**id]);
            // Filter sets that it has come into since are those of its own events.
            for key in wanted_filters::<A>(&keys, expected) {
                commands.push(Command::new("ZADD", key).with("0").with(&**id));
            }
        }
        commands.extend(people.commands(&keys));
        loan.write(&commands)?;
        Ok(folded.len() as u64)
    }

    /// Moves counters of a partition.
    fn correct(&mut self, partition: i32, corrections: &Corrections) -> Result<u64, Error> {
        let keys = self.context.events.keys(partition);
        let mut lender = self.lender();
        let mut loan = Loan::take(&mut lender, keys.clone(), self.context.events.fold_version())?;
        let present: BTreeMap<String, String> = loan.store.hash(&keys.counters())?.into_iter().collect();
        // Another repair would have moved them already; an older Redis has others.
        let meta: BTreeMap<String, String> = loan.store.hash(&keys.meta())?.into_iter().collect();
        let mended = meta.get(meta::MENDED).and_then(|number| number.parse::<u64>().ok());
        let (before, offset) = corrections.since;
        if mended != before || Some(loan.checkpoint) < offset {
            return Err(Error::Changed(partition));
        }
        let mut commands = vec![Command::new("HINCRBY", keys.meta()).with(meta::MENDED).with("1")];
        for (name, Correction { by, counted }) in &corrections.all {
            let now = present.get(name).and_then(|value| value.parse::<i128>().ok()).unwrap_or_default() + by;
            commands.push(match now {
                0 if !counted => Command::new("HDEL", keys.counters()).with(name.as_str()),
                now => Command::new("HSET", keys.counters()).with(name.as_str()).with(now.to_string()),
            });
        }
        loan.write(&commands)?;
        Ok(corrections.all.len() as u64)
    }
}

/// Everything of one aggregate.
fn write<V: serde::Serialize>(
    commands: &mut Vec<Command>,
    keys: &Keys,
    ranks: &Ranks<V>,
    id: &str,
    expected: &Expected<V>,
    found: &Found,
) {
    let json = expected.view.as_ref().and_then(|view| serde_json::to_vec(view).ok());
    match (&expected.view, json) {
        (Some(view), Some(json)) => {
            commands.push(Command::new("SET", keys.view(id)).with(json));
            for (key, score) in ranks.keys.iter().zip(ranks.scores(view)) {
                commands.push(Command::new("ZADD", key.as_str()).with((score as i64).to_string()).with(id));
            }
        }
        _ => {
            commands.push(Command::new("DEL", keys.view(id)));
            commands.extend(ranks.keys.iter().map(|key| Command::new("ZREM", key.as_str()).with(id)));
        }
    }
    commands.extend(found.filters.keys().map(|key| Command::new("ZREM", key.as_str()).with(id)));
    commands.push(match expected.base.as_ref().and_then(|base| serde_json::to_vec(base).ok()) {
        Some(json) => Command::new("SET", keys.base(id)).with(json),
        None => Command::new("DEL", keys.base(id)),
    });
    commands.push(Command::new("DEL", keys.history(id)));
    if let History::Whole(entries) = &expected.history {
        let entries = entries.iter().map(|entry| [entry.clone()]);
        commands.extend(Command::chunked(&Command::new("RPUSH", keys.history(id)), entries));
    }
    let parked = expected.parked.and_then(|(offset, count)| {
        let reason = found.parked.as_ref().map_or(PARKED_BY_US, |parked| &parked.reason).to_owned();
        let parked = found.parked.clone().unwrap_or(Parked { offset, count, reason, discarded: false });
        serde_json::to_vec(&Parked { offset, count, ..parked }).ok()
    });
    commands.push(match parked {
        Some(json) => Command::new("HSET", keys.parked()).with(id).with(json),
        None => Command::new("HDEL", keys.parked()).with(id),
    });
}
