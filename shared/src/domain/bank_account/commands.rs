//! What a bank account can be asked to do. These names are a stored format: see `schemas/commands`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    docs,
    upcasts::v1,
    values::{Amount, Channel, Currency, CurrencyCode, Owner, Reference},
};
use crate::{
    domain::{AggregateId, CommandError, Fields},
    records,
};

records! {
    /// A request to change one bank account.
    pub enum Command in "millrace.bank_account.commands" {
        /// Open it.
        OpenAccount { OpenAccount = "schemas/commands/OpenAccount.v1.avsc" },
        /// Pay in.
        Deposit {
            v1::Deposit = "schemas/commands/Deposit.v1.avsc",
            Deposit = "schemas/commands/Deposit.v2.avsc",
        },
        /// Take out.
        Withdraw { Withdraw = "schemas/commands/Withdraw.v1.avsc" },
        /// Close it.
        CloseAccount { CloseAccount = "schemas/commands/CloseAccount.v1.avsc" },
        /// Take out what a transfer moves.
        DebitTransfer { DebitTransfer = "schemas/commands/DebitTransfer.v1.avsc" },
        /// Pay in what a transfer moves.
        CreditTransfer { CreditTransfer = "schemas/commands/CreditTransfer.v1.avsc" },
        /// Give back what a transfer took out.
        RefundTransfer { RefundTransfer = "schemas/commands/RefundTransfer.v1.avsc" },
        /// Remember a transfer no longer.
        SettleTransfer { SettleTransfer = "schemas/commands/SettleTransfer.v1.avsc" },
    }
}

/// Opens an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OpenAccount {
    /// Who owns it.
    #[schema(schema_with = docs::owner)]
    pub owner: Owner,
    /// What it is kept in.
    #[schema(schema_with = docs::currency)]
    pub currency: Currency,
}

/// Pays money in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Deposit {
    /// How much.
    #[schema(schema_with = docs::amount)]
    pub amount_minor: Amount,
    /// What for.
    #[schema(schema_with = docs::reference, required = false)]
    pub reference: Option<Reference>,
    /// By which way it comes.
    #[schema(schema_with = docs::channel, required = false)]
    pub channel: Option<Channel>,
}

/// Takes money out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Withdraw {
    /// How much.
    #[schema(schema_with = docs::amount)]
    pub amount_minor: Amount,
    /// What for.
    #[schema(schema_with = docs::reference, required = false)]
    pub reference: Option<Reference>,
}

/// Closes an empty account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CloseAccount {}

/// Takes out what a transfer moves, and remembers the transfer until it is settled or refunded. Sent by transfers only, as
/// are the following.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DebitTransfer {
    /// Id of the transfer.
    pub transfer_id: AggregateId,
    /// How much.
    pub amount_minor: Amount,
    /// In which currency.
    pub currency: CurrencyCode,
}

/// Pays in what a transfer moves, and remembers the transfer until it is settled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreditTransfer {
    /// Id of the transfer.
    pub transfer_id: AggregateId,
    /// How much.
    pub amount_minor: Amount,
    /// In which currency.
    pub currency: CurrencyCode,
}

/// Pays back what was taken out for a transfer that came to nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefundTransfer {
    /// Id of the transfer.
    pub transfer_id: AggregateId,
}

/// Forgets a transfer that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettleTransfer {
    /// Id of the transfer.
    pub transfer_id: AggregateId,
}

pub(super) fn read(name: &str, mut fields: Fields) -> Result<Command, CommandError> {
    let command = match name {
        "open" => {
            let (owner, currency) = (fields.required("owner"), fields.required("currency"));
            owner.zip(currency).map(|(owner, currency)| Command::OpenAccount(OpenAccount { owner, currency }))
        }
        "deposit" => {
            let (payment, channel) = (payment(&mut fields), fields.optional("channel"));
            payment.map(|(amount_minor, reference)| Command::Deposit(Deposit { amount_minor, reference, channel }))
        }
        "withdraw" => payment(&mut fields)
            .map(|(amount_minor, reference)| Command::Withdraw(Withdraw { amount_minor, reference })),
        "close" => Some(Command::CloseAccount(CloseAccount {})),
        _ => return Err(CommandError::Unknown),
    };
    fields.finish(command)
}

fn payment(fields: &mut Fields) -> Option<(Amount, Option<Reference>)> {
    let amount = fields.required("amount_minor");
    let reference = fields.optional("reference");
    amount.map(|amount| (amount, reference))
}

/// The transfer on whose behalf a command is sent.
pub(super) fn transfer_of(command: &Command) -> Option<&AggregateId> {
    match command {
        Command::DebitTransfer(debit) => Some(&debit.transfer_id),
        Command::CreditTransfer(credit) => Some(&credit.transfer_id),
        Command::RefundTransfer(refund) => Some(&refund.transfer_id),
        Command::SettleTransfer(settle) => Some(&settle.transfer_id),
        Command::OpenAccount(_) | Command::Deposit(_) | Command::Withdraw(_) | Command::CloseAccount(_) => None,
    }
}
