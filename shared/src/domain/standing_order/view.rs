//! What queries answer about standing orders.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{docs, events::Event, process, state::Every};
use crate::{
    domain::{AggregateId, Counted, Filter, Projection, Sort, views},
    envelope::{EventMeta, rfc3339_micros},
};

/// The projection `standing-orders`.
#[derive(Debug)]
pub struct StandingOrders;

/// Whether transfers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// They do.
    Active,
    /// They don't.
    Cancelled,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Active, Self::Cancelled];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A standing order as queries answer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StandingOrderView {
    /// The order's id.
    pub id: String,
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// Minor units, each time.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What for.
    #[schema(required)]
    pub reference: Option<String>,
    /// How long from one transfer to the next.
    #[schema(schema_with = docs::every)]
    pub every: Every,
    /// Whether transfers follow.
    #[schema(schema_with = docs::status)]
    pub status: Status,
    /// Transfers requested so far; what became of each is in its own view.
    pub executed: u32,
    /// Id of the last one.
    #[schema(required)]
    pub last_transfer: Option<String>,
    /// When the next one is due.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub next_at: Option<String>,
    /// The last sequence that is in this view.
    pub version: u64,
    /// When it was placed.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub placed_at: Timestamp,
    /// When the last event happened.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl Projection for StandingOrders {
    type Event = Event;
    type View = StandingOrderView;
    const NAME: &'static str = "standing-orders";
    const VERSION: u32 = 1;
    const SORTS: &'static [Sort<StandingOrderView>] = &[
        Sort { name: "placed_at", key: |view| view.placed_at.as_microsecond() },
        Sort { name: "updated_at", key: |view| view.updated_at.as_microsecond() },
        Sort { name: "id", key: |_| 0 },
    ];
    const FILTERS: &'static [Filter<StandingOrderView>] = &[
        Filter {
            name: "from",
            value: |view| &view.from,
            accepts: |id| AggregateId::new(id).is_ok(),
            selective: true,
            fixed: true,
        },
        Filter {
            name: "to",
            value: |view| &view.to,
            accepts: |id| AggregateId::new(id).is_ok(),
            selective: true,
            fixed: true,
        },
        Filter {
            name: "status",
            value: |view| view.status.name(),
            accepts: |text| Status::ALL.iter().any(|status| status.name() == text),
            selective: false,
            fixed: false,
        },
    ];

    fn fold(
        view: Option<StandingOrderView>,
        id: &str,
        meta: &EventMeta,
        event: &Event,
    ) -> Result<StandingOrderView, String> {
        let view = match (view, event) {
            (None, Event::StandingOrderPlaced(placed)) => StandingOrderView {
                id: id.to_owned(),
                from: placed.from.clone(),
                to: placed.to.clone(),
                amount_minor: placed.amount_minor,
                currency: placed.currency.clone(),
                reference: placed.reference.clone(),
                every: placed.every,
                status: Status::Active,
                executed: 0,
                last_transfer: None,
                next_at: Some(rfc3339_micros(placed.first_at)),
                version: 0,
                placed_at: meta.time,
                updated_at: meta.time,
            },
            (None, _) => return Err("something happened to a standing order that was never placed".into()),
            (Some(_), Event::StandingOrderPlaced(_)) => return Err("a standing order was placed twice".into()),
            (Some(view), Event::StandingOrderExecuted(executed)) => StandingOrderView {
                executed: executed.number,
                last_transfer: Some(process::transfer_id(id, executed.number)),
                next_at: executed.next_at.map(rfc3339_micros),
                ..view
            },
            (Some(view), Event::StandingOrderCancelled(_)) => {
                StandingOrderView { status: Status::Cancelled, next_at: None, ..view }
            }
        };
        Ok(StandingOrderView { version: meta.sequence, updated_at: meta.time, ..view })
    }

    fn count(event: &Event, _after: &StandingOrderView, counted: &mut Counted) {
        match event {
            Event::StandingOrderPlaced(_) => counted.add(&["orders", "active"], 1),
            Event::StandingOrderExecuted(_) => counted.add(&["transfers"], 1),
            Event::StandingOrderCancelled(_) => {
                counted.add(&["orders", "active"], -1);
                counted.add(&["orders", "cancelled"], 1);
            }
        }
    }

    fn stats(counters: &BTreeMap<String, i128>) -> Value {
        let of = |key: &str| views::number(counters.get(key).copied().unwrap_or(0));
        let orders: Map<String, Value> = Status::ALL
            .map(|status| (status.name().to_owned(), of(&format!("orders/{}", status.name()))))
            .into_iter()
            .collect();
        json!({"orders": orders, "transfers": of("transfers")})
    }

    fn version(view: &StandingOrderView) -> u64 {
        view.version
    }
}
