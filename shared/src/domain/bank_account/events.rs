//! What happens to bank accounts. These names are the stored format: see `schemas/events`; they never change.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::upcasts::v1;
use crate::records;

records! {
    /// A fact about one bank account.
    pub enum Event in "millrace.bank_account.events" {
        /// It was opened.
        AccountOpened { AccountOpened = "schemas/events/AccountOpened.v1.avsc" },
        /// Money was paid in.
        MoneyDeposited {
            v1::MoneyDeposited = "schemas/events/MoneyDeposited.v1.avsc",
            MoneyDeposited = "schemas/events/MoneyDeposited.v2.avsc",
        },
        /// Money was taken out.
        MoneyWithdrawn { MoneyWithdrawn = "schemas/events/MoneyWithdrawn.v1.avsc" },
        /// It was closed.
        AccountClosed { AccountClosed = "schemas/events/AccountClosed.v1.avsc" },
        /// A transfer that has moved money is remembered until it ends.
        TransferHeld { TransferHeld = "schemas/events/TransferHeld.v1.avsc" },
        /// It has ended.
        TransferReleased { TransferReleased = "schemas/events/TransferReleased.v1.avsc" },
        retired BalanceChanged { v1::BalanceChanged = "schemas/events/BalanceChanged.v1.avsc" },
    }
}

/// An account was opened with a balance of 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccountOpened {
    /// Who owns it.
    pub owner: String,
    /// ISO 4217 code of what it is kept in.
    pub currency: String,
}

/// Money was paid in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoneyDeposited {
    /// How much, in minor units.
    pub amount_minor: i64,
    /// What for.
    #[schema(required)]
    pub reference: Option<String>,
    /// By which way it came.
    #[schema(required)]
    pub channel: Option<String>,
}

/// Money was taken out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoneyWithdrawn {
    /// How much, in minor units.
    pub amount_minor: i64,
    /// What for.
    #[schema(required)]
    pub reference: Option<String>,
}

/// An account was closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccountClosed {}

/// Follows on what was moved for a transfer: until it is released the account remembers the transfer and can't be closed, and
/// keeps room for what may come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferHeld {
    /// Id of the transfer.
    pub transfer_id: String,
    /// What may come back, in minor units: what was taken out, or nothing where it was paid in.
    pub amount_minor: i64,
}

/// A transfer has arrived; or it was refunded, and this follows on the deposit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferReleased {
    /// Id of the transfer.
    pub transfer_id: String,
}
