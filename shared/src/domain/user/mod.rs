//! Users: people, and their right to be forgotten.
//!
//! Names, e-mail and address are [personal](crate::personal): they are open here, and encrypted wherever they are written.
//! Read `commands.rs`, `events.rs`, `state.rs`, `decide.rs`; `personal.rs` names what is personal, and `process.rs` tells how an
//! address stays one user's alone; `audit.rs`, `snapshot.rs`, `view.rs` and `docs.rs` are as in any domain.

mod audit;
mod commands;
mod decide;
mod docs;
mod events;
mod personal;
mod process;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod upcasts;
mod values;
mod view;

pub use commands::{
    AnswerClaim, AskClaim, ChangeAddress, ChangeEmail, ChangeName, Command, DeactivateUser, EraseUser, ReactivateUser,
    RegisterUser,
};
pub use decide::Rejection;
pub use events::{
    AddressChanged, EmailChanged, Event, NameChanged, PostalAddress, UserDeactivated, UserErased, UserReactivated,
    UserRegistered,
};
pub use snapshot::Snapshot;
pub use state::{Person, User};
pub use values::{Address, Country, Email, Line, is_email};
pub use view::{Status, UserView, Users};

use super::{
    Aggregate, CommandError, Docs, Fields, Refusal,
    email_reservation::EmailReservation,
    process::{About, Answer, Errand, Question},
};
use crate::personal::{HashSecret, Secret};

/// The aggregate type `user`.
#[derive(Debug)]
pub struct UserAccount;

impl Aggregate for UserAccount {
    const TYPE: &'static str = "user";
    const COLLECTION: &'static str = "users";
    const REFUSALS: &'static [Refusal] = decide::REFUSALS;
    const COMMANDS: &'static [&'static str] =
        &["register", "change-name", "change-email", "change-address", "deactivate", "reactivate", "erase"];

    const STATE_VERSION: u32 = 1;
    type State = User;
    type Snapshot = Snapshot;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Projection = Users;

    fn command(name: &str, fields: Fields) -> Result<Command, CommandError> {
        commands::read(name, fields)
    }

    fn decide(state: &User, command: &Command, _at: jiff::Timestamp) -> Result<Vec<Event>, Rejection> {
        decide::decide(state, command)
    }

    fn evolve(state: &mut User, event: &Event) {
        state.evolve(event);
    }

    fn audit(state: &User, event: &Event) -> Result<(), String> {
        audit::audit(state, event)
    }

    fn docs() -> Docs {
        docs::docs()
    }

    const IS_PERSONAL: bool = true;

    fn personal(event: &mut Event, each: &mut dyn FnMut(&mut dyn Secret)) {
        personal::of_event(event, each);
    }

    fn personal_in_snapshot(snapshot: &mut Snapshot, each: &mut dyn FnMut(&mut dyn Secret)) {
        personal::of_snapshot(snapshot, each);
    }

    fn erases(event: &Event) -> bool {
        matches!(event, Event::UserErased(_))
    }

    fn sender<'a>(id: &'a str, command: &'a Command) -> Option<(&'static str, &'a str)> {
        match command {
            Command::AnswerClaim(_) => Some((Self::TYPE, id)),
            Command::AskClaim(ask) => Some((EmailReservation::TYPE, &ask.reservation)),
            Command::RegisterUser(_)
            | Command::ChangeName(_)
            | Command::ChangeEmail(_)
            | Command::ChangeAddress(_)
            | Command::DeactivateUser(_)
            | Command::ReactivateUser(_)
            | Command::EraseUser(_) => None,
        }
    }

    const IS_PROCESS: bool = true;

    fn react(id: &str, before: &User, event: &Event) -> Vec<Errand> {
        process::react(id, before, event)
    }

    fn conclude(step: &str, answer: Answer<'_>) -> Option<Command> {
        process::conclude(step, answer)
    }

    const ASKS: bool = true;

    fn prepare(command: &mut Command, secret: &HashSecret) {
        process::prepare(command, secret);
    }

    fn must_ask(state: &User, command: &Command) -> bool {
        process::must_ask(state, command)
    }

    fn question(id: &str, command: &Command, claim: &str) -> Option<Question> {
        process::question(id, command, claim)
    }

    fn about(command: &Command) -> Option<About<'_>> {
        process::about(command)
    }
}
