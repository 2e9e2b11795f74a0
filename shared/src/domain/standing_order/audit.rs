//! What an event must be for the log to hold the rules. Written apart from `decide`, which wrote that log.

use super::{events::Event, state::Order};

pub(super) fn audit(order: &Order, event: &Event) -> Result<(), String> {
    match (order, event) {
        (Order::Unknown, Event::StandingOrderPlaced(placed)) => {
            if placed.from == placed.to {
                return Err("an account pays itself".into());
            }
            let is_amount = (1..=1_000_000_000_000_000).contains(&placed.amount_minor);
            if is_amount { Ok(()) } else { Err(format!("{} is no amount", placed.amount_minor)) }
        }
        (Order::Unknown, _) => Err("it happened before the order was placed".into()),
        (_, Event::StandingOrderPlaced(_)) => Err("the order was placed twice".into()),
        (Order::Cancelled, _) => Err("the order had been cancelled".into()),
        (Order::Active { .. }, Event::StandingOrderCancelled(_)) => Ok(()),
        (Order::Active { terms, executed }, Event::StandingOrderExecuted(e)) => {
            if e.number != executed + 1 {
                return Err(format!("transfer {} follows on {executed}", e.number));
            }
            let same = terms.from == e.from && terms.to == e.to && terms.amount_minor == e.amount_minor;
            match same && terms.currency == e.currency && terms.reference == e.reference {
                true => Ok(()),
                false => Err("its terms are not those of the order".into()),
            }
        }
    }
}
