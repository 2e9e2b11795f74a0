//! An account's state as it lies in the snapshot topic and in the partition store.

use serde::{Deserialize, Serialize};

use super::state;
use crate::records;

records! {
    /// The state of an account.
    pub enum Snapshot in "millrace.bank_account.snapshots" {
        /// The only record there is.
        Account { Account = "schemas/snapshots/Account.v1.avsc" },
    }
}

/// The state of an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Which of the states.
    pub status: Status,
    /// Minor units; 0 unless it is open.
    pub balance_minor: i64,
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

impl From<&state::Account> for Snapshot {
    fn from(state: &state::Account) -> Self {
        let (status, balance_minor) = match state {
            state::Account::Unopened => (Status::Unopened, 0),
            state::Account::Open { balance_minor } => (Status::Open, *balance_minor),
            state::Account::Closed => (Status::Closed, 0),
        };
        Self::Account(Account { status, balance_minor })
    }
}

impl From<Snapshot> for state::Account {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot::Account(Account { status, balance_minor }) = snapshot;
        match status {
            Status::Unopened => Self::Unopened,
            Status::Open => Self::Open { balance_minor },
            Status::Closed => Self::Closed,
        }
    }
}
