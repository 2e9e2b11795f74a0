//! The rules.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    commands::{Command, PlaceStandingOrder},
    events::{Event, StandingOrderCancelled, StandingOrderExecuted, StandingOrderPlaced},
    state::{Order, Terms},
};
use crate::domain::Refusal;

/// An order that is so many transfers behind is ended: somebody has stopped the service for years, or placed it in the past.
const MAX_ARREARS: u32 = 1_000;

/// Why a rule refuses a command. The names are part of the contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Rejection {
    /// There is no such order.
    StandingOrderNotFound,
    /// It was placed already.
    StandingOrderAlreadyPlaced,
    /// It was cancelled.
    StandingOrderCancelled,
    /// Source and target are one.
    SameAccount,
    /// The first transfer would have been due already.
    FirstInThePast,
    /// This one is not the next.
    NotDue,
}

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "standing-order-not-found",
        title: "There is no such standing order",
        meaning: "No standing order was placed under this id.",
    },
    Refusal {
        name: "standing-order-already-placed",
        title: "The standing order was placed before",
        meaning: "A standing order was placed under this id before. Choose another id.",
    },
    Refusal {
        name: "standing-order-cancelled",
        title: "The standing order was cancelled",
        meaning: "It was cancelled, and can't be taken up again. Place another one.",
    },
    Refusal {
        name: "same-account",
        title: "Source and target are the same account",
        meaning: "A transfer moves money between two accounts: `from` and `to` must differ.",
    },
    Refusal {
        name: "first-in-the-past",
        title: "The first transfer would be in the past",
        meaning: "`first_at` lies before the command. Leave it out to begin at once.",
    },
    Refusal {
        name: "not-due",
        title: "This transfer is not the next one",
        meaning: "The order has requested it already, or has ended. Only Millrace itself is answered so.",
    },
];

pub(super) fn decide(order: &Order, command: &Command, at: Timestamp) -> Result<Event, Rejection> {
    match (order, command) {
        (Order::Unknown, Command::PlaceStandingOrder(place)) => placed(place, at),
        (Order::Unknown, _) => Err(Rejection::StandingOrderNotFound),
        (_, Command::PlaceStandingOrder(_)) => Err(Rejection::StandingOrderAlreadyPlaced),
        (Order::Cancelled, _) => Err(Rejection::StandingOrderCancelled),
        (Order::Active { terms, executed }, Command::ExecuteStandingOrder(execute)) => {
            if executed.checked_add(1) != Some(execute.number) {
                return Err(Rejection::NotDue);
            }
            match terms.due(execute.number.saturating_add(MAX_ARREARS)).is_some_and(|due| due < at) {
                true => Ok(Event::StandingOrderCancelled(StandingOrderCancelled {})),
                false => Ok(self::executed(terms, execute.number)),
            }
        }
        (Order::Active { .. }, Command::CancelStandingOrder(_)) => {
            Ok(Event::StandingOrderCancelled(StandingOrderCancelled {}))
        }
    }
}

fn placed(place: &PlaceStandingOrder, at: Timestamp) -> Result<Event, Rejection> {
    if place.from == place.to {
        return Err(Rejection::SameAccount);
    }
    if place.first_at.is_some_and(|first_at| first_at < at) {
        return Err(Rejection::FirstInThePast);
    }
    Ok(Event::StandingOrderPlaced(StandingOrderPlaced {
        from: place.from.clone().into(),
        to: place.to.clone().into(),
        amount_minor: place.amount_minor.minor(),
        currency: place.currency.code().to_owned(),
        reference: place.reference.clone().map(String::from),
        every: place.every,
        first_at: place.first_at.unwrap_or(at),
    }))
}

fn executed(terms: &Terms, number: u32) -> Event {
    let Terms { from, to, amount_minor, currency, reference, .. } = terms.clone();
    Event::StandingOrderExecuted(StandingOrderExecuted {
        number,
        from,
        to,
        amount_minor,
        currency,
        reference,
        next_at: number.checked_add(1).and_then(|next| terms.due(next)),
    })
}
