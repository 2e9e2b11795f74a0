//! The rules.

use serde::Serialize;

use super::{
    commands::{Command, RequestTransfer},
    events::{
        Event, RefundOrdered, TransferCompensated, TransferCompleted, TransferDebited, TransferRefused,
        TransferRequested, TransferRetried,
    },
    process::Step,
    state::{Terms, Transfer},
};
use crate::domain::Refusal;

/// Why a rule refuses a command. The names are part of the contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Rejection {
    /// There is no such transfer.
    TransferNotFound,
    /// The transfer was requested already.
    TransferAlreadyRequested,
    /// Source and target are one.
    SameAccount,
    /// The transfer does not wait for this.
    NotWaitedFor,
}

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "transfer-not-found",
        title: "There is no such transfer",
        meaning: "No transfer was requested under this id.",
    },
    Refusal {
        name: "transfer-already-requested",
        title: "The transfer was requested before",
        meaning: "A transfer was requested under this id before. Choose another id.",
    },
    Refusal {
        name: "same-account",
        title: "Source and target are the same account",
        meaning: "A transfer moves money between two accounts: `from` and `to` must differ.",
    },
    Refusal {
        name: "not-waited-for",
        title: "The transfer does not wait for this",
        meaning: "The transfer has gone on already, or has ended. Only Millrace itself and `transfers retry` are \
                  answered so.",
    },
];

pub(super) fn decide(transfer: &Transfer, command: &Command) -> Result<Event, Rejection> {
    match (transfer, command) {
        (Transfer::Unknown, Command::RequestTransfer(request)) => requested(request),
        (Transfer::Unknown, _) => Err(Rejection::TransferNotFound),
        (_, Command::RequestTransfer(_)) => Err(Rejection::TransferAlreadyRequested),
        (Transfer::Requested(terms), Command::RecordDebit(_)) => {
            let Terms { from, to, amount_minor, currency } = terms.clone();
            Ok(Event::TransferDebited(TransferDebited { from, to, amount_minor, currency }))
        }
        (Transfer::Requested(_), Command::RefuseTransfer(refuse)) => {
            Ok(Event::TransferRefused(TransferRefused { reason: refuse.reason.clone().into() }))
        }
        (Transfer::Refused { terms, reason }, Command::RecordDebit(_)) => Ok(refund(terms, reason.clone(), true)),
        (Transfer::Debited(terms), Command::CompleteTransfer(_)) => {
            Ok(Event::TransferCompleted(TransferCompleted { from: terms.from.clone(), to: terms.to.clone() }))
        }
        (Transfer::Debited(terms), Command::OrderRefund(order)) => {
            Ok(refund(terms, order.reason.clone().into(), false))
        }
        (Transfer::Refunding { reason, .. }, Command::RecordRefund(_)) => {
            Ok(Event::TransferCompensated(TransferCompensated { reason: reason.clone() }))
        }
        (Transfer::Requested(terms), Command::RetryTransfer(_)) => Ok(retried(Step::Debit, terms)),
        (Transfer::Debited(terms), Command::RetryTransfer(_)) => Ok(retried(Step::Credit, terms)),
        (Transfer::Refunding { terms, .. }, Command::RetryTransfer(_)) => Ok(retried(Step::Refund, terms)),
        (Transfer::Completed(terms), Command::RetryTransfer(_)) => Ok(retried(Step::Settle, terms)),
        (Transfer::Debited(terms), Command::LookIntoTransfer(_)) => Ok(retried(Step::Credit, terms)),
        (Transfer::Refunding { terms, .. }, Command::LookIntoTransfer(_)) => Ok(retried(Step::Refund, terms)),
        (
            _,
            Command::RecordDebit(_)
            | Command::RefuseTransfer(_)
            | Command::CompleteTransfer(_)
            | Command::OrderRefund(_)
            | Command::RecordRefund(_)
            | Command::RetryTransfer(_)
            | Command::LookIntoTransfer(_),
        ) => Err(Rejection::NotWaitedFor),
    }
}

fn requested(request: &RequestTransfer) -> Result<Event, Rejection> {
    if request.from == request.to {
        return Err(Rejection::SameAccount);
    }
    Ok(Event::TransferRequested(TransferRequested {
        from: request.from.clone().into(),
        to: request.to.clone().into(),
        amount_minor: request.amount_minor.minor(),
        currency: request.currency.code().to_owned(),
        reference: request.reference.clone().map(String::from),
    }))
}

fn refund(terms: &Terms, reason: String, late: bool) -> Event {
    Event::RefundOrdered(RefundOrdered { from: terms.from.clone(), reason, late })
}

fn retried(step: Step, terms: &Terms) -> Event {
    let Terms { from, to, amount_minor, currency } = terms.clone();
    Event::TransferRetried(TransferRetried { step, from, to, amount_minor, currency })
}
