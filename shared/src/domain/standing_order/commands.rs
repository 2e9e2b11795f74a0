//! What a standing order can be asked to do. These names are a stored format: see `schemas/commands`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{docs, state::Every};
use crate::{
    domain::{
        AggregateId, CommandError, Fields,
        bank_account::{Amount, Currency, Reference},
    },
    records,
};

records! {
    /// A request to change one standing order.
    pub enum Command in "millrace.standing_order.commands" {
        /// Begin it.
        PlaceStandingOrder { PlaceStandingOrder = "schemas/commands/PlaceStandingOrder.v1.avsc" },
        /// Request the next transfer.
        ExecuteStandingOrder { ExecuteStandingOrder = "schemas/commands/ExecuteStandingOrder.v1.avsc" },
        /// End it.
        CancelStandingOrder { CancelStandingOrder = "schemas/commands/CancelStandingOrder.v1.avsc" },
    }
}

/// Begins a standing order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlaceStandingOrder {
    /// Id of the account that pays.
    #[schema(schema_with = docs::account)]
    pub from: AggregateId,
    /// Id of the account that is paid.
    #[schema(schema_with = docs::account)]
    pub to: AggregateId,
    /// How much each time.
    #[schema(schema_with = docs::amount)]
    pub amount_minor: Amount,
    /// In which currency: that of both accounts.
    #[schema(schema_with = docs::currency)]
    pub currency: Currency,
    /// What for.
    #[schema(schema_with = docs::reference, required = false)]
    pub reference: Option<Reference>,
    /// How long from one transfer to the next. Months end where they end: after 31 January comes 28 February, then 31 March.
    #[schema(schema_with = docs::every)]
    pub every: Every,
    /// When the first one is due; at once, when absent.
    #[schema(value_type = String, format = DateTime, required = false)]
    pub first_at: Option<Timestamp>,
}

/// Requests the next transfer. Sent by the order itself, when it is due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecuteStandingOrder {
    /// 1 for the first one.
    pub number: u32,
}

/// Ends a standing order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CancelStandingOrder {}

pub(super) fn read(name: &str, mut fields: Fields) -> Result<Command, CommandError> {
    match name {
        "place" => {
            let (from, to) = (fields.required("from"), fields.required("to"));
            let (amount_minor, currency) = (fields.required("amount_minor"), fields.required("currency"));
            let (reference, every) = (fields.optional("reference"), fields.required("every"));
            let first_at = fields.optional("first_at");
            let terms = from.zip(to).zip(amount_minor.zip(currency)).zip(every);
            let command = terms.map(|(((from, to), (amount_minor, currency)), every)| {
                let place = PlaceStandingOrder { from, to, amount_minor, currency, reference, every, first_at };
                Command::PlaceStandingOrder(place)
            });
            fields.finish(command)
        }
        "cancel" => fields.finish(Some(Command::CancelStandingOrder(CancelStandingOrder {}))),
        _ => Err(CommandError::Unknown),
    }
}
