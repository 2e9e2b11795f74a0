//! Loyalty points: earn, redeem, expire. An example of a domain of one's own, made by the README's recipe.
//!
//! Read `commands.rs`, `events.rs`, `state.rs`, `decide.rs`, then `view.rs`; `docs.rs` is what the API's description says.

mod commands;
mod decide;
mod docs;
mod events;
mod state;
#[cfg(test)]
mod tests;
mod view;

use millrace_shared::domain::{Aggregate, CommandError, Docs, Domains, Fields, Refusal, Visitor};

pub use commands::{Command, Earn, Expire, Points, Redeem};
pub use decide::Rejection;
pub use events::{Event, PointsEarned, PointsExpired, PointsRedeemed};
pub use state::{Balance, Snapshot};
pub use view::{LoyaltyPointsViews, PointsView};

/// What the programs in `bin` serve.
#[derive(Debug)]
pub struct Served;

impl Domains for Served {
    fn visit_all(visitor: &mut impl Visitor) {
        visitor.visit::<LoyaltyPoints>();
    }
}

/// The aggregate type `loyalty-points`: one for each member.
#[derive(Debug)]
pub struct LoyaltyPoints;

impl Aggregate for LoyaltyPoints {
    const TYPE: &'static str = "loyalty-points";
    const COLLECTION: &'static str = "loyalty-points";
    const REFUSALS: &'static [Refusal] = decide::REFUSALS;
    const COMMANDS: &'static [&'static str] = &["earn", "redeem", "expire"];

    const STATE_VERSION: u32 = 1;
    type State = Balance;
    type Snapshot = Snapshot;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Projection = LoyaltyPointsViews;

    fn command(name: &str, fields: Fields) -> Result<Command, CommandError> {
        commands::read(name, fields)
    }

    fn decide(balance: &Balance, command: &Command, _at: jiff::Timestamp) -> Result<Vec<Event>, Rejection> {
        decide::decide(balance, command)
    }

    fn evolve(balance: &mut Balance, event: &Event) {
        balance.evolve(event);
    }

    fn audit(balance: &Balance, event: &Event) -> Result<(), String> {
        decide::audit(balance, event)
    }

    fn docs() -> Docs {
        docs::docs()
    }
}
