//! What moves a standing order along: its own deadline, and the transfer that is requested when it passes.
//!
//! ```text
//! StandingOrderPlaced ─── deadline: first_at ─► ExecuteStandingOrder ─► StandingOrderExecuted ─ transfer ─► RequestTransfer
//!                                                       ▲                        │
//!                                                       └── deadline: next_at ───┘
//! ```

use uuid::Uuid;

use super::{
    StandingOrder,
    commands::{Command, ExecuteStandingOrder},
    events::{Event, StandingOrderExecuted},
};
use crate::domain::{
    process::{Errand, When},
    transfer::{self, MoneyTransfer, RequestTransfer},
};

const EXECUTE: &str = "execute";

pub(super) fn react(id: &str, event: &Event) -> Vec<Errand> {
    let execute = |number, at| {
        let command = Command::ExecuteStandingOrder(ExecuteStandingOrder { number });
        Errand::deadline::<StandingOrder>(id, EXECUTE, When::At(at), command)
    };
    match event {
        Event::StandingOrderPlaced(placed) => vec![execute(1, placed.first_at)],
        Event::StandingOrderExecuted(executed) => {
            let next = executed.next_at.map(|at| execute(executed.number.saturating_add(1), at));
            request(id, executed).into_iter().chain(next).collect()
        }
        Event::StandingOrderCancelled(_) => vec![Errand::cancel::<StandingOrder>(id, EXECUTE)],
    }
}

/// Whether the accounts can pay shows in the transfer: the order asks for the next one in any case.
fn request(id: &str, executed: &StandingOrderExecuted) -> Option<Errand> {
    // What can't be read back was not written by Millrace.
    let request = RequestTransfer {
        from: executed.from.clone().try_into().ok()?,
        to: executed.to.clone().try_into().ok()?,
        amount_minor: executed.amount_minor.try_into().ok()?,
        currency: executed.currency.parse().ok()?,
        reference: executed.reference.clone().map(TryInto::try_into).transpose().ok()?,
    };
    let command = transfer::Command::RequestTransfer(request);
    Some(Errand::to::<MoneyTransfer>(&transfer_id(id, executed.number), "transfer", command))
}

/// Id of the transfer with this number of an order. An order's own id may be as long as ids can be.
pub(super) fn transfer_id(id: &str, number: u32) -> String {
    let name = format!("millrace standing-order {id} {number}");
    format!("so-{}", Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).simple())
}
