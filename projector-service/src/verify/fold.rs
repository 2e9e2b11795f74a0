//! What the log makes of the aggregates of a partition, computed one event after another.
//!
//! How an event changes a view and the counters is the projection's own fold, which defines it. Nothing else is shared
//! with the code that writes batches, so that a fault of that code shows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::Timestamp;
use millrace_shared::{
    domain::{Aggregate, Counted, Projection},
    fast_hash::FastMap,
    panics::Quiet,
    views::{Parked, history::Base},
};

use serde::Serialize;

use super::digest;
use crate::{
    events::{Content, Happened, View, people::People},
    target,
};

/// What an aggregate costs beside its own bytes: its place in the map, and what the allocator adds to four strings.
const OVERHEAD_BYTES: usize = 160;

/// The history of an aggregate.
#[derive(Clone, Debug)]
pub enum History {
    /// A digest of each entry, which is enough to see that all is well.
    Digests(Vec<u64>),
    /// The entries.
    Whole(Vec<Vec<u8>>),
}

impl History {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Digests(digests) => digests.len(),
            Self::Whole(entries) => entries.len(),
        }
    }
}

/// What the log makes of one aggregate.
#[derive(Clone, Debug)]
pub struct Expected<V> {
    /// Its view; `None` before its first event that counts.
    pub view: Option<V>,
    /// Its history; where it has a base, what follows on that.
    pub history: History,
    /// Where its history begins, when Redis says that it was trimmed and events go as far.
    pub base: Option<Base<V>>,
    /// Offset of the first event that waits, and how many do.
    pub parked: Option<(i64, u64)>,
    /// Redis says that it waits from this offset on: an earlier release may not have been able to apply it.
    park_at: i64,
    /// Redis says that the history was trimmed up to this version.
    base_at: u64,
    first: Timestamp,
}

impl<V> Expected<V> {
    /// Before its first event. `claim` is what Redis says about its parking.
    pub fn new(whole: bool, claim: Option<&Parked>) -> Self {
        let history = if whole { History::Whole(Vec::new()) } else { History::Digests(Vec::new()) };
        let park_at = claim.map_or(i64::MAX, |claim| claim.offset);
        Self { view: None, history, base: None, parked: None, park_at, base_at: 0, first: Timestamp::MIN }
    }

    /// Before its first event, when its history was trimmed up to this version. Only what follows is kept.
    pub fn behind(base_at: u64) -> Self {
        Self::new(true, None).trimmed_at(base_at)
    }

    /// Whether a base in Redis is the expected one; none where none is.
    pub fn same_base(&self, found: Option<&[u8]>) -> bool
    where
        V: Serialize,
    {
        match (&self.base, found) {
            (Some(base), Some(found)) => serde_json::to_vec(base).is_ok_and(|base| base == found),
            (None, None) => !self.lacks_its_base(),
            _ => false,
        }
    }

    /// Whether Redis says that the history was trimmed where there are no events.
    pub fn lacks_its_base(&self) -> bool {
        self.base_at > 0 && self.base.is_none()
    }

    /// The same when Redis says that its history was trimmed up to a version.
    pub fn trimmed_at(self, base_at: u64) -> Self {
        Self { base_at, ..self }
    }

    /// Redis says that it waits from an offset on.
    pub fn parks_at(&mut self, offset: i64) {
        self.park_at = self.park_at.min(offset);
    }
}

/// The aggregates of a partition, or some of them.
pub struct Folded<V> {
    /// By id.
    pub aggregates: FastMap<Box<str>, Expected<V>>,
    /// What their events added to the counters.
    pub counters: FastMap<String, i128>,
    /// What the last of them added.
    counted: Counted,
    /// Events that were folded.
    pub events: u64,
    /// Bytes of all this, about.
    pub bytes: usize,
}

impl<V> Folded<V> {
    /// Before the first event.
    pub fn new() -> Self {
        Self {
            aggregates: FastMap::default(),
            counters: FastMap::default(),
            counted: Counted::default(),
            events: 0,
            bytes: 0,
        }
    }
}

