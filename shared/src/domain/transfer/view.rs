//! What queries answer about transfers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{docs, events::Event};
use crate::{
    domain::{AggregateId, Counted, Filter, Projection, Sort, views},
    envelope::EventMeta,
};

/// The projection `transfers`.
#[derive(Debug)]
pub struct Transfers;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The source is asked.
    Requested,
    /// The source has paid; the target is asked, or the source gets its money back.
    Debited,
    /// The target was paid.
    Completed,
    /// The source refused.
    Refused,
    /// The target refused, and the source has its money back.
    Compensated,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Requested, Self::Debited, Self::Completed, Self::Refused, Self::Compensated];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Debited => "debited",
            Self::Completed => "completed",
            Self::Refused => "refused",
            Self::Compensated => "compensated",
        }
    }

    /// Whether nothing comes after it.
    pub fn is_final(self) -> bool {
        match self {
            Self::Requested | Self::Debited => false,
            Self::Completed | Self::Refused | Self::Compensated => true,
        }
    }
}

/// A transfer as queries answer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferView {
    /// The transfer's id.
    pub id: String,
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// Minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What for.
    #[schema(required)]
    pub reference: Option<String>,
    /// How far it is.
    #[schema(schema_with = docs::status)]
    pub status: Status,
    /// Why an account refused: name of the problem.
    #[schema(required)]
    pub reason: Option<String>,
    /// The last sequence that is in this view.
    pub version: u64,
    /// When it was requested.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub requested_at: Timestamp,
    /// When the last event happened.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl Projection for Transfers {
    type Event = Event;
    type View = TransferView;
    const NAME: &'static str = "transfers";
    const VERSION: u32 = 1;
    const SORTS: &'static [Sort<TransferView>] = &[
        Sort { name: "requested_at", key: |view| view.requested_at.as_microsecond() },
        Sort { name: "updated_at", key: |view| view.updated_at.as_microsecond() },
        Sort { name: "amount_minor", key: |view| view.amount_minor },
        Sort { name: "id", key: |_| 0 },
    ];
    const FILTERS: &'static [Filter<TransferView>] = &[
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
            // Those that wait are few, and looked for.
            selective: true,
            fixed: false,
        },
    ];
    const IS_FINAL: Option<fn(&TransferView) -> bool> = Some(|view| view.status.is_final());

    fn fold(view: Option<TransferView>, id: &str, meta: &EventMeta, event: &Event) -> Result<TransferView, String> {
        let at = |view: TransferView, status| TransferView { status, ..view };
        let view = match (view, event) {
            (None, Event::TransferRequested(requested)) => TransferView {
                id: id.to_owned(),
                from: requested.from.clone(),
                to: requested.to.clone(),
                amount_minor: requested.amount_minor,
                currency: requested.currency.clone(),
                reference: requested.reference.clone(),
                status: Status::Requested,
                reason: None,
                version: 0,
                requested_at: meta.time,
                updated_at: meta.time,
            },
            (None, _) => return Err("something happened to a transfer that was never requested".into()),
            (Some(_), Event::TransferRequested(_)) => return Err("a transfer was requested twice".into()),
            (Some(view), Event::TransferDebited(_)) => at(view, Status::Debited),
            (Some(view), Event::TransferCompleted(_)) => at(view, Status::Completed),
            (Some(view), Event::TransferRefused(refused)) => {
                TransferView { reason: Some(refused.reason.clone()), ..at(view, Status::Refused) }
            }
            (Some(view), Event::RefundOrdered(ordered)) => {
                TransferView { reason: Some(ordered.reason.clone()), ..at(view, Status::Debited) }
            }
            (Some(view), Event::TransferCompensated(_)) => at(view, Status::Compensated),
            (Some(view), Event::TransferRetried(_)) => view,
        };
        Ok(TransferView { version: meta.sequence, updated_at: meta.time, ..view })
    }

    fn count(event: &Event, after: &TransferView, counted: &mut Counted) {
        let mut moved = |from: Option<Status>, to: Status| {
            if let Some(from) = from {
                counted.add(&["transfers", from.name()], -1);
            }
            counted.add(&["transfers", to.name()], 1);
        };
        match event {
            Event::TransferRequested(_) => moved(None, Status::Requested),
            Event::TransferDebited(_) => moved(Some(Status::Requested), Status::Debited),
            Event::TransferRefused(_) => moved(Some(Status::Requested), Status::Refused),
            Event::TransferCompensated(_) => moved(Some(Status::Debited), Status::Compensated),
            Event::TransferCompleted(_) => {
                moved(Some(Status::Debited), Status::Completed);
                counted.add(&["currencies", &after.currency, "completed_minor"], after.amount_minor.into());
            }
            Event::RefundOrdered(ordered) if ordered.late => moved(Some(Status::Refused), Status::Debited),
            Event::RefundOrdered(_) | Event::TransferRetried(_) => {}
        }
    }

    fn stats(counters: &BTreeMap<String, i128>) -> Value {
        let of = |key: &str| views::number(counters.get(key).copied().unwrap_or(0));
        let transfers: Map<String, Value> = Status::ALL
            .iter()
            .map(|status| (status.name().to_owned(), of(&format!("transfers/{}", status.name()))))
            .collect();
        let currencies: Map<String, Value> = counters
            .keys()
            .filter_map(|key| key.strip_prefix("currencies/")?.strip_suffix("/completed_minor"))
            .map(|code| {
                (code.to_owned(), json!({"completed_minor": of(&format!("currencies/{code}/completed_minor"))}))
            })
            .collect();
        json!({"transfers": transfers, "currencies": currencies})
    }

    fn version(view: &TransferView) -> u64 {
        view.version
    }
}
