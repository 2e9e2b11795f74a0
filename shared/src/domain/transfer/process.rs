//! What moves a transfer along: which account is asked after which event, and what its answer means.
//!
//! ```text
//! TransferRequested ─ debit ─► source ─┬─ accepted ─► TransferDebited ─ credit ─► target ─┬─ accepted ─► TransferCompleted
//!                                      └─ refused ──► TransferRefused                     └─ refused ──► RefundOrdered
//! TransferCompleted ─ settle ─► both                    RefundOrdered ─ refund ─► source ─── accepted ─► TransferCompensated
//! ```
//! While money is under way there is a deadline: when it passes, the account is asked once more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    MoneyTransfer,
    commands::{Command, CompleteTransfer, LookIntoTransfer, OrderRefund, RecordDebit, RecordRefund, RefuseTransfer},
    events::{Event, TransferRetried},
    values::Reason,
};
use crate::domain::{
    AggregateId,
    bank_account::{
        self, Amount, BankAccount, CreditTransfer, CurrencyCode, DebitTransfer, RefundTransfer, SettleTransfer,
    },
    process::{Answer, Errand, When},
};

/// An account that has not answered for so long, while money is under way, is asked once more.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_INTO: &str = "look-into";

/// What an account is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The source is to pay.
    Debit,
    /// The target is to be paid.
    Credit,
    /// The source is to get its money back.
    Refund,
    /// Both need to remember the transfer no longer.
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
    // No other id was ever requested, nor another amount: such an event was not written by Millrace.
    let Ok(transfer) = AggregateId::new(id) else { return Vec::new() };
    let refund = |from: &str| {
        let refund = RefundTransfer { transfer_id: transfer.clone() };
        vec![errand(from, Step::Refund, bank_account::Command::RefundTransfer(refund))]
    };
    let settle = |from: &str, to: &str| {
        let settle = || bank_account::Command::SettleTransfer(SettleTransfer { transfer_id: transfer.clone() });
        [from, to].map(|account| errand(account, Step::Settle, settle())).into()
    };
    let mut errands = match event {
        Event::TransferRequested(asked) => debit(&transfer, &asked.from, asked.amount_minor, &asked.currency),
        Event::TransferDebited(debited) => credit(&transfer, &debited.to, debited.amount_minor, &debited.currency),
        Event::TransferCompleted(completed) => settle(&completed.from, &completed.to),
        Event::RefundOrdered(ordered) => refund(&ordered.from),
        Event::TransferRefused(_) | Event::TransferCompensated(_) => Vec::new(),
        Event::TransferRetried(retried) => match retried.step {
            Step::Debit => debit(&transfer, &retried.from, retried.amount_minor, &retried.currency),
            Step::Credit => credit(&transfer, &retried.to, retried.amount_minor, &retried.currency),
            Step::Refund => refund(&retried.from),
            Step::Settle => settle(&retried.from, &retried.to),
        },
    };
    errands.extend(deadline(id, event));
    errands
}

/// While money is under way, somebody looks into it now and then.
fn deadline(id: &str, event: &Event) -> Option<Errand> {
    match event {
        Event::TransferDebited(_)
        | Event::RefundOrdered(_)
        | Event::TransferRetried(TransferRetried { step: Step::Credit | Step::Refund, .. }) => {
            let command = Command::LookIntoTransfer(LookIntoTransfer {});
            Some(Errand::deadline::<MoneyTransfer>(id, LOOK_INTO, When::After(PATIENCE), command))
        }
        Event::TransferCompleted(_) | Event::TransferCompensated(_) => {
            Some(Errand::cancel::<MoneyTransfer>(id, LOOK_INTO))
        }
        Event::TransferRequested(_) | Event::TransferRefused(_) | Event::TransferRetried(_) => None,
    }
}

/// What an account's answer means for the transfer.
pub(super) fn conclude(step: &str, answer: Answer<'_>) -> Option<Command> {
    let why = |reason: &str| Reason::try_from(reason.to_owned()).ok();
    match (step, answer) {
        // An account remembers what it did for a transfer for longer than its answer.
        ("debit", Answer::Accepted | Answer::Refused("transfer-already-debited")) => {
            Some(Command::RecordDebit(RecordDebit {}))
        }
        ("debit", Answer::Refused(reason)) => Some(Command::RefuseTransfer(RefuseTransfer { reason: why(reason)? })),
        ("credit", Answer::Accepted | Answer::Refused("transfer-already-credited")) => {
            Some(Command::CompleteTransfer(CompleteTransfer {}))
        }
        ("credit", Answer::Refused(reason)) => Some(Command::OrderRefund(OrderRefund { reason: why(reason)? })),
        // The source has remembered it and kept room for it: what it refuses was done before.
        ("refund", Answer::Accepted | Answer::Refused(_)) => Some(Command::RecordRefund(RecordRefund {})),
        // Nobody waits for a settlement.
        _ => None,
    }
}

fn debit(transfer: &AggregateId, from: &str, amount_minor: i64, currency: &str) -> Vec<Errand> {
    let (transfer_id, currency) = (transfer.clone(), CurrencyCode::from(currency));
    let debit =
        Amount::try_from(amount_minor).map(|amount_minor| DebitTransfer { transfer_id, amount_minor, currency });
    debit.map(|debit| errand(from, Step::Debit, bank_account::Command::DebitTransfer(debit))).into_iter().collect()
}

fn credit(transfer: &AggregateId, to: &str, amount_minor: i64, currency: &str) -> Vec<Errand> {
    let (transfer_id, currency) = (transfer.clone(), CurrencyCode::from(currency));
    let credit =
        Amount::try_from(amount_minor).map(|amount_minor| CreditTransfer { transfer_id, amount_minor, currency });
    credit.map(|credit| errand(to, Step::Credit, bank_account::Command::CreditTransfer(credit))).into_iter().collect()
}

fn errand(account: &str, step: Step, command: bank_account::Command) -> Errand {
    Errand::to::<BankAccount>(account, step.name(), command)
}
