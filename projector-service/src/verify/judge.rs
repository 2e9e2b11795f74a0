//! Judges aggregates that differ: they are read together with the checkpoint, and folded on up to there.

use std::collections::{BTreeSet, HashMap};

use millrace_shared::{
    domain::{Aggregate, AggregateId},
    fast_hash::FastMap,
    kafka::{bulk::Record, source::Source},
    views::Keys,
};
use std::{
    ops::ControlFlow,
    thread,
    time::{Duration, Instant},
};

use super::{
    Context, Error,
    compare::{differences, same, wanted_filters},
    fold::{self, Expected, Folded},
    found::{self, Found, Ranks},
};
use crate::{
    events::{Content, View, people::People},
    store::Store,
    target::{Target, Unreadable},
};

/// Suspects in one transaction of Redis, and their history entries, about: it does nothing else meanwhile.
const AT_ONCE: usize = 200;
const ENTRIES_AT_ONCE: usize = 10_000;
/// An aggregate that moves from filter set to filter set is followed so often.
const ROUNDS: usize = 10;
/// The registry may be away for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// One thread with its connections.
pub struct Judge<'a, A: Aggregate> {
    pub(super) context: &'a Context<'a, A>,
    pub(super) source: Source<'a>,
    pub(super) store: Store,
}

/// An aggregate that may be wrong.
pub struct Suspect<V> {
    /// Its id.
    pub id: Box<str>,
    /// What the log made of it up to the offset from which it is judged; `None` where that is not known.
    pub expected: Option<Expected<V>>,
    /// The filter sets in which it may be.
    pub filters: BTreeSet<String>,
    /// Entries of its history, about.
    pub entries: usize,
    /// Its events don't go as far as Redis says that its history was trimmed.
    pub untrimmed: bool,
}

/// A suspect, what the log makes of it, and what Redis has of it at the same checkpoint.
struct Seen<V> {
    id: Box<str>,
    filters: BTreeSet<String>,
    expected: Expected<V>,
    found: Found,
}

impl<'a, A: Aggregate> Judge<'a, A> {
    /// Judges suspects of which it is known what the log makes of them up to `offset`, and others.
    pub fn judge(&mut self, partition: i32, offset: i64, suspects: Vec<Suspect<View<A>>>) -> Result<(), Error> {
        self.context.report().summary.again += suspects.len() as u64;
        let keys = self.context.events.keys(partition);
        let ranks = Ranks::new::<A::Projection>(&keys);
        let (known, mut unknown): (Vec<_>, Vec<_>) = suspects.into_iter().partition(|one| one.expected.is_some());
        self.measure(&keys, &mut unknown)?;
        for group in groups(known) {
            for seen in self.look(partition, &keys, &ranks, offset, group)? {
                if !same::<A>(&keys, &ranks, &seen.expected, &seen.found) {
                    let mut filters = seen.filters;
                    filters.extend(wanted_filters::<A>(&keys, &seen.expected));
                    let entries = seen.expected.history.len().max(seen.found.history.len());
                    unknown.push(Suspect { id: seen.id, expected: None, filters, entries, untrimmed: false });
                }
            }
        }
        for _ in 0..ROUNDS {
            let mut moved = Vec::new();
            for group in groups(unknown) {
                for seen in self.look(partition, &keys, &ranks, 0, group)? {
                    let wanted = wanted_filters::<A>(&keys, &seen.expected);
                    let untrimmed = seen.expected.lacks_its_base();
                    if untrimmed || !wanted.is_subset(&seen.filters) {
                        let filters = &seen.filters | &wanted;
                        let entries = seen.expected.history.len().max(seen.found.history.len());
                        moved.push(Suspect { id: seen.id, expected: None, filters, entries, untrimmed });
                        continue;
                    }
                    let codec = self.context.events.codec();
                    let place = (partition, &*seen.id);
                    let differences = differences::<A>(codec, &keys, &ranks, place, &seen.expected, &seen.found);
                    self.context.tell(differences, &seen.filters);
                }
            }
            if moved.is_empty() {
                return Ok(());
            }
            unknown = moved;
        }
        Err(Error::Damaged(format!("an aggregate of partition {partition} never stays in its filter sets")))
    }

    /// Asks how long histories are.
    pub fn measure(&mut self, keys: &Keys, suspects: &mut [Suspect<View<A>>]) -> Result<(), Error> {
        for some in suspects.chunks_mut(AT_ONCE) {
            let names: Vec<_> = some.iter().map(|suspect| keys.history(&suspect.id)).collect();
            let lengths = found::lengths(&mut self.store, &names)?;
            some.iter_mut().zip(lengths).for_each(|(suspect, length)| suspect.entries = length);
        }
        Ok(())
    }

