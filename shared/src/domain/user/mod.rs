//! Users: people, and their right to be forgotten.
//!
//! Names, e-mail and address are [personal](crate::personal): they are open here, and encrypted wherever they are written.
//! Read `commands.rs`, `events.rs`, `state.rs`, `decide.rs`; `personal.rs` names what is personal; `audit.rs`, `snapshot.rs`,
//! `view.rs` and `docs.rs` are as in any domain.

mod audit;
mod commands;
mod decide;
mod docs;
mod events;
mod personal;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod values;
mod view;

pub use commands::{
    ChangeAddress, ChangeEmail, ChangeName, Command, DeactivateUser, EraseUser, ReactivateUser, RegisterUser,
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

use super::{Aggregate, CommandError, Docs, Fields, Refusal};
use crate::personal::Secret;

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
        decide::decide(state, command).map(|event| vec![event])
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
}
