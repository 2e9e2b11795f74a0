//! What a transfer can be asked to do. These names are a stored format: see `schemas/commands`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{docs, values::Reason};
use crate::{
    domain::{
        AggregateId, CommandError, Fields,
        bank_account::{Amount, Currency, Reference},
    },
    records,
};

records! {
    /// A request to change one transfer.
    pub enum Command in "millrace.transfer.commands" {
        /// Begin it.
        RequestTransfer { RequestTransfer = "schemas/commands/RequestTransfer.v1.avsc" },
        /// The source was debited.
        RecordDebit { RecordDebit = "schemas/commands/RecordDebit.v1.avsc" },
        /// The source refused.
        RefuseTransfer { RefuseTransfer = "schemas/commands/RefuseTransfer.v1.avsc" },
        /// The target was credited.
        CompleteTransfer { CompleteTransfer = "schemas/commands/CompleteTransfer.v1.avsc" },
        /// The target refused.
        OrderRefund { OrderRefund = "schemas/commands/OrderRefund.v1.avsc" },
        /// The source was refunded.
        RecordRefund { RecordRefund = "schemas/commands/RecordRefund.v1.avsc" },
        /// Send once more what it waits for.
        RetryTransfer { RetryTransfer = "schemas/commands/RetryTransfer.v1.avsc" },
        /// Send it once more, as money has been under way for long.
        LookIntoTransfer { LookIntoTransfer = "schemas/commands/LookIntoTransfer.v1.avsc" },
    }
}

/// Begins a transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RequestTransfer {
    /// Id of the account that pays.
    #[schema(schema_with = docs::account)]
    pub from: AggregateId,
    /// Id of the account that is paid.
    #[schema(schema_with = docs::account)]
    pub to: AggregateId,
    /// How much.
    #[schema(schema_with = docs::amount)]
    pub amount_minor: Amount,
    /// In which currency: that of both accounts.
    #[schema(schema_with = docs::currency)]
    pub currency: Currency,
    /// What for.
    #[schema(schema_with = docs::reference, required = false)]
    pub reference: Option<Reference>,
}

/// The source was debited. Sent by the process only, as are the following but [`RetryTransfer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordDebit {}

/// The source refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefuseTransfer {
    /// Name of the problem.
    pub reason: Reason,
}

/// The target was credited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompleteTransfer {}

/// The target refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderRefund {
    /// Name of the problem.
    pub reason: Reason,
}

/// The source was refunded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordRefund {}

/// Sends once more what the transfer waits for: for operators, by `command-service transfers retry`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryTransfer {}

/// Sends once more what the transfer waits for, as money has been under way for long: its deadline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookIntoTransfer {}

pub(super) fn read(name: &str, mut fields: Fields) -> Result<Command, CommandError> {
    if name != "request" {
        return Err(CommandError::Unknown);
    }
    let (from, to) = (fields.required("from"), fields.required("to"));
    let (amount_minor, currency) = (fields.required("amount_minor"), fields.required("currency"));
    let reference = fields.optional("reference");
    let command = from.zip(to).zip(amount_minor.zip(currency)).map(|((from, to), (amount_minor, currency))| {
        Command::RequestTransfer(RequestTransfer { from, to, amount_minor, currency, reference })
    });
    fields.finish(command)
}
