//! What waits in one projection: where, how it is read from the log, and how it is given up.

use std::{collections::BTreeSet, ops::ControlFlow};

use millrace_shared::{
    domain::AggregateId,
    kafka::{
        REQUEST_TIMEOUT,
        bulk::Record,
        source::{self, Progress, Source},
        topic_id, watcher,
    },
    records::Records,
    views::{Keys, Parked},
};

use super::{CLIENT_ID, Error, Event, Replayed, Work, parked, replay};
use crate::{
    command::Command,
    crew::Means,
    events::{Incoming, Parking},
    loan::Loan,
    store::Store,
    target::At,
};

/// One projection of a deployment.
pub struct Desk<T> {
    /// Reads and folds.
    pub events: T,
    /// Redis.
    pub store: Store,
    bootstrap: String,
    partitions: i32,
}

impl<T: Parking> Desk<T> {
    /// Of the active version of a projection.
    pub fn new(
        means: &Means,
        projection: &str,
        events: impl FnOnce(u32) -> Result<T, crate::app::Error>,
    ) -> Result<Self, Error> {
        let mut store = means.store();
        let active = store.versions(means.names.redis_prefix(), projection)?.active;
        let events = events(active)?;
        Ok(Self { events, store, bootstrap: means.bootstrap.clone(), partitions: means.partitions })
    }

    /// Borrows a partition.
    pub fn borrow(&mut self, keys: &Keys) -> Result<Loan<'_>, Error> {
        Loan::take(&mut self.store, keys.clone(), self.events.fold_version())
            .map_err(|error| Error::Loan(keys.meta(), error))
    }

    /// Makes sure that a partition's offsets are those of the topic that is there.
    pub fn check_topic(&mut self, partition: i32) -> Result<(), Error> {
        let topic = self.events.topic();
        let asked = watcher(&self.bootstrap, CLIENT_ID).and_then(|watcher| topic_id(&watcher, topic, REQUEST_TIMEOUT));
        let present = asked.map_err(source::Error::from)?;
        let meta = self.store.metas(&[&self.events.keys(partition)])?.pop().unwrap_or_default();
        match meta.topic_id {
            Some(other) if other != present => Err(Error::NotThere(format!(
                "these views were made from a topic with id {other}, but the id of {topic} is {present}"
            ))),
            _ => Ok(()),
        }
    }

    /// A reader of what waits in a partition, from an offset on.
    pub fn reader<'a>(&self, partition: i32, from: i64, progress: &'a Progress) -> Result<Reader<'a>, Error> {
        let topic = self.events.topic().to_owned();
        let source = Source::new(&self.bootstrap, CLIENT_ID, &[&topic], progress)?;
        let (first, _) = source.watermarks(&topic, partition)?;
        if from < first {
            let place = format!("{topic}/{partition}");
            return Err(Error::NotThere(format!("events wait from offset {from} on, but {place} begins at {first}")));
        }
        Ok(Reader { source, topic, partition, position: from })
    }
}

/// See [`Desk::reader`].
pub struct Reader<'a> {
    source: Source<'a>,
    topic: String,
    partition: i32,
    /// Everything before it was read.
    pub position: i64,
}

impl Reader<'_> {
    /// Hands over the records of some aggregates up to before an offset, until `each` has enough.
    pub fn read_to(
        &mut self,
        to: i64,
        ids: &BTreeSet<String>,
        mut each: impl FnMut(&Record<'_>) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let (from, position) = (self.position, &mut self.position);
        let mut enough = false;
        self.source.read_while(&self.topic, self.partition, (from, to), |record| {
            // Some of the last read may still come.
            if record.offset() < *position {
                return Ok(ControlFlow::Continue(()));
            }
            *position = record.offset() + 1;
            let id = AggregateId::from_key(record.key()).map_or_else(|_| String::new(), String::from);
            let flow = if ids.contains(&id) { each(record)? } else { ControlFlow::Continue(()) };
            enough = flow.is_break();
            Ok::<_, Error>(flow)
        })?;
        if !enough {
            self.position = self.position.max(to);
        }
        Ok(())
    }
}

/// A record as the fold takes it.
pub fn item<T: Parking>(events: &T, record: &Record<'_>) -> Result<At<Incoming<T::Event>>, Error> {
    let unreadable = |unreadable: crate::target::Unreadable| Error::Unreadable(unreadable.0);
    Ok(At { offset: record.offset(), item: events.read(record).map_err(unreadable)? })
}

impl<T: Parking> Work for Desk<T> {
    fn places(&mut self, ids: Option<&[String]>) -> Result<Vec<(i32, BTreeSet<String>)>, Error> {
        let mut places = Vec::new();
        for partition in 0..self.partitions {
            let wanted = |(id, parked): (String, Parked)| match ids {
                Some(ids) => ids.contains(&id).then_some(id),
                None => (!parked.discarded).then_some(id),
            };
            let all = parked(&mut self.store, &self.events.keys(partition))?;
            let here: BTreeSet<String> = all.into_iter().filter_map(wanted).collect();
            if !here.is_empty() {
                places.push((partition, here));
            }
        }
        let known = |id: &String| places.iter().any(|(_, here)| here.contains(id));
        match ids.into_iter().flatten().find(|id| !known(id)) {
            Some(id) => Err(Error::NotThere(format!("{id:?} is not parked"))),
            None => Ok(places),
        }
    }

    fn show(
        &mut self,
        partition: i32,
        id: &str,
        each: &mut dyn FnMut(Event) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        let keys = self.events.keys(partition);
        let all = parked(&mut self.store, &keys)?;
        let Some((_, Parked { offset, .. })) = all.into_iter().find(|(of, _)| of == id) else { return Ok(()) };
        let checkpoint = self.store.metas(&[&keys])?.pop().and_then(|meta| meta.offset).unwrap_or(offset);
        let progress = Progress::new((checkpoint - offset).unsigned_abs());
        let mut reader = self.reader(partition, offset, &progress)?;
        reader.read_to(checkpoint, &BTreeSet::from([id.to_owned()]), |record| {
            let At { offset, item } = item(&self.events, record)?;
            let place = format!("{}/{partition}/{offset}", self.events.topic());
            let content = item.content.map(|happened| (happened.meta.sequence, happened.event.name()));
            let event = Event { place, timestamp_ms: record.timestamp_ms(), content };
            progress.suspend(|| each(event))?;
            Ok(ControlFlow::Continue(()))
        })?;
        progress.finish();
        Ok(())
    }

    fn replay(
        &mut self,
        partition: i32,
        ids: BTreeSet<String>,
        at_a_time: usize,
    ) -> Result<std::collections::BTreeMap<String, Replayed>, Error> {
        replay::replay(self, partition, ids, at_a_time)
    }

    fn discard(&mut self, partition: i32, id: &str) -> Result<Parked, Error> {
        let keys = self.events.keys(partition);
        let mut loan = self.borrow(&keys)?;
        let all = parked(loan.store, &keys)?;
        let found = all.into_iter().find_map(|(of, parked)| (of == id).then_some(parked));
        let mut parked = found.ok_or_else(|| Error::NotThere(format!("{id:?} is no longer parked")))?;
        parked.discarded = true;
        let command = Command::new("HSET", keys.parked()).with(id).with(json(&parked)?);
        loan.write(&[command]).map_err(|error| Error::Loan(keys.meta(), error))?;
        Ok(parked)
    }
}

/// As Redis has it.
pub fn json(parked: &Parked) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(parked).map_err(|error| Error::Unreadable(error.to_string()))
}
