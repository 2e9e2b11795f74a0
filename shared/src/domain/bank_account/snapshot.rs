//! An account's state as it lies in the snapshot topic and in the partition store.

use serde::{Deserialize, Serialize};

use super::{held::Held, state, values::CurrencyCode};
use crate::records;

records! {
    /// The state of an account.
    pub enum Snapshot in "millrace.bank_account.snapshots" {
        /// The only record there is.
        Account {
            v1::Account = "schemas/snapshots/Account.v1.avsc",
            Account = "schemas/snapshots/Account.v2.avsc",
        },
    }
}

/// The state of an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Which of the states.
    pub status: Status,
    /// Minor units; 0 unless it is open.
    pub balance_minor: i64,
    /// ISO 4217 code; empty unless it is open.
    pub currency: String,
    /// Transfers that it takes part in and that have not ended.
    pub held: Vec<HeldTransfer>,
}

/// A transfer that has not ended, and what may come back of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldTransfer {
    /// Id of the transfer.
    pub transfer_id: String,
    /// Minor units.
    pub amount_minor: i64,
}

/// Names of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing has happened yet.
    Unopened,
    /// It can be used.
    Open,
    /// Nothing can happen any more.
    Closed,
}

/// Before there were transfers. It lacks the currency, so states are built from the events instead: see `STATE_VERSION`.
mod v1 {
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub(super) struct Account {
        status: super::Status,
        balance_minor: i64,
    }

    impl From<Account> for super::Account {
        fn from(Account { status, balance_minor }: Account) -> Self {
            Self { status, balance_minor, currency: String::new(), held: Vec::new() }
        }
    }
}

impl From<&state::Account> for Snapshot {
    fn from(state: &state::Account) -> Self {
        let of = |status| Account { status, balance_minor: 0, currency: String::new(), held: Vec::new() };
        Self::Account(match state {
            state::Account::Unopened => of(Status::Unopened),
            state::Account::Closed => of(Status::Closed),
            state::Account::Open(open) => Account {
                status: Status::Open,
                balance_minor: open.balance_minor,
                currency: open.currency.as_str().to_owned(),
                held: open
                    .held
                    .iter()
                    .map(|(id, amount_minor)| HeldTransfer { transfer_id: id.to_owned(), amount_minor })
                    .collect(),
            },
        })
    }
}

impl From<Snapshot> for state::Account {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot::Account(Account { status, balance_minor, currency, held }) = snapshot;
        match status {
            Status::Unopened => Self::Unopened,
            Status::Closed => Self::Closed,
            Status::Open => Self::Open(state::Open {
                balance_minor,
                currency: CurrencyCode::from(currency.as_str()),
                held: held.iter().map(|held| (held.transfer_id.as_str(), held.amount_minor)).collect::<Held>(),
            }),
        }
    }
}
