//! The release before `PointsEarned` said whether it is a large one, for tests in which it runs beside the present one: it
//! reads and writes the first version only.

use std::collections::BTreeMap;

use millrace_shared::{
    domain::{Aggregate, CommandError, Counted, Docs, Domains, Fields, Filter, Projection, Refusal, Sort, Visitor},
    envelope::EventMeta,
    records::{RecordType, Records, apache_avro},
};
use serde::Serialize;

use crate::{Balance, Command, Event, LoyaltyPoints, LoyaltyPointsViews, PointsView, Rejection, Snapshot, events::v1};

type Writer<'a> = apache_avro::writer::datum::GenericDatumWriter<'a>;
type Reader<'a> = apache_avro::reader::datum::GenericDatumReader<'a>;

/// What it serves.
#[derive(Debug)]
pub struct Served;

impl Domains for Served {
    fn visit_all(visitor: &mut impl Visitor) {
        visitor.visit::<Earlier>();
    }
}

/// The aggregate type as it was.
#[derive(Debug)]
pub struct Earlier;

/// An event as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct EarlierEvent(Event);

const fn first_version(record: &RecordType) -> RecordType {
    let (versions, _) = record.versions.split_at(1);
    RecordType { name: record.name, versions, is_retired: false }
}

impl Records for EarlierEvent {
    const NAMESPACE: &'static str = Event::NAMESPACE;
    const TYPES: &'static [RecordType] =
        &[first_version(&Event::TYPES[0]), first_version(&Event::TYPES[1]), first_version(&Event::TYPES[2])];

    fn index(&self) -> usize {
        self.0.index()
    }

    fn write(&self, writer: &Writer<'_>, out: &mut Vec<u8>) -> Result<(), apache_avro::Error> {
        match &self.0 {
            Event::PointsEarned(earned) => {
                let earned = v1::PointsEarned { points: earned.points, reason: earned.reason.clone() };
                writer.write_ser(out, &earned).map(|_| ())
            }
            other => other.write(writer, out),
        }
    }

    fn read(index: usize, version: usize, reader: &Reader<'_>, datum: &mut &[u8]) -> Result<Self, apache_avro::Error> {
        Event::read(index, version, reader, datum).map(Self)
    }
}

impl Aggregate for Earlier {
    const TYPE: &'static str = LoyaltyPoints::TYPE;
    const COLLECTION: &'static str = LoyaltyPoints::COLLECTION;
    const REFUSALS: &'static [Refusal] = LoyaltyPoints::REFUSALS;
    const COMMANDS: &'static [&'static str] = LoyaltyPoints::COMMANDS;

    const STATE_VERSION: u32 = LoyaltyPoints::STATE_VERSION;
    type State = Balance;
    type Snapshot = Snapshot;
    type Command = Command;
    type Event = EarlierEvent;
    type Rejection = Rejection;
    type Projection = EarlierViews;

    fn command(name: &str, fields: Fields) -> Result<Command, CommandError> {
        LoyaltyPoints::command(name, fields)
    }

    fn decide(balance: &Balance, command: &Command, at: jiff::Timestamp) -> Result<Vec<EarlierEvent>, Rejection> {
        let events = LoyaltyPoints::decide(balance, command, at)?;
        Ok(events.into_iter().map(EarlierEvent).collect())
    }

    fn evolve(balance: &mut Balance, EarlierEvent(event): &EarlierEvent) {
        balance.evolve(event);
    }

    fn audit(balance: &Balance, EarlierEvent(event): &EarlierEvent) -> Result<(), String> {
        LoyaltyPoints::audit(balance, event)
    }

    fn docs() -> Docs {
        LoyaltyPoints::docs()
    }
}

/// The projection as it was.
#[derive(Debug)]
pub struct EarlierViews;

impl Projection for EarlierViews {
    type Event = EarlierEvent;
    type View = PointsView;
    const NAME: &'static str = LoyaltyPointsViews::NAME;
    const VERSION: u32 = LoyaltyPointsViews::VERSION;
    const SORTS: &'static [Sort<PointsView>] = LoyaltyPointsViews::SORTS;
    const FILTERS: &'static [Filter<PointsView>] = LoyaltyPointsViews::FILTERS;

    fn fold(
        view: Option<PointsView>,
        id: &str,
        meta: &EventMeta,
        EarlierEvent(event): &EarlierEvent,
    ) -> Result<PointsView, String> {
        LoyaltyPointsViews::fold(view, id, meta, event)
    }

    fn count(EarlierEvent(event): &EarlierEvent, after: &PointsView, counted: &mut Counted) {
        LoyaltyPointsViews::count(event, after, counted);
    }

    fn stats(counters: &BTreeMap<String, i128>) -> serde_json::Value {
        LoyaltyPointsViews::stats(counters)
    }

    fn version(view: &PointsView) -> u64 {
        view.version
    }
}
