//! What queries answer about reservations: whether an address that nobody can tell from the id is taken.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{docs, events::Event};
use crate::{
    domain::{Counted, Filter, Projection, Sort, views},
    envelope::EventMeta,
};

/// The projection `email-reservations`.
#[derive(Debug)]
pub struct Reservations;

/// Whether the address is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nobody has it.
    Free,
    /// It is kept for a user.
    Reserved,
    /// A user has it.
    Confirmed,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Free, Self::Reserved, Self::Confirmed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Reserved => "reserved",
            Self::Confirmed => "confirmed",
        }
    }
}

/// A reservation as queries answer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReservationView {
    /// The reservation's id: a keyed hash of the address.
    pub id: String,
    /// Whether the address is taken.
    #[schema(schema_with = docs::status)]
    pub status: Status,
    /// The last sequence that is in this view.
    pub version: u64,
    /// When the last event happened.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl Projection for Reservations {
    type Event = Event;
    type View = ReservationView;
    const NAME: &'static str = "email-reservations";
    const VERSION: u32 = 1;
    const SORTS: &'static [Sort<ReservationView>] =
        &[Sort { name: "updated_at", key: |view| view.updated_at.as_microsecond() }, Sort { name: "id", key: |_| 0 }];
    const FILTERS: &'static [Filter<ReservationView>] = &[Filter {
        name: "status",
        value: |view| view.status.name(),
        accepts: |text| Status::ALL.iter().any(|status| status.name() == text),
        selective: false,
        fixed: false,
    }];

    fn fold(
        view: Option<ReservationView>,
        id: &str,
        meta: &EventMeta,
        event: &Event,
    ) -> Result<ReservationView, String> {
        let before = view.map_or(Status::Free, |view| view.status);
        let status = match (before, event) {
            (Status::Free, Event::EmailReserved(_)) => Status::Reserved,
            (_, Event::EmailReserved(_)) => return Err("an address was reserved for two".into()),
            (Status::Free, _) => return Err("something happened to a reservation that was free".into()),
            (status, Event::HolderAsked(_)) => status,
            (_, Event::ReservationConfirmed(_)) => Status::Confirmed,
            (_, Event::ReservationReleased(_)) => Status::Free,
        };
        Ok(ReservationView { id: id.to_owned(), status, version: meta.sequence, updated_at: meta.time })
    }

    fn count(event: &Event, after: &ReservationView, counted: &mut Counted) {
        // Whether it was confirmed when it was released, the event does not tell.
        match event {
            Event::EmailReserved(_) => {
                counted.add(&["reservations", "taken"], 1);
                if after.version > 1 {
                    counted.add(&["reservations", "free"], -1);
                }
            }
            Event::ReservationReleased(_) => {
                counted.add(&["reservations", "taken"], -1);
                counted.add(&["reservations", "free"], 1);
            }
            Event::HolderAsked(_) | Event::ReservationConfirmed(_) => {}
        }
    }

    fn stats(counters: &BTreeMap<String, i128>) -> Value {
        let of = |name: &str| {
            let count = counters.get(&format!("reservations/{name}")).copied().unwrap_or(0);
            (name.to_owned(), views::number(count))
        };
        json!({"reservations": Map::from_iter(["free", "taken"].map(of))})
    }

    fn version(view: &ReservationView) -> u64 {
        view.version
    }
}
