//! A transfer's state as it lies in the snapshot topic and in the partition store.

use serde::{Deserialize, Serialize};

use super::state::{self, Terms};
use crate::records;

records! {
    /// The state of a transfer.
    pub enum Snapshot in "millrace.transfer.snapshots" {
        /// The only record there is.
        Transfer { Transfer = "schemas/snapshots/Transfer.v1.avsc" },
    }
}

/// The state of a transfer. What a state does not need is empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
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
    /// Of a refusal, or of a refund that is under way.
    pub reason: String,
}

/// Names of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing has happened yet.
    Unknown,
    /// The source is asked.
    Requested,
    /// The source has paid.
    Debited,
    /// The source gets its money back.
    Refunding,
    /// The target was paid.
    Completed,
    /// The source refused.
    Refused,
    /// The source has its money back.
    Compensated,
}

impl From<&state::Transfer> for Snapshot {
    fn from(state: &state::Transfer) -> Self {
        let (status, terms, reason) = match state {
            state::Transfer::Unknown => (Status::Unknown, None, ""),
            state::Transfer::Requested(terms) => (Status::Requested, Some(terms), ""),
            state::Transfer::Debited(terms) => (Status::Debited, Some(terms), ""),
            state::Transfer::Refunding { terms, reason } => (Status::Refunding, Some(terms), reason.as_str()),
            state::Transfer::Completed(terms) => (Status::Completed, Some(terms), ""),
            state::Transfer::Refused { terms, reason } => (Status::Refused, Some(terms), reason.as_str()),
            state::Transfer::Compensated => (Status::Compensated, None, ""),
        };
        let text = |of: fn(&Terms) -> &String| terms.map(of).cloned().unwrap_or_default();
        Self::Transfer(Transfer {
            status,
            from: text(|terms| &terms.from),
            to: text(|terms| &terms.to),
            amount_minor: terms.map_or(0, |terms| terms.amount_minor),
            currency: text(|terms| &terms.currency),
            reason: reason.to_owned(),
        })
    }
}

impl From<Snapshot> for state::Transfer {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot::Transfer(Transfer { status, from, to, amount_minor, currency, reason }) = snapshot;
        let terms = Terms { from, to, amount_minor, currency };
        match status {
            Status::Unknown => Self::Unknown,
            Status::Requested => Self::Requested(terms),
            Status::Debited => Self::Debited(terms),
            Status::Refunding => Self::Refunding { terms, reason },
            Status::Completed => Self::Completed(terms),
            Status::Refused => Self::Refused { terms, reason },
            Status::Compensated => Self::Compensated,
        }
    }
}
