//! What becomes of a reservation that nobody confirms: the user is asked, who may have been refused, or erased, meanwhile.
//!
//! ```text
//! EmailReserved ─── deadline ─► LookIntoReservation ─► HolderAsked ─ ask ─► user ─┬─ has it ──────► ReservationConfirmed
//!                                        ▲                  │                    ├─ has it not ──► ReservationReleased
//!                                        └──── deadline ────┘                    └─ can't say yet
//! ```

use std::time::Duration;

use super::{
    EmailReservation,
    commands::{Command, LookIntoReservation, SettleClaim},
    events::Event,
    state::Reservation,
};
use crate::domain::{
    process::{Answer, Errand, When, Which},
    user::{self, AskClaim, UserAccount},
};

/// A reservation that was not confirmed for so long is looked into.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTO: &str = "look-into";
const ASK: &str = "ask";

pub(super) fn react(id: &str, before: &Reservation, event: &Event) -> Vec<Errand> {
    let look_into = || {
        let command = Command::LookIntoReservation(LookIntoReservation {});
        Errand::deadline::<EmailReservation>(id, LOOK_INTO, When::After(PATIENCE), command)
    };
    match event {
        Event::EmailReserved(_) => vec![look_into()],
        Event::HolderAsked(_) => {
            let ask = before.held().map(|held| {
                let command =
                    user::Command::AskClaim(AskClaim { reservation: id.to_owned(), claim: held.claim.clone() });
                let which = Which::Of(held.claim.clone());
                Errand::to::<UserAccount>(&held.holder, ASK, command).that_is(which)
            });
            ask.into_iter().chain([look_into()]).collect()
        }
        Event::ReservationConfirmed(_) | Event::ReservationReleased(_) => {
            vec![Errand::cancel::<EmailReservation>(id, LOOK_INTO)]
        }
    }
}

pub(super) fn conclude(step: &str, answer: Answer<'_>) -> Option<Command> {
    let (name, claim) = step.split_once('-')?;
    let is_held = matches!(answer, Answer::Accepted);
    (name == ASK).then(|| Command::SettleClaim(SettleClaim { claim: claim.to_owned(), is_held }))
}
