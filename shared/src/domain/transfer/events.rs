//! What happens to transfers. These names are the stored format: see `schemas/events`; they never change.
//!
//! An event holds all that the process needs to go on from it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{docs, process::Step};
use crate::records;

records! {
    /// A fact about one transfer.
    pub enum Event in "millrace.transfer.events" {
        /// It is to be done.
        TransferRequested { TransferRequested = "schemas/events/TransferRequested.v1.avsc" },
        /// The source has paid.
        TransferDebited { TransferDebited = "schemas/events/TransferDebited.v1.avsc" },
        /// The target was paid.
        TransferCompleted { TransferCompleted = "schemas/events/TransferCompleted.v1.avsc" },
        /// The source refused.
        TransferRefused { TransferRefused = "schemas/events/TransferRefused.v1.avsc" },
        /// The target refused, or the source paid late.
        RefundOrdered { RefundOrdered = "schemas/events/RefundOrdered.v1.avsc" },
        /// The source has its money back.
        TransferCompensated { TransferCompensated = "schemas/events/TransferCompensated.v1.avsc" },
        /// What it waits for was sent once more.
        TransferRetried { TransferRetried = "schemas/events/TransferRetried.v1.avsc" },
    }
}

/// A transfer is to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferRequested {
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// How much, in minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What for.
    #[schema(required)]
    pub reference: Option<String>,
}

/// The source has paid, and the target is to be paid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferDebited {
    /// Id of the account that has paid.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// How much, in minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
}

/// The target was paid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferCompleted {
    /// Id of the account that has paid. Both need to remember it no longer.
    pub from: String,
    /// Id of the account that was paid.
    pub to: String,
}

/// The source refused, and nothing has moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferRefused {
    /// Name of the problem.
    pub reason: String,
}

/// The source is to get its money back: the target refused, or the source has paid after it had refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RefundOrdered {
    /// Id of the account that has paid.
    pub from: String,
    /// Name of the problem.
    pub reason: String,
    /// Whether the transfer was refused already: the source refused once, forgot it, and paid when it was asked again.
    pub late: bool,
}

/// The source has its money back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferCompensated {
    /// Name of the problem for which an account refused.
    pub reason: String,
}

/// What the transfer waits for was sent once more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferRetried {
    /// What.
    #[schema(schema_with = docs::step)]
    pub step: Step,
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// How much, in minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
}
