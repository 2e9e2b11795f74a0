//! Reservations of e-mail addresses: what makes an address unique among users.
//!
//! An address is an aggregate, so that all who want it come one after the other. Its id is a keyed hash of the address
//! ([`id_of`]), so that nothing personal lies in a key. A user asks here before their command is accepted
//! ([`UserAccount`] has `ASKS`), confirms afterwards, and releases what they leave. Read `commands.rs`,
//! `events.rs`, `state.rs`, `decide.rs`, then `process.rs`: what becomes of a reservation that nobody confirms.

mod audit;
mod commands;
mod decide;
mod docs;
mod events;
mod process;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod view;

pub use commands::{Command, ConfirmReservation, LookIntoReservation, ReleaseReservation, ReserveEmail, SettleClaim};
pub use decide::Rejection;
pub use events::{EmailReserved, Event, HolderAsked, ReservationConfirmed, ReservationReleased};
pub use snapshot::Snapshot;
pub use state::{Held, Reservation};
pub use view::{ReservationView, Reservations, Status};

use super::{
    Aggregate, CommandError, Docs, Fields, Refusal,
    process::{Answer, Errand},
    user::UserAccount,
};
use crate::personal::HashSecret;

/// What `email-taken` is called where it is answered.
pub const TAKEN: &str = "email-taken";

/// Id of an address' reservation. `email` is [normalised](super::user::Email::normalised).
pub fn id_of(email: &str, secret: &HashSecret) -> String {
    secret.hash("email-reservation", email.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The aggregate type `email-reservation`.
#[derive(Debug)]
pub struct EmailReservation;

impl Aggregate for EmailReservation {
    const TYPE: &'static str = "email-reservation";
    const COLLECTION: &'static str = "email-reservations";
    const REFUSALS: &'static [Refusal] = decide::REFUSALS;
    // Users send them, as processes.
    const COMMANDS: &'static [&'static str] = &[];

    const STATE_VERSION: u32 = 1;
    type State = Reservation;
    type Snapshot = Snapshot;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Projection = Reservations;

    fn command(_name: &str, _fields: Fields) -> Result<Command, CommandError> {
        Err(CommandError::Unknown)
    }

    fn decide(state: &Reservation, command: &Command, _at: jiff::Timestamp) -> Result<Vec<Event>, Rejection> {
        decide::decide(state, command)
    }

    fn evolve(state: &mut Reservation, event: &Event) {
        state.evolve(event);
    }

    fn audit(state: &Reservation, event: &Event) -> Result<(), String> {
        audit::audit(state, event)
    }

    fn docs() -> Docs {
        docs::docs()
    }

    fn sender<'a>(id: &'a str, command: &'a Command) -> Option<(&'static str, &'a str)> {
        match command {
            Command::ReserveEmail(ReserveEmail { holder, .. })
            | Command::ConfirmReservation(ConfirmReservation { holder })
            | Command::ReleaseReservation(ReleaseReservation { holder, .. }) => {
                Some((UserAccount::TYPE, holder.as_str()))
            }
            Command::LookIntoReservation(_) | Command::SettleClaim(_) => Some((Self::TYPE, id)),
        }
    }

    const IS_PROCESS: bool = true;

    fn react(id: &str, before: &Reservation, event: &Event) -> Vec<Errand> {
        process::react(id, before, event)
    }

    fn conclude(step: &str, answer: Answer<'_>) -> Option<Command> {
        process::conclude(step, answer)
    }
}
