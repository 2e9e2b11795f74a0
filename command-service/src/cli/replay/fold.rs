//! One aggregate's records, folded one after another.

use jiff::Timestamp;
use millrace_shared::{
    codec::{Codec, DecodeError, Foreign},
    domain::{Aggregate, AggregateId, Domains, Visitor},
    envelope::{EventMeta, names},
    kafka::bulk::Record,
    records::Records,
    registry::{self, Registry},
};
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::Handle;

use crate::partition::{
    Stored,
    kept::{Kept, Unused, from_snapshot, from_store},
};

/// Where to end.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// With the last event there is.
    Present,
    /// With this sequence.
    Version(u64),
    /// With the last event that is not later.
    Time(Timestamp),
}

impl Until {
    fn is_before(self, meta: &EventMeta) -> bool {
        match self {
            Self::Present => false,
            Self::Version(version) => version < meta.sequence,
            Self::Time(time) => time < meta.time,
        }
    }
}

/// An event, and what it led to.
pub struct Event {
    /// Its metadata.
    pub meta: EventMeta,
    /// Its id, where its headers name one.
    pub id: Option<String>,
    /// Name of its record.
    pub name: &'static str,
    /// Its fields.
    pub data: Value,
    /// The state after it; unknown once an event before it is missing.
    pub state: Option<Value>,
}

/// What a record turned out to be.
#[derive(Default)]
pub struct Taken {
    /// What is wrong here.
    pub problem: Option<String>,
    /// An event that counts.
    pub event: Option<Event>,
    /// The end was reached: this event lies behind it, and is not counted.
    pub beyond: Option<EventMeta>,
}

/// A fold behind a face without the aggregate's Rust types.
pub trait Fold: Send {
    /// Length of the longest name of an event.
    fn longest_name(&self) -> usize;

    /// Takes the aggregate's next record. Not to be called on a thread of the async runtime.
    ///
    /// # Errors
    /// When the registry can't be asked what a record is.
    fn take(&mut self, record: &Record<'_>, until: Until, runtime: &Handle) -> Result<Taken, String>;

    /// See [`Aggregate::STATE_VERSION`].
    fn state_version(&self) -> u32;

    /// A state as the snapshot topic has it. Not to be called on a thread of the async runtime.
    ///
    /// # Errors
    /// See [`Unused`].
    fn snapshot(&self, record: &Stored<'_>, events_topic_id: &str, runtime: &Handle) -> Result<Kept<Value>, Unused>;

    /// A state as a store has it; `None` when it can't be read.
    fn stored(&self, bytes: &[u8]) -> Option<Kept<Value>>;
}

/// The fold of an aggregate of a type, at its beginning; `None`: there is no such type.
pub fn fold_of<D: Domains>(
    aggregate_type: &str,
    registry: &Registry,
) -> Option<Result<Box<dyn Fold>, registry::Error>> {
    struct Find<'a> {
        aggregate_type: &'a str,
        registry: &'a Registry,
        found: Option<Result<Box<dyn Fold>, registry::Error>>,
    }
    impl Visitor for Find<'_> {
        fn visit<A: Aggregate>(&mut self) {
            if A::TYPE == self.aggregate_type {
                let made = Folded::<A>::new(self.registry);
                self.found = Some(made.map(|fold| Box::new(fold) as Box<dyn Fold>));
            }
        }
    }
    let mut find = Find { aggregate_type, registry, found: None };
    D::visit_all(&mut find);
    find.found
}

struct Folded<A: Aggregate> {
    events: Codec<A::Event>,
    snapshots: Codec<A::Snapshot>,
    version: u64,
    /// Unknown once an event is missing.
    state: Option<A::State>,
}

impl<A: Aggregate> Folded<A> {
    fn new(registry: &Registry) -> Result<Self, registry::Error> {
        Ok(Self {
            events: Codec::reading(registry.clone())?,
            snapshots: Codec::reading(registry.clone())?,
            version: 0,
            state: Some(A::State::default()),
        })
    }
}

impl<A: Aggregate> Fold for Folded<A> {
    fn longest_name(&self) -> usize {
        A::Event::TYPES.iter().map(|record| record.name.len()).max().unwrap_or_default()
    }

    /// A record that can't be read moves nothing: whether it was an event is shown by the next one's sequence.
    fn take(&mut self, record: &Record<'_>, until: Until, runtime: &Handle) -> Result<Taken, String> {
        let problem = |problem| Ok(Taken { problem: Some(problem), ..Taken::default() });
        let meta = match EventMeta::read(record.raw_headers()) {
            Ok(meta) => meta,
            Err(reason) => return problem(format!("{reason}; Millrace did not write this record")),
        };
        // As command-service reads its events back: what it would not decide on is no history here either.
        let event = match self.events.decode(record.value().unwrap_or_default(), Foreign::Refuse, runtime) {
            Ok(event) => event,
            Err(DecodeError::Unavailable(reason)) => return Err(reason),
            Err(error) => return problem(format!("sequence {} can't be read: {error}", meta.sequence)),
        };
        let (name, before) = (event.name(), self.version);
        if meta.sequence <= before {
            return problem(format!("sequence {} comes after {before}; this {name} is not counted", meta.sequence));
        }
        let mut taken = Taken::default();
        if meta.sequence > before + 1 {
            taken.problem = Some(format!("sequence {} comes after {before}; the state is not known", meta.sequence));
            self.state = None;
        }
        if until.is_before(&meta) {
            taken.beyond = Some(meta);
            return Ok(taken);
        }
        self.version = meta.sequence;
        if let Some(state) = &mut self.state {
            A::evolve(state, &event);
        }
        let id = record.headers().find(|(name, _)| *name == names::ID).and_then(|(_, value)| value);
        taken.event = Some(Event {
            meta,
            id: id.map(|id| String::from_utf8_lossy(id).into_owned()),
            name,
            data: shown(&event),
            state: self.state.as_ref().map(shown),
        });
        Ok(taken)
    }

    fn state_version(&self) -> u32 {
        A::STATE_VERSION
    }

    fn snapshot(&self, record: &Stored<'_>, events_topic_id: &str, runtime: &Handle) -> Result<Kept<Value>, Unused> {
        let id = AggregateId::from_key(record.key).map_err(Unused::Unreadable)?;
        let read = from_snapshot::<A>(&self.snapshots, events_topic_id, (id.as_str(), record), &|_, _| Ok(()), runtime);
        read.map(|snapshot| visible(snapshot.kept))
    }

    fn stored(&self, bytes: &[u8]) -> Option<Kept<Value>> {
        from_store::<A>(&self.snapshots, bytes, "", &|_, _| Ok(())).map(|(kept, _)| visible(kept))
    }
}

fn visible(Kept { state, version, last_time }: Kept<impl Serialize>) -> Kept<Value> {
    Kept { state: shown(&state), version, last_time }
}

fn shown(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| Value::String(format!("can't be shown: {error}")))
}
