//! Standing orders: a transfer again and again, every month, day or minute.
//!
//! The showpiece of deadlines: an order is an aggregate, and a process that sets itself a deadline after each of its events.
//! When it passes, a transfer is requested; what becomes of that is in the transfer's view. An order that could not be executed
//! in time, since nothing ran, makes up for it, transfer by transfer. Read `commands.rs`, `events.rs`, `state.rs`, `decide.rs`, then
//! `process.rs`.

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

pub use commands::{CancelStandingOrder, Command, ExecuteStandingOrder, PlaceStandingOrder};
pub use decide::Rejection;
pub use events::{Event, StandingOrderCancelled, StandingOrderExecuted, StandingOrderPlaced};
pub use snapshot::Snapshot;
pub use state::{Every, Order, Terms};
pub use view::{StandingOrderView, StandingOrders, Status};

use super::{Aggregate, CommandError, Docs, Fields, Refusal, process::Errand};

/// The aggregate type `standing-order`.
#[derive(Debug)]
pub struct StandingOrder;

impl Aggregate for StandingOrder {
    const TYPE: &'static str = "standing-order";
    const COLLECTION: &'static str = "standing-orders";
    const REFUSALS: &'static [Refusal] = decide::REFUSALS;
    const COMMANDS: &'static [&'static str] = &["place", "cancel"];

    const STATE_VERSION: u32 = 1;
    type State = Order;
    type Snapshot = Snapshot;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Projection = StandingOrders;

    fn command(name: &str, fields: Fields) -> Result<Command, CommandError> {
        commands::read(name, fields)
    }

    fn decide(state: &Order, command: &Command, at: jiff::Timestamp) -> Result<Vec<Event>, Rejection> {
        decide::decide(state, command, at).map(|event| vec![event])
    }

    fn evolve(state: &mut Order, event: &Event) {
        state.evolve(event);
    }

    fn audit(state: &Order, event: &Event) -> Result<(), String> {
        audit::audit(state, event)
    }

    fn docs() -> Docs {
        docs::docs()
    }

    fn sender<'a>(id: &'a str, command: &'a Command) -> Option<(&'static str, &'a str)> {
        matches!(command, Command::ExecuteStandingOrder(_)).then_some((Self::TYPE, id))
    }

    const IS_PROCESS: bool = true;

    fn react(id: &str, _before: &Order, event: &Event) -> Vec<Errand> {
        process::react(id, event)
    }
}
