//! What a decision needs to know of an account's past.

use serde::Serialize;

use super::events::Event;

/// An account as the rules see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Account {
    /// Nothing has happened yet.
    #[default]
    Unopened,
    /// It can be used.
    Open {
        /// Minor units.
        balance_minor: i64,
    },
    /// Nothing can happen any more.
    Closed,
}

impl Account {
    /// The state after an event. Events are facts: nothing is checked here.
    pub fn evolve(&mut self, event: &Event) {
        *self = match (&*self, event) {
            (_, Event::AccountOpened(_)) => Self::Open { balance_minor: 0 },
            (Self::Open { balance_minor }, Event::MoneyDeposited(deposited)) => {
                Self::Open { balance_minor: balance_minor + deposited.amount_minor }
            }
            (Self::Open { balance_minor }, Event::MoneyWithdrawn(withdrawn)) => {
                Self::Open { balance_minor: balance_minor - withdrawn.amount_minor }
            }
            (_, Event::AccountClosed(_)) => Self::Closed,
            (Self::Unopened | Self::Closed, Event::MoneyDeposited(_) | Event::MoneyWithdrawn(_)) => return,
        };
    }
}
