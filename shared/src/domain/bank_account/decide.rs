//! The rules.

use serde::Serialize;

use super::{
    commands::{Command, OpenAccount},
    events::{AccountClosed, AccountOpened, Event, MoneyDeposited, MoneyWithdrawn},
    state::Account,
    values::MAX_BALANCE_MINOR,
};
use crate::domain::Refusal;

/// Why a rule refuses a command. The names are part of the contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Rejection {
    /// There is no such account.
    AccountNotFound,
    /// The account is there already.
    AccountAlreadyOpen,
    /// The account was closed.
    AccountClosed,
    /// The balance does not cover the withdrawal.
    InsufficientFunds {
        /// What is there, in minor units.
        balance_minor: i64,
        /// What was asked for, in minor units.
        requested_minor: i64,
    },
    /// The balance would grow beyond what JavaScript reads exactly.
    BalanceLimitExceeded {
        /// What is there, in minor units.
        balance_minor: i64,
        /// What was to be paid in, in minor units.
        requested_minor: i64,
        /// The limit, in minor units.
        limit_minor: i64,
    },
    /// Only an empty account can be closed.
    BalanceNotZero {
        /// What is there, in minor units.
        balance_minor: i64,
    },
}

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "account-not-found",
        title: "There is no such account",
        meaning: "No account was opened under this id. Open it first, or mend the id.",
    },
    Refusal {
        name: "account-already-open",
        title: "The account is already open",
        meaning: "An account was opened under this id before. Choose another id.",
    },
    Refusal {
        name: "account-closed",
        title: "The account is closed",
        meaning: "A closed account takes no commands any more, and its id can't be used again.",
    },
    Refusal {
        name: "insufficient-funds",
        title: "The balance does not cover the amount",
        meaning: "Accounts can't be overdrawn: `balance_minor` is what is there, `requested_minor` what was asked for.",
    },
    Refusal {
        name: "balance-limit-exceeded",
        title: "The balance would exceed its limit",
        meaning: "A balance is at most 9,000,000,000,000,000 minor units.",
    },
    Refusal {
        name: "balance-not-zero",
        title: "The balance is not zero",
        meaning: "Only an empty account can be closed: take out `balance_minor` first.",
    },
];

pub(super) fn decide(account: &Account, command: &Command) -> Result<Vec<Event>, Rejection> {
    let balance_minor = match (account, command) {
        (Account::Unopened, Command::OpenAccount(open)) => return Ok(vec![opened(open)]),
        (Account::Unopened, Command::Deposit(_) | Command::Withdraw(_) | Command::CloseAccount(_)) => {
            return Err(Rejection::AccountNotFound);
        }
        (Account::Closed, _) => return Err(Rejection::AccountClosed),
        (Account::Open { balance_minor }, _) => *balance_minor,
    };
    let event = match command {
        Command::OpenAccount(_) => return Err(Rejection::AccountAlreadyOpen),
        Command::Deposit(deposit) => {
            let requested_minor = deposit.amount_minor.minor();
            if balance_minor + requested_minor > MAX_BALANCE_MINOR {
                return Err(Rejection::BalanceLimitExceeded {
                    balance_minor,
                    requested_minor,
                    limit_minor: MAX_BALANCE_MINOR,
                });
            }
            Event::MoneyDeposited(MoneyDeposited {
                amount_minor: requested_minor,
                reference: deposit.reference.clone().map(String::from),
            })
        }
        Command::Withdraw(withdraw) => {
            let requested_minor = withdraw.amount_minor.minor();
            if requested_minor > balance_minor {
                return Err(Rejection::InsufficientFunds { balance_minor, requested_minor });
            }
            Event::MoneyWithdrawn(MoneyWithdrawn {
                amount_minor: requested_minor,
                reference: withdraw.reference.clone().map(String::from),
            })
        }
        Command::CloseAccount(_) if balance_minor != 0 => return Err(Rejection::BalanceNotZero { balance_minor }),
        Command::CloseAccount(_) => Event::AccountClosed(AccountClosed {}),
    };
    Ok(vec![event])
}

fn opened(open: &OpenAccount) -> Event {
    Event::AccountOpened(AccountOpened { owner: open.owner.clone().into(), currency: open.currency.code().to_owned() })
}
