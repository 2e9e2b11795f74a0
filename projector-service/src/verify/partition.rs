//! One partition: folded in as many passes as memory asks for, and compared.

use std::collections::{BTreeMap, BTreeSet};

use millrace_shared::{
    domain::{Aggregate, Projection},
    views::Keys,
};
use serde_json::Value;

use super::{
    Correction, Corrections, Error,
    compare::{self, Differences},
    digest,
    extras::Region,
    fold::{Expected, Folded},
    found::{Captured, Ranks, are_as_expected, capture, filters},
    judge::{Judge, Suspect},
    made::{Log, Made},
};
use crate::{
    events::{View, people::People},
    target::Target,
};

/// Aggregates in one question to Redis, and history entries in its answer, about.
const AT_ONCE: usize = 200;
const ENTRIES_AT_ONCE: usize = 4_000;
/// A pass takes one id of so many at the least.
const MAX_BITS: u32 = 20;

/// Some of the ids: those whose digests begin with certain bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    bits: u32,
    number: u64,
}

impl Share {
    /// All ids.
    pub const ALL: Self = Self { bits: 0, number: 0 };

    /// Whether an id belongs to it.
    pub fn has(self, id: &[u8]) -> bool {
        self.bits == 0 || digest(id) >> (u64::BITS - self.bits) == self.number
    }

    /// Half of it.
    fn half(self) -> Option<Self> {
        (self.bits < MAX_BITS).then_some(Self { bits: self.bits + 1, number: self.number * 2 })
    }

    /// The one after it, as large.
    fn next(self) -> Option<Self> {
        let number = self.number + 1;
        (number < 1 << self.bits).then_some(Self { number, ..self })
    }
}

