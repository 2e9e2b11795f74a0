//! Loyalty points: earn, redeem, expire. An example of a domain of one's own, made by the README's recipe.
//!
//! Read `commands.rs`, `events.rs`, `state.rs`, `decide.rs`, then `view.rs`; `docs.rs` is what the API's description says.

mod commands;
mod decide;
mod docs;
pub mod earlier;
mod events;
mod state;
#[cfg(test)]
mod tests;
mod view;

use std::process::ExitCode;

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

/// Runs one of the two mains: of the earlier release where `LOYALTY_RELEASE=earlier`.
pub fn release(present: fn() -> ExitCode, earlier: fn() -> ExitCode) -> ExitCode {
    if std::env::var_os("LOYALTY_RELEASE").is_some_and(|release| release == "earlier") { earlier() } else { present() }
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
