//! What moves a transfer along: which account is asked after which event, and what its answer means.
//!
//! ```text
//! TransferRequested ─ debit ─► source ─┬─ accepted ─► TransferDebited ─ credit ─► target ─┬─ accepted ─► TransferCompleted
//!                                      └─ refused ──► TransferRefused                     └─ refused ──► RefundOrdered
//! TransferCompleted ─ settle ─► source                  RefundOrdered ─ refund ─► source ─── accepted ─► TransferCompensated
//! ```

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    commands::{Command, CompleteTransfer, OrderRefund, RecordDebit, RecordRefund, RefuseTransfer},
    events::Event,
};
use crate::domain::{
    bank_account::{
        self, Amount, BankAccount, CreditTransfer, Currency, DebitTransfer, RefundTransfer, SettleTransfer,
    },
    process::{Answer, Errand},
};

/// What an account is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The source is to pay.
    Debit,
    /// The target is to be paid.
    Credit,
    /// The source is to get its money back.
    Refund,
    /// The source needs to keep nothing ready any more.
    Settle,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Debit => "debit",
            Self::Credit => "credit",
            Self::Refund => "refund",
            Self::Settle => "settle",
        }
    }
}

/// What is asked of which account after an event.
pub(super) fn react(id: &str, event: &Event) -> Vec<Errand> {
    let errand = match event {
        Event::TransferRequested(requested) => debit(id, &requested.from, requested.amount_minor, &requested.currency),
        Event::TransferDebited(debited) => credit(id, &debited.to, debited.amount_minor, &debited.currency),
        Event::TransferCompleted(completed) => Some(settle(id, &completed.from)),
        Event::RefundOrdered(ordered) => Some(refund(id, &ordered.from)),
        Event::TransferRefused(_) | Event::TransferCompensated(_) => None,
        Event::TransferRetried(retried) => match retried.step {
            Step::Debit => debit(id, &retried.from, retried.amount_minor, &retried.currency),
            Step::Credit => credit(id, &retried.to, retried.amount_minor, &retried.currency),
            Step::Refund => Some(refund(id, &retried.from)),
            Step::Settle => Some(settle(id, &retried.from)),
        },
    };
    errand.into_iter().collect()
}

/// What an account's answer means for the transfer.
pub(super) fn conclude(step: &str, answer: Answer<'_>) -> Option<Command> {
    match (step, answer) {
        // It was remembered for longer than its answer.
        ("debit", Answer::Accepted | Answer::Refused("transfer-already-debited")) => {
            Some(Command::RecordDebit(RecordDebit {}))
        }
        ("debit", Answer::Refused(reason)) => {
            Some(Command::RefuseTransfer(RefuseTransfer { reason: reason.to_owned() }))
        }
        ("credit", Answer::Accepted) => Some(Command::CompleteTransfer(CompleteTransfer {})),
        ("credit", Answer::Refused(reason)) => Some(Command::OrderRefund(OrderRefund { reason: reason.to_owned() })),
        ("refund", Answer::Accepted) => Some(Command::RecordRefund(RecordRefund {})),
        // A refund is never refused: the source has remembered it, and kept room for it. Nobody waits for a settlement.
        _ => None,
    }
}

/// `None` for terms that no request could have: somebody else has written this event.
fn debit(id: &str, from: &str, amount_minor: i64, currency: &str) -> Option<Errand> {
    let (amount_minor, currency) = (Amount::try_from(amount_minor).ok()?, Currency::from_str(currency).ok()?);
    let debit = DebitTransfer { transfer_id: id.to_owned(), amount_minor, currency };
    Some(errand(from, Step::Debit, bank_account::Command::DebitTransfer(debit)))
}

fn credit(id: &str, to: &str, amount_minor: i64, currency: &str) -> Option<Errand> {
    let (amount_minor, currency) = (Amount::try_from(amount_minor).ok()?, Currency::from_str(currency).ok()?);
    let credit = CreditTransfer { transfer_id: id.to_owned(), amount_minor, currency };
    Some(errand(to, Step::Credit, bank_account::Command::CreditTransfer(credit)))
}

fn refund(id: &str, from: &str) -> Errand {
    let refund = RefundTransfer { transfer_id: id.to_owned() };
    errand(from, Step::Refund, bank_account::Command::RefundTransfer(refund))
}

fn settle(id: &str, from: &str) -> Errand {
    let settle = SettleTransfer { transfer_id: id.to_owned() };
    errand(from, Step::Settle, bank_account::Command::SettleTransfer(settle))
}

fn errand(account: &str, step: Step, command: bank_account::Command) -> Errand {
    Errand::to::<BankAccount>(account, step.name(), command)
}
