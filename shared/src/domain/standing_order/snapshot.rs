//! A standing order's state as it lies in the snapshot topic and in the partition store.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state::{Every, Order, Terms};
use crate::records;

records! {
    /// The state of a standing order.
    pub enum Snapshot in "millrace.standing_order.snapshots" {
        /// The only record there is.
        StandingOrder { StandingOrder = "schemas/snapshots/StandingOrder.v1.avsc" },
    }
}

/// The state of a standing order. What a state does not need is empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandingOrder {
    /// Which of the states.
    pub status: Status,
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// Minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What for.
    pub reference: Option<String>,
    /// How long from one to the next.
    pub every: Every,
    /// When the first one is due.
    pub first_at: Timestamp,
    /// Transfers requested so far.
    pub executed: i64,
}

/// Names of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing has happened yet.
    Unknown,
    /// Transfers are requested.
    Active,
    /// No more follow.
    Cancelled,
}

impl From<&Order> for Snapshot {
    fn from(order: &Order) -> Self {
        let (status, terms, executed) = match order {
            Order::Unknown => (Status::Unknown, None, 0),
            Order::Active { terms, executed } => (Status::Active, Some(terms), *executed),
            Order::Cancelled => (Status::Cancelled, None, 0),
        };
        let text = |of: fn(&Terms) -> &String| terms.map(of).cloned().unwrap_or_default();
        Self::StandingOrder(StandingOrder {
            status,
            from: text(|terms| &terms.from),
            to: text(|terms| &terms.to),
            amount_minor: terms.map_or(0, |terms| terms.amount_minor),
            currency: text(|terms| &terms.currency),
            reference: terms.and_then(|terms| terms.reference.clone()),
            every: terms.map_or(Every::Month, |terms| terms.every),
            first_at: terms.map_or(Timestamp::UNIX_EPOCH, |terms| terms.first_at),
            executed: executed.into(),
        })
    }
}

impl From<Snapshot> for Order {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot::StandingOrder(kept) = snapshot;
        let StandingOrder { status, from, to, amount_minor, currency, reference, every, first_at, executed } = kept;
        match status {
            Status::Unknown => Self::Unknown,
            Status::Active => Self::Active {
                terms: Terms { from, to, amount_minor, currency, reference, every, first_at },
                executed: u32::try_from(executed).unwrap_or(u32::MAX),
            },
            Status::Cancelled => Self::Cancelled,
        }
    }
}