impl<A: Aggregate> Judge<'_, A> {
    /// Verifies a partition, but for what the log does not justify.
    pub fn verify_partition(&mut self, partition: i32) -> Result<(), Error> {
        let context = self.context;
        let keys = context.events.keys(partition);
        let ranks = Ranks::new::<A::Projection>(&keys);
        let captured = capture(&mut self.store, &keys, &ranks)?;
        let offset = self.check_log(partition, &keys, &captured)?;
        let (mut counters, mut views) = (BTreeMap::<String, i128>::new(), 0);
        let mut people = context.events.people(partition, captured.keys.clone());
        let mut share = Some(Share::ALL);
        while let Some(now) = share {
            let Some(mut folded) = self.fold_share(partition, now, offset, &captured, &mut people)? else {
                share = now.half();
                let passes = now.half().map_or(0, |half| 1_u64 << half.bits);
                context.progress.suspend(|| {
                    eprintln!("partition {partition}: its views don't fit into memory at once: {passes} passes");
                });
                continue;
            };
            views += folded.aggregates.values().filter(|expected| expected.view.is_some()).count() as u64;
            for (name, by) in std::mem::take(&mut folded.counters) {
                *counters.entry(name).or_default() += by;
            }
            self.count(&folded);
            let parked = |id: &&String| now.has(id.as_bytes());
            for id in captured.parked.keys().filter(parked) {
                folded.aggregates.entry(id.as_str().into()).or_insert_with(|| Expected::new(false, None));
            }
            self.compare_parked(partition, &keys, &captured, &folded);
            self.note_facts(partition, now, offset, &keys, &folded)?;
            let suspects = self.screen(&keys, &ranks, folded)?;
            self.judge(partition, offset, suspects)?;
            share = now.next();
        }
        self.compare_counters(partition, &keys, &counters, &captured);
        self.compare_people(partition, &keys, &captured, &people);
        let wrong = context.report().summary.wrong.contains_key(&partition);
        if wrong || captured.cards.iter().any(|card| *card != views) {
            context.facts().scan_ranks.insert(partition);
        }
        Ok(())
    }

    /// Whether the views can be compared with this log at all; returns up to where.
    fn check_log(&mut self, partition: i32, keys: &Keys, captured: &Captured) -> Result<i64, Error> {
        let topic = self.context.events.topic();
        // Asked after the checkpoint, which can't lie behind it then.
        let (first, end) = self.source.watermarks(topic, partition)?;
        let made = Made {
            partition,
            offset: captured.offset,
            topic_id: captured.topic_id.as_deref(),
            state: captured.state.as_deref(),
            fold: captured.fold,
        };
        let log = Log { topic, topic_id: &self.context.topic_id, first, end };
        made.check(keys, &log, A::Projection::VERSION, self.context.progress)
    }

    /// Folds a share of a partition's aggregates; `None` when they take too much memory.
    fn fold_share(
        &mut self,
        partition: i32,
        share: Share,
        offset: i64,
        captured: &Captured,
        people: &mut People<'_, A>,
    ) -> Result<Option<Folded<View<A>>>, Error> {
        let mut folded = Folded::new();
        let bases = self.context.bases.get().and_then(|bases| bases.get(&partition));
        let begin = |id: &str| {
            let base_at = bases.and_then(|bases| bases.get(id)).copied().unwrap_or_default();
            Expected::new(false, captured.parked.get(id)).trimmed_at(base_at)
        };
        let limit = if share.half().is_some() { self.context.fold_bytes() } else { usize::MAX };
        let complete = self.fold(&mut folded, people, partition, (0, offset), begin, |id| share.has(id), limit)?;
        Ok(complete.then_some(folded))
    }

    fn count(&self, folded: &Folded<View<A>>) {
        let summary = &mut self.context.report().summary;
        summary.events += folded.events;
        summary.aggregates += folded.aggregates.len() as u64;
        summary.parked += folded.aggregates.values().filter(|expected| expected.parked.is_some()).count() as u64;
    }

    /// Parkings were taken with the checkpoint: they must be equal.
    fn compare_parked(&self, partition: i32, keys: &Keys, captured: &Captured, folded: &Folded<View<A>>) {
        for (id, expected) in &folded.aggregates {
            let found = captured.parked.get(&**id).map(|parked| (parked.offset, parked.count));
            if expected.parked != found {
                let mut all = Differences::of(partition, Some(id));
                compare::parked(&mut all, &keys.parked(), expected.parked, found);
                self.context.tell(all.into_all(), &BTreeSet::new());
            }
        }
    }

    /// Keys were taken with the checkpoint: those of people who are erased must be gone, and those that open something there.
    fn compare_people(&self, partition: i32, keys: &Keys, captured: &Captured, people: &People<'_, A>) {
        let text = |there: bool| if there { "a key".into() } else { Value::Null };
        for (id, key) in people.changed() {
            let mut all = Differences::of(partition, Some(id));
            all.compare(&keys.keys(), Some(id), text(key.is_some()), text(captured.keys.contains_key(id)));
            self.context.tell(all.into_all(), &BTreeSet::new());
        }
    }

    /// Counters were taken with the checkpoint: they must be equal.
    fn compare_counters(&self, partition: i32, keys: &Keys, expected: &BTreeMap<String, i128>, captured: &Captured) {
        let mut all = Differences::of(partition, None);
        let names: BTreeSet<&String> = expected.keys().chain(captured.counters.keys()).collect();
        for name in names {
            let number = |value: Option<&str>| value.and_then(|value| value.parse::<i128>().ok()).unwrap_or_default();
            let text = |value: Option<String>| value.map_or(Value::Null, Value::String);
            let (expected, found) = (expected.get(name).map(i128::to_string), captured.counters.get(name).cloned());
            if expected != found {
                let by = number(expected.as_deref()) - number(found.as_deref());
                let correction = Correction { by, counted: expected.is_some() };
                let counters = &mut self.context.report().summary.counters;
                let of_partition = counters.entry(partition).or_insert_with(|| Corrections::since(captured));
                of_partition.all.insert(name.clone(), correction);
            }
            all.compare(&keys.counters(), Some(name), text(expected), text(found));
        }
        self.context.tell(all.into_all(), &BTreeSet::new());
    }

    fn note_facts(
        &mut self,
        partition: i32,
        share: Share,
        offset: i64,
        keys: &Keys,
        folded: &Folded<View<A>>,
    ) -> Result<(), Error> {
        let mut facts = self.context.facts();
        facts.regions.entry(partition).or_default().push(Region { share, offset });
        for (id, expected) in &folded.aggregates {
            let Some(view) = &expected.view else { continue };
            facts.add_view(keys, id);
            filters::<A::Projection>(keys, view).iter().for_each(|key| facts.add_filter(key, id));
        }
        if facts.bytes() > self.context.fact_bytes() {
            let full = std::mem::take(&mut *facts);
            // What comes later is not known yet: the sorted sets can't be left out by their sizes.
            facts.scan_all_ranks = true;
            drop(facts);
            self.sweep(full.scanning_all_ranks())?;
        }
        Ok(())
    }

    /// Compares all aggregates with Redis as it is now; returns those that differ.
    fn screen(
        &mut self,
        keys: &Keys,
        ranks: &Ranks<View<A>>,
        folded: Folded<View<A>>,
    ) -> Result<Vec<Suspect<View<A>>>, Error> {
        let mut suspects = Vec::new();
        let mut rest = folded.aggregates.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut group, mut entries) = (Vec::new(), 0);
            while group.len() < AT_ONCE
                && entries < ENTRIES_AT_ONCE
                && let Some((id, expected)) = rest.next()
            {
                entries += expected.history.len();
                group.push((id, expected));
            }
            let asked: Vec<_> = group.iter().map(|(id, expected)| (&**id, expected)).collect();
            let same = are_as_expected::<A>(&mut self.store, keys, ranks, &asked)?;
            let differing = group.into_iter().zip(same).filter(|(_, same)| !same);
            suspects.extend(differing.map(|((id, expected), _)| {
                let filters = compare::wanted_filters::<A>(keys, &expected);
                Suspect { id, expected: Some(expected), filters, entries: 0, untrimmed: false }
            }));
        }
        Ok(suspects)
    }
}
