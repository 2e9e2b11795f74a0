//! What earlier releases wrote, and what has become of it: each version converts into the next one.
//!
//! These structs are as stored as their schemas; they are never changed, and never removed.

use super::{commands, events};

/// Versions as they were first.
pub mod v1 {
    use serde::{Deserialize, Serialize};

    use super::super::values::{Amount, Reference};

    /// Up to when deposits had a channel.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct Deposit {
        /// How much.
        pub amount_minor: Amount,
        /// What for.
        pub reference: Option<Reference>,
    }

    /// Up to when deposits had a channel.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct MoneyDeposited {
        /// How much, in minor units.
        pub amount_minor: i64,
        /// What for.
        pub reference: Option<String>,
    }

    /// A deposit or a withdrawal, told apart by the sign, before there was an event of its own for each.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct BalanceChanged {
        /// By how much, in minor units.
        pub by_minor: i64,
        /// What for.
        pub reference: Option<String>,
    }
}

impl From<v1::Deposit> for commands::Deposit {
    fn from(v1::Deposit { amount_minor, reference }: v1::Deposit) -> Self {
        Self { amount_minor, reference, channel: None }
    }
}

impl From<v1::MoneyDeposited> for events::MoneyDeposited {
    fn from(v1::MoneyDeposited { amount_minor, reference }: v1::MoneyDeposited) -> Self {
        Self { amount_minor, reference, channel: None }
    }
}

/// Replaced by two events, one for each direction.
impl From<v1::BalanceChanged> for events::Event {
    fn from(v1::BalanceChanged { by_minor, reference }: v1::BalanceChanged) -> Self {
        if by_minor < 0 {
            // There is no such amount, but a fold must not panic at it.
            let amount_minor = by_minor.saturating_neg();
            return Self::MoneyWithdrawn(events::MoneyWithdrawn { amount_minor, reference });
        }
        Self::MoneyDeposited(events::MoneyDeposited { amount_minor: by_minor, reference, channel: None })
    }
}
