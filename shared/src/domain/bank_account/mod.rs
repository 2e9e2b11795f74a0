//! Bank accounts: open, pay in, take out, close.
//!
//! Read `commands.rs`, `events.rs`, `state.rs` (with `held.rs`), `decide.rs`, `audit.rs`, `snapshot.rs`, then `view.rs` and
//! `owners.rs`; `upcasts.rs` is what commands and events were in earlier releases, `docs.rs` what the API's description says
//! of them.

mod audit;
mod commands;
mod decide;
pub(super) mod docs;
mod events;
mod held;
mod owners;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod upcasts;
mod values;
mod view;

pub use commands::{
    CloseAccount, Command, CreditTransfer, DebitTransfer, Deposit, OpenAccount, RefundTransfer, SettleTransfer,
    Withdraw,
};
pub use decide::Rejection;
pub use events::{AccountClosed, AccountOpened, Event, MoneyDeposited, MoneyWithdrawn, TransferHeld, TransferReleased};
pub use held::Held;
pub use owners::{Holding, Owned, Owners};
pub use snapshot::Snapshot;
pub use state::{Account, Open};
pub use upcasts::v1;
pub use values::{Amount, Channel, Currency, CurrencyCode, MAX_BALANCE_MINOR, Owner, Reference};
pub use view::{AccountView, BankAccounts, Status};

use super::{Aggregate, CommandError, Docs, Fields, Refusal};

/// The aggregate type `bank-account`.
#[derive(Debug)]
pub struct BankAccount;

impl Aggregate for BankAccount {
    const TYPE: &'static str = "bank-account";
    const COLLECTION: &'static str = "bank-accounts";
    const REFUSALS: &'static [Refusal] = decide::REFUSALS;
    const COMMANDS: &'static [&'static str] = &["open", "deposit", "withdraw", "close"];

    const STATE_VERSION: u32 = 2;
    type State = Account;
    type Snapshot = Snapshot;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Projection = BankAccounts;

    fn command(name: &str, fields: Fields) -> Result<Command, CommandError> {
        commands::read(name, fields)
    }

    fn decide(state: &Account, command: &Command, _at: jiff::Timestamp) -> Result<Vec<Event>, Rejection> {
        decide::decide(state, command)
    }

    fn evolve(state: &mut Account, event: &Event) {
        state.evolve(event);
    }

    fn audit(state: &Account, event: &Event) -> Result<(), String> {
        audit::audit(state, event)
    }

    fn docs() -> Docs {
        docs::docs()
    }

    fn sender<'a>(_: &'a str, command: &'a Command) -> Option<(&'static str, &'a str)> {
        commands::transfer_of(command).map(|id| (super::transfer::MoneyTransfer::TYPE, id.as_str()))
    }
}