    /// Reads suspects together with the checkpoint, and folds their events from `from` on up to there.
    fn look(
        &mut self,
        partition: i32,
        keys: &Keys,
        ranks: &Ranks<View<A>>,
        from: i64,
        group: Vec<Suspect<View<A>>>,
    ) -> Result<Vec<Seen<View<A>>>, Error> {
        let wanted: Vec<_> = group.iter().map(|suspect| (&*suspect.id, &suspect.filters)).collect();
        let mut all: HashMap<Box<str>, Found> = HashMap::new();
        let found = found::aggregates(&mut self.store, keys, ranks, &wanted)?;
        let offset = found.first().map_or(from, |found| found.offset);
        if offset < from {
            return Err(Error::OtherLog(format!(
                "{} went back from {from} to {offset} meanwhile: Redis lost writes; try again",
                keys.meta()
            )));
        }
        let mut aggregates = FastMap::default();
        let mut filters = HashMap::new();
        for (suspect, found) in group.into_iter().zip(found) {
            let mut expected = suspect.expected.unwrap_or_else(|| match found.base_at::<A::Projection>() {
                base_at if !suspect.untrimmed => Expected::behind(base_at),
                _ => Expected::behind(0),
            });
            if let Some(claim) = &found.parked {
                expected.parks_at(claim.offset);
            }
            aggregates.insert(suspect.id.clone(), expected);
            filters.insert(suspect.id.clone(), suspect.filters);
            all.insert(suspect.id, found);
        }
        let mut people = self.people(partition, all.iter().map(|(id, found)| (&**id, found)));
        let aggregates = self.fold_these(aggregates, &mut people, partition, (from, offset))?;
        let seen = aggregates.into_iter().filter_map(|(id, expected)| {
            let (found, filters) = (all.remove(&id)?, filters.remove(&id)?);
            Some(Seen { id, filters, expected, found })
        });
        Ok(seen.collect())
    }

    /// Aggregates with the keys that Redis has of them.
    pub fn people<'f>(&self, partition: i32, found: impl Iterator<Item = (&'f str, &'f Found)>) -> People<'a, A> {
        let stored = found.filter_map(|(id, found)| Some((id.to_owned(), found.key.clone()?)));
        self.context.events.people(partition, stored.collect())
    }

    /// Folds events of some aggregates on.
    pub fn fold_these(
        &mut self,
        aggregates: FastMap<Box<str>, Expected<View<A>>>,
        people: &mut People<'_, A>,
        partition: i32,
        range: (i64, i64),
    ) -> Result<FastMap<Box<str>, Expected<View<A>>>, Error> {
        let ids: BTreeSet<Vec<u8>> = aggregates.keys().map(|id| id.as_bytes().to_vec()).collect();
        let mut folded = Folded::new();
        folded.aggregates = aggregates;
        let begin = |_: &str| Expected::behind(0);
        self.fold(&mut folded, people, partition, range, begin, |id| ids.contains(id), usize::MAX)?;
        Ok(folded.aggregates)
    }

    /// Folds the records of a partition in a range of offsets whose ids are wanted; false when it takes too much memory.
    #[allow(clippy::too_many_arguments, reason = "what a fold is made of")]
    pub fn fold(
        &mut self,
        folded: &mut Folded<View<A>>,
        people: &mut People<'_, A>,
        partition: i32,
        range: (i64, i64),
        begin: impl Fn(&str) -> Expected<View<A>>,
        wanted: impl Fn(&[u8]) -> bool,
        max_bytes: usize,
    ) -> Result<bool, Error> {
        let context = self.context;
        let events = &context.events;
        self.source.read_while(events.topic(), partition, range, |record| {
            let id = AggregateId::from_key(record.key());
            // As the projector does it: a record whose key is no id waits under none.
            let name = id.as_ref().map_or("", AggregateId::as_str);
            if !wanted(name.as_bytes()) {
                return Ok(ControlFlow::Continue(()));
            }
            fold::fold(folded, &mut *people, &begin, name, record.offset(), || match &id {
                Ok(id) => content(events, id, record),
                Err(reason) => Ok(Err(reason.clone())),
            })?;
            Ok::<_, Error>(if folded.bytes > max_bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(folded.bytes <= max_bytes)
    }
}

/// What a record says; waits for the registry where it has to.
fn content<A: Aggregate>(
    events: &crate::events::Events<A>,
    id: &AggregateId,
    record: &Record<'_>,
) -> Result<Content<A::Event>, Error> {
    let since = Instant::now();
    loop {
        match events.content(id, record) {
            Ok(content) => return Ok(content),
            Err(Unreadable(_)) if since.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err(Unreadable(reason)) => return Err(Error::Schema(reason)),
        }
    }
}

/// Shares suspects out, so that no question is too large.
pub fn groups<V>(suspects: Vec<Suspect<V>>) -> Vec<Vec<Suspect<V>>> {
    let mut groups: Vec<Vec<Suspect<V>>> = Vec::new();
    let mut entries = usize::MAX;
    for suspect in suspects {
        let own = suspect.expected.as_ref().map_or(suspect.entries, |expected| expected.history.len());
        match groups.last_mut() {
            Some(group) if group.len() < AT_ONCE && entries + own <= ENTRIES_AT_ONCE => {
                entries += own;
                group.push(suspect);
            }
            _ => {
                entries = own;
                groups.push(vec![suspect]);
            }
        }
    }
    groups
}