/// Folds one record. `people` opens what is personal, `begin` says what is known of an aggregate before its first event, `content` is only asked for when it
/// matters.
pub fn fold<A: Aggregate, E>(
    folded: &mut Folded<View<A>>,
    people: &mut People<'_, A>,
    begin: impl FnOnce(&str) -> Expected<View<A>>,
    id: &str,
    offset: i64,
    content: impl FnOnce() -> Result<Content<A::Event>, E>,
) -> Result<(), E>
where
    E: From<target::Error>,
{
    let expected = match folded.aggregates.get_mut(id) {
        Some(expected) => expected,
        None => {
            folded.bytes += OVERHEAD_BYTES + size_of::<Expected<View<A>>>() + 4 * id.len();
            folded.aggregates.entry(id.into()).or_insert_with(|| begin(id))
        }
    };
    folded.events += 1;
    if let Some((_, count)) = &mut expected.parked {
        *count += 1;
        return Ok(());
    }
    let step = if offset >= expected.park_at {
        Err(())
    } else {
        let keep = matches!(expected.history, History::Whole(_));
        step::<A>(people, &mut expected.view, &mut folded.counted, keep, id, content()?)?
    };
    match step {
        Ok(None) => {}
        Ok(Some(Step { view, time, packed })) => {
            let version = A::Projection::version(&view);
            if version == 1 {
                expected.first = time;
            }
            if version == expected.base_at {
                expected.base = Some(Base { first: expected.first, time, view: view.clone() });
            }
            expected.view = Some(view);
            match &mut expected.history {
                _ if version <= expected.base_at => {}
                History::Digests(digests) => {
                    digests.push(digest(&packed));
                    folded.bytes += 2 * size_of::<u64>();
                }
                History::Whole(entries) => {
                    folded.bytes += 2 * size_of::<Vec<u8>>() + packed.len();
                    entries.push(packed);
                }
            }
            for (name, by) in folded.counted.moves() {
                match folded.counters.get_mut(name) {
                    Some(total) => *total += by,
                    None => drop(folded.counters.insert(name.to_owned(), by)),
                }
            }
        }
        Err(()) => expected.parked = Some((offset, 1)),
    }
    Ok(())
}

/// See [`step`].
type Stepped<V> = Result<Option<Step<V>>, ()>;

struct Step<V> {
    view: V,
    time: Timestamp,
    packed: Vec<u8>,
}

/// One event, and what it counts; `None` when it was there before, an error when it and all that follow have to wait. Unless
/// it is to be kept, the view is lost when the event can't follow on it: Redis then says that the aggregate waits, and it is not
/// tried, or it is a suspect, and folded anew. (Else each event would cost a copy of its view.)
fn step<A: Aggregate>(
    people: &mut People<'_, A>,
    view: &mut Option<View<A>>,
    counted: &mut Counted,
    keep: bool,
    id: &str,
    content: Content<A::Event>,
) -> Result<Stepped<View<A>>, target::Error> {
    let Ok(Happened { meta, mut event, packed }) = content else { return Ok(Err(())) };
    let version = view.as_ref().map_or(0, A::Projection::version);
    if meta.sequence <= version {
        return Ok(Ok(None));
    }
    if meta.sequence > version + 1 {
        return Ok(Err(()));
    }
    if people.open(id, &mut event)?.is_err() {
        return Ok(Err(()));
    }
    let before = if keep { view.clone() } else { view.take() };
    let _quiet = Quiet::when(A::IS_PERSONAL);
    let folded = catch_unwind(AssertUnwindSafe(|| {
        let view = A::Projection::fold(before, id, &meta, &event)?;
        counted.clear();
        A::Projection::count(&event, &view, counted);
        Ok::<_, String>(view)
    }));
    let Ok(Ok(view)) = folded else { return Ok(Err(())) };
    if A::Projection::version(&view) != meta.sequence {
        return Ok(Err(()));
    }
    people.applied(id, &event);
    Ok(Ok(Some(Step { view, time: meta.time, packed })))
}
