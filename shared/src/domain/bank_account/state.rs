//! What a decision needs to know of an account's past.

use serde::Serialize;

use super::{events::Event, held::Held, values::CurrencyCode};

/// An account as the rules see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Account {
    /// Nothing has happened yet.
    #[default]
    Unopened,
    /// It can be used.
    Open(Open),
    /// Nothing can happen any more.
    Closed,
}

/// An account that can be used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Open {
    /// Minor units.
    pub balance_minor: i64,
    /// What it is kept in.
    pub currency: CurrencyCode,
    /// Transfers that it takes part in and that have not ended.
    #[serde(skip_serializing_if = "Held::is_empty")]
    pub held: Held,
}

impl Account {
    /// The state after an event. Events are facts: nothing is checked here.
    pub fn evolve(&mut self, event: &Event) {
        match (&mut *self, event) {
            (_, Event::AccountOpened(opened)) => {
                let currency = CurrencyCode::from(opened.currency.as_str());
                *self = Self::Open(Open { balance_minor: 0, currency, held: Held::default() });
            }
            (_, Event::AccountClosed(_)) => *self = Self::Closed,
            (Self::Open(open), Event::MoneyDeposited(deposited)) => open.balance_minor += deposited.amount_minor,
            (Self::Open(open), Event::MoneyWithdrawn(withdrawn)) => open.balance_minor -= withdrawn.amount_minor,
            (Self::Open(open), Event::TransferHeld(held)) => open.held.insert(&held.transfer_id, held.amount_minor),
            (Self::Open(open), Event::TransferReleased(released)) => open.held.remove(&released.transfer_id),
            (
                Self::Unopened | Self::Closed,
                Event::MoneyDeposited(_)
                | Event::MoneyWithdrawn(_)
                | Event::TransferHeld(_)
                | Event::TransferReleased(_),
            ) => {}
        }
    }
}
