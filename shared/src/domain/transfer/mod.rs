//! Transfers: money from one account to another, over two aggregates that know nothing of each other.
//!
//! A transfer is an aggregate, and a process: what it asks of the accounts follows on its events, and their answers come back
//! to it as commands. Read `commands.rs`, `events.rs`, `state.rs`, `decide.rs`, then `process.rs`, which moves it along;
//! `audit.rs`, `snapshot.rs`, `view.rs` and `docs.rs` are as in any domain.

mod audit;
mod commands;
mod decide;
pub(super) mod docs;
mod events;
mod process;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod values;
mod view;

pub use commands::{
    Command, CompleteTransfer, LookIntoTransfer, OrderRefund, RecordDebit, RecordRefund, RefuseTransfer,
    RequestTransfer, RetryTransfer,
};
pub use decide::Rejection;
pub use events::{
    Event, RefundOrdered, TransferCompensated, TransferCompleted, TransferDebited, TransferRefused, TransferRequested,
    TransferRetried,
};
pub use process::Step;
pub use snapshot::Snapshot;
pub use state::{Terms, Transfer};
pub use values::Reason;
pub use view::{Status, TransferView, Transfers};

use super::{
    Aggregate, CommandError, Docs, Fields, Refusal,
    process::{Answer, Errand},
};

/// The aggregate type `transfer`.
#[derive(Debug)]
pub struct MoneyTransfer;

impl Aggregate for MoneyTransfer {
    const TYPE: &'static str = "transfer";
    const COLLECTION: &'static str = "transfers";
    const REFUSALS: &'static [Refusal] = decide::REFUSALS;
    const COMMANDS: &'static [&'static str] = &["request"];

    const STATE_VERSION: u32 = 1;
    type State = Transfer;
    type Snapshot = Snapshot;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Projection = Transfers;

    fn command(name: &str, fields: Fields) -> Result<Command, CommandError> {
        commands::read(name, fields)
    }

    fn decide(state: &Transfer, command: &Command, _at: jiff::Timestamp) -> Result<Vec<Event>, Rejection> {
        decide::decide(state, command).map(|event| vec![event])
    }

    fn evolve(state: &mut Transfer, event: &Event) {
        state.evolve(event);
    }

    fn audit(state: &Transfer, event: &Event) -> Result<(), String> {
        audit::audit(state, event)
    }

    fn docs() -> Docs {
        docs::docs()
    }

    fn sender<'a>(id: &'a str, command: &'a Command) -> Option<(&'static str, &'a str)> {
        match command {
            Command::RequestTransfer(_) | Command::RetryTransfer(_) => None,
            Command::RecordDebit(_)
            | Command::RefuseTransfer(_)
            | Command::CompleteTransfer(_)
            | Command::OrderRefund(_)
            | Command::RecordRefund(_)
            | Command::LookIntoTransfer(_) => Some((Self::TYPE, id)),
        }
    }

    const IS_PROCESS: bool = true;

    fn react(id: &str, _before: &Transfer, event: &Event) -> Vec<Errand> {
        process::react(id, event)
    }

    fn conclude(step: &str, answer: Answer<'_>) -> Option<Command> {
        process::conclude(step, answer)
    }
}
