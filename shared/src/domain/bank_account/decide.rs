//! The rules.

use serde::Serialize;

use super::{
    commands::{Command, OpenAccount},
    events::{AccountClosed, AccountOpened, Event, MoneyDeposited, MoneyWithdrawn, TransferHeld, TransferReleased},
    held::Held,
    state::{Account, Open},
    values::{CurrencyCode, MAX_BALANCE_MINOR},
};
use crate::domain::{AggregateId, Refusal};

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
    /// The account is kept in another currency than the transfer's.
    CurrencyMismatch {
        /// The account's.
        currency: String,
        /// The transfer's.
        requested: String,
    },
    /// The account takes part in a transfer that has not ended.
    TransferPending {
        /// So many transfers are under way.
        pending: i64,
    },
    /// More transfers of an account can't be under way.
    TooManyTransfers {
        /// As many can.
        limit: i64,
    },
    /// The transfer was debited before, and has not ended.
    TransferAlreadyDebited,
    /// The transfer was paid in before, and has not ended.
    TransferAlreadyCredited,
    /// Nothing is kept ready for this transfer.
    TransferNotDebited,
    /// The account takes no part in this transfer, or it has ended.
    TransferNotPending,
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
    Refusal {
        name: "currency-mismatch",
        title: "The account is kept in another currency",
        meaning: "A transfer moves money between accounts of its own currency: `currency` is the account's, `requested` \
                  the transfer's.",
    },
    Refusal {
        name: "transfer-pending",
        title: "A transfer is under way",
        meaning: "The account takes part in `pending` transfers that have not ended. Close it when they have: a transfer \
                  takes some milliseconds.",
    },
    Refusal {
        name: "too-many-transfers",
        title: "Too many transfers of the account are under way",
        meaning: "The account takes part in `limit` transfers that have not ended. Try again when some of them have.",
    },
    Refusal {
        name: "transfer-already-debited",
        title: "The transfer was debited before",
        meaning: "The money was taken out already, and the transfer has not ended. Only Millrace itself is answered so.",
    },
    Refusal {
        name: "transfer-already-credited",
        title: "The transfer was credited before",
        meaning: "The money was paid in already, and the transfer has not ended. Only Millrace itself is answered so.",
    },
    Refusal {
        name: "transfer-not-pending",
        title: "The account takes no part in the transfer",
        meaning: "Nothing is remembered of this transfer: it never came here, or it has ended. Only Millrace itself is \
                  answered so.",
    },
    Refusal {
        name: "transfer-not-debited",
        title: "The transfer was not debited",
        meaning: "Nothing is kept ready for this transfer: it was not debited, or it has ended. Only Millrace itself is \
                  answered so.",
    },
];

