//! Events: sequences, times, rules, headers, and the outcomes that name them.

use millrace_shared::{
    codec::{DecodeError, Foreign},
    domain::{Aggregate, AggregateId},
    envelope::EventMeta,
    kafka::{bulk::Record, topics::Topic},
    records::Records,
};

use super::{Error, Kind, Unjudged, headers, partition::PartitionCheck};

/// Events whose outcome is not known yet.
#[derive(Default)]
pub(super) struct Pending {
    /// The event topic goes back to its beginning.
    complete: bool,
    /// From here on every event has an outcome that is kept.
    judged: bool,
    before: u64,
    events: Vec<Event>,
}

struct Event {
    offset: i64,
    aggregate: u32,
    sequence: u64,
    record: &'static str,
    command_id: Box<str>,
}

impl Pending {
    /// Whether there are such events.
    pub(super) fn any(&self) -> bool {
        !self.events.is_empty()
    }
}

impl<A: Aggregate> PartitionCheck<'_, A> {
    /// The outcomes are read, and the events come now.
    pub(super) fn events_follow(&mut self, first: i64) {
        self.pending.complete = first == 0;
        self.pending.judged = !self.outcomes.trimmed();
        if first > 0 {
            let detail = format!("the events before offset {first} are gone");
            self.found_at(Kind::EventsDeleted, Topic::Events, first, None, detail);
        }
    }

    /// Takes a record of the event topic.
    pub(super) fn event(&mut self, record: &Record<'_>) -> Result<(), Error> {
        self.report.counts.events += 1;
        let id = match AggregateId::from_key(record.key()) {
            Ok(id) => id,
            Err(reason) => {
                self.found(Kind::Unreadable, record, None, reason);
                return Ok(());
            }
        };
        let id = id.as_str();
        let meta = match EventMeta::read(record.raw_headers()) {
            Ok(meta) => meta,
            Err(reason) => {
                self.found(Kind::Headers, record, Some(id), reason);
                return Ok(());
            }
        };
        if !self.lives_here(record, id) {
            return Ok(());
        }
        let value = record.value().unwrap_or_default();
        let event = match self.kind.events.decode_recorded(value, Foreign::Resolve, &self.check.runtime) {
            Ok(event) => Some(event),
            Err(DecodeError::Unavailable(reason)) => return Err(Error::Schema(reason)),
            Err(error) => {
                self.found(Kind::Unreadable, record, Some(id), error.to_string());
                None
            }
        };
        if let Some(event) = &event {
            let name = format!("{}.{}", A::Event::NAMESPACE, event.name());
            if let Err(reason) = headers::of_event(record, A::TYPE, id, &name, &meta) {
                self.found(Kind::Headers, record, Some(id), reason);
            }
        }
        let number = self.aggregates.number(id);
        if !self.follows(record, number, &meta) {
            return Ok(());
        }
        self.fold(record, number, event.as_ref().map(|event| &event.value));
        if let Some(event) = event {
            self.join(record.offset(), number, &meta, event.name());
        }
        Ok(())
    }

    /// Whether an event follows on what came before; a repeated one is not looked at any further.
    fn follows(&mut self, record: &Record<'_>, number: u32, meta: &EventMeta) -> bool {
        let complete = self.pending.complete;
        let aggregate = self.aggregates.get(number);
        let (id, version, last) = (aggregate.id.clone(), aggregate.version, aggregate.last_time);
        if meta.sequence <= version {
            let detail = format!("sequence {} comes after {version}", meta.sequence);
            self.found(Kind::SequenceRepeat, record, Some(&id), detail);
            return false;
        }
        aggregate.version = meta.sequence;
        aggregate.last_time = last.max(meta.time);
        if meta.sequence > version + 1 {
            aggregate.broken = true;
            // Where the topic was cut, nobody knows with which sequence an aggregate would go on.
            if complete || version > 0 {
                let detail = format!("sequence {} comes after {version}", meta.sequence);
                self.found(Kind::SequenceGap, record, Some(&id), detail);
            }
        }
        if meta.time < last {
            let detail = format!("it is dated {}, after an event of {last}", meta.time);
            self.found(Kind::TimeBackwards, record, Some(&id), detail);
        }
        true
    }

    /// Whether an event keeps the rules.
    fn fold(&mut self, record: &Record<'_>, number: u32, event: Option<&A::Event>) {
        let aggregate = self.aggregates.get(number);
        aggregate.erased |= event.is_some_and(A::erases);
        let Some(event) = event else {
            aggregate.broken = true;
            return;
        };
        if aggregate.broken {
            return self.cannot_judge(Unjudged::EventsAfterFinding, 1);
        }
        match A::audit(&aggregate.state, event) {
            Ok(()) => A::evolve(&mut aggregate.state, event),
            Err(detail) => {
                aggregate.broken = true;
                let id = aggregate.id.clone();
                self.found(Kind::RuleBroken, record, Some(&id), detail);
            }
        }
    }

    /// Puts an event to its outcome, or aside until there may be one.
    fn join(&mut self, offset: i64, aggregate: u32, meta: &EventMeta, record: &'static str) {
        let id = &self.aggregates.get(aggregate).id;
        if let Some(original) = self.outcomes.find(id, &meta.command_id, meta.sequence) {
            original.see(meta.sequence, record);
            self.pending.judged = true;
        } else if self.pending.judged {
            let (sequence, command_id) = (meta.sequence, meta.command_id.as_str().into());
            self.pending.events.push(Event { offset, aggregate, sequence, record, command_id });
        } else {
            self.pending.before += 1;
        }
    }

    /// All events are read, and all outcomes that they can have; outcomes before `judged` have all their events.
    pub(super) fn events_end(&mut self, judged: i64) {
        self.cannot_judge(Unjudged::EventsWithoutKeptOutcome, self.pending.before);
        for event in std::mem::take(&mut self.pending.events) {
            let id = self.aggregates.get(event.aggregate).id.clone();
            match self.outcomes.find(&id, &event.command_id, event.sequence) {
                Some(original) => original.see(event.sequence, event.record),
                None => {
                    let detail = format!("command id {:?} has no outcome", event.command_id);
                    self.found_at(Kind::EventWithoutOutcome, Topic::Events, event.offset, Some(&id), detail);
                }
            }
        }
        let complete = self.pending.complete;
        let disagree: Vec<_> = self
            .outcomes
            .all()
            .iter()
            .filter(|original| !original.agrees())
            // Missing ones may lie behind the end that was read, or be deleted.
            .filter(|original| original.seen >= original.count || (original.offset < judged && complete))
            .map(|original| (original.offset, original.aggregate, original.seen, original.count))
            .collect();
        for (offset, aggregate, seen, count) in disagree {
            let id = self.aggregates.get(aggregate).id.clone();
            let (kind, detail) = match (seen, count) {
                (0, _) => (Kind::OutcomeWithoutEvents, format!("its {count} events are not in the log")),
                (_, 0) => (Kind::EventsDiffer, format!("it is rejected, but {seen} events name its command id")),
                _ if seen == count => (Kind::EventsDiffer, "its events are others in the log".to_owned()),
                _ => (Kind::EventsDiffer, format!("it names {count} events, the log has {seen}")),
            };
            self.found_at(kind, Topic::Outcomes, offset, Some(&id), detail);
        }
    }
}
