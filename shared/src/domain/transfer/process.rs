//! What moves a transfer along: which account is asked after which event, and what its answer means.
//!
//! ```text
//! TransferRequested ─ debit ─► source ─┬─ accepted ─► TransferDebited ─ credit ─► target ─┬─ accepted ─► TransferCompleted
//!                                      └─ refused ──► TransferRefused                     └─ refused ──► RefundOrdered
//! TransferCompleted ─ settle ─► both                    RefundOrdered ─ refund ─► source ─── accepted ─► TransferCompensated
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    commands::{Command, CompleteTransfer, OrderRefund, RecordDebit, RecordRefund, RefuseTransfer},
    events::Event,
    values::Reason,
};
use crate::domain::{
    AggregateId,
    bank_account::{
        self, Amount, BankAccount, CreditTransfer, CurrencyCode, DebitTransfer, RefundTransfer, SettleTransfer,
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
    match event {
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