pub(super) fn decide(account: &Account, command: &Command) -> Result<Vec<Event>, Rejection> {
    let open = match (account, command) {
        (Account::Unopened, Command::OpenAccount(open)) => return Ok(vec![opened(open)]),
        (Account::Unopened, _) => return Err(Rejection::AccountNotFound),
        (Account::Closed, _) => return Err(Rejection::AccountClosed),
        (Account::Open(open), _) => open,
    };
    match command {
        Command::OpenAccount(_) => Err(Rejection::AccountAlreadyOpen),
        Command::Deposit(deposit) => {
            let reference = deposit.reference.clone().map(String::from);
            let channel = deposit.channel.clone().map(String::from);
            Ok(vec![paid_in(open, MoneyDeposited { amount_minor: deposit.amount_minor.minor(), reference, channel })?])
        }
        Command::Withdraw(withdraw) => {
            let reference = withdraw.reference.clone().map(String::from);
            Ok(vec![taken_out(open, withdraw.amount_minor.minor(), reference)?])
        }
        Command::CloseAccount(_) if !open.held.is_empty() => {
            Err(Rejection::TransferPending { pending: open.held.len() as i64 })
        }
        Command::CloseAccount(_) if open.balance_minor != 0 => {
            Err(Rejection::BalanceNotZero { balance_minor: open.balance_minor })
        }
        Command::CloseAccount(_) => Ok(vec![Event::AccountClosed(AccountClosed {})]),
        Command::DebitTransfer(debit) => {
            let amount_minor = debit.amount_minor.minor();
            if open.held.of(debit.transfer_id.as_str()).is_some() {
                return Err(Rejection::TransferAlreadyDebited);
            }
            room_for_one_more(open, Held::MAX_TO_PAY)?;
            same_currency(open, debit.currency)?;
            let withdrawn = taken_out(open, amount_minor, reference(&debit.transfer_id))?;
            Ok(vec![withdrawn, held(&debit.transfer_id, amount_minor)])
        }
        Command::CreditTransfer(credit) => {
            if open.held.of(credit.transfer_id.as_str()).is_some() {
                return Err(Rejection::TransferAlreadyCredited);
            }
            room_for_one_more(open, Held::MAX_TO_BE_PAID)?;
            same_currency(open, credit.currency)?;
            let deposited = paid_in(open, moved_in(credit.amount_minor.minor(), &credit.transfer_id))?;
            Ok(vec![deposited, held(&credit.transfer_id, 0)])
        }
        Command::RefundTransfer(refund) => {
            let held = open.held.of(refund.transfer_id.as_str()).filter(|amount_minor| *amount_minor > 0);
            let amount_minor = held.ok_or(Rejection::TransferNotDebited)?;
            // There is room for it: it was kept.
            let deposited = moved_in(amount_minor, &refund.transfer_id);
            Ok(vec![Event::MoneyDeposited(deposited), released(&refund.transfer_id)])
        }
        Command::SettleTransfer(settle) => match open.held.of(settle.transfer_id.as_str()) {
            Some(_) => Ok(vec![released(&settle.transfer_id)]),
            None => Err(Rejection::TransferNotPending),
        },
    }
}

fn opened(open: &OpenAccount) -> Event {
    Event::AccountOpened(AccountOpened { owner: open.owner.clone().into(), currency: open.currency.code().to_owned() })
}

fn paid_in(open: &Open, deposited: MoneyDeposited) -> Result<Event, Rejection> {
    let (balance_minor, requested_minor) = (open.balance_minor, deposited.amount_minor);
    // What may come back counts as well, so that it always can.
    if balance_minor + open.held.total_minor() + requested_minor > MAX_BALANCE_MINOR {
        let limit_minor = MAX_BALANCE_MINOR;
        return Err(Rejection::BalanceLimitExceeded { balance_minor, requested_minor, limit_minor });
    }
    Ok(Event::MoneyDeposited(deposited))
}

fn taken_out(open: &Open, requested_minor: i64, reference: Option<String>) -> Result<Event, Rejection> {
    let balance_minor = open.balance_minor;
    if requested_minor > balance_minor {
        return Err(Rejection::InsufficientFunds { balance_minor, requested_minor });
    }
    Ok(Event::MoneyWithdrawn(MoneyWithdrawn { amount_minor: requested_minor, reference }))
}

fn same_currency(open: &Open, requested: CurrencyCode) -> Result<(), Rejection> {
    match open.currency == requested {
        true => Ok(()),
        false => Err(Rejection::CurrencyMismatch {
            currency: open.currency.as_str().to_owned(),
            requested: requested.as_str().to_owned(),
        }),
    }
}

fn room_for_one_more(open: &Open, limit: usize) -> Result<(), Rejection> {
    if open.held.len() < limit { Ok(()) } else { Err(Rejection::TooManyTransfers { limit: limit as i64 }) }
}

fn reference(transfer_id: &AggregateId) -> Option<String> {
    Some(format!("transfer:{transfer_id}"))
}

fn moved_in(amount_minor: i64, transfer_id: &AggregateId) -> MoneyDeposited {
    MoneyDeposited { amount_minor, reference: reference(transfer_id), channel: None }
}

fn held(transfer_id: &AggregateId, amount_minor: i64) -> Event {
    Event::TransferHeld(TransferHeld { transfer_id: transfer_id.clone().into(), amount_minor })
}

fn released(transfer_id: &AggregateId) -> Event {
    Event::TransferReleased(TransferReleased { transfer_id: transfer_id.clone().into() })
}
