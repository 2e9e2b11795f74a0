//! What the API's description says of transfers.

use serde_json::json;
use utoipa::openapi::{
    Object,
    schema::{ObjectBuilder, Type},
};

use super::{
    RequestTransfer, Status, TransferView,
    events::{
        RefundOrdered, TransferCompensated, TransferCompleted, TransferDebited, TransferRefused, TransferRequested,
        TransferRetried,
    },
    process::Step,
};
pub(super) use crate::domain::bank_account::docs::{amount, currency, reference};
use crate::domain::{
    AggregateId,
    docs::{Described, Docs, by_currency, command, described, event, object, total},
};

pub(super) fn docs() -> Docs {
    let terms = json!({"from": "acc-42", "to": "acc-43", "amount_minor": 5_000, "currency": "EUR"});
    let with = |name: &str, value: serde_json::Value| {
        let mut terms = terms.clone();
        terms[name] = value;
        terms
    };
    Docs {
        noun: "transfer",
        commands: vec![command::<RequestTransfer>(
            "request",
            "Requests a transfer; what becomes of it is in its view",
            with("reference", json!("rent")),
        )],
        events: vec![
            event::<TransferRequested>("TransferRequested", with("reference", json!("rent"))),
            event::<TransferDebited>("TransferDebited", terms.clone()),
            event::<TransferCompleted>("TransferCompleted", json!({"from": "acc-42", "to": "acc-43"})),
            event::<TransferRefused>("TransferRefused", json!({"reason": "insufficient-funds"})),
            event::<RefundOrdered>(
                "RefundOrdered",
                json!({"from": "acc-42", "reason": "account-closed", "late": false}),
            ),
            event::<TransferCompensated>("TransferCompensated", json!({"reason": "account-closed"})),
            event::<TransferRetried>("TransferRetried", with("step", json!("credit"))),
        ],
        view: described::<TransferView>(json!({
            "id": "t-7", "from": "acc-42", "to": "acc-43", "amount_minor": 5_000, "currency": "EUR",
            "reference": "rent", "status": "completed", "reason": null, "version": 3,
            "requested_at": "2026-01-31T12:00:00.000000Z", "updated_at": "2026-01-31T12:00:00.012000Z",
        })),
        stats: Described {
            schema: object([
                (
                    "transfers",
                    object(Status::ALL.map(|status| (status.name(), Object::with_type(Type::Integer).into()))),
                ),
                ("currencies", by_currency([("completed_minor", total())])),
            ]),
            example: json!({
                "transfers": {"requested": 1, "debited": 0, "completed": 12, "refused": 2, "compensated": 1},
                "currencies": {"EUR": {"completed_minor": 60_000}},
            }),
        },
    }
}

pub(in crate::domain) fn account() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(AggregateId::MAX_BYTES))
        .pattern(Some(AggregateId::PATTERN))
}

pub(super) fn status() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Status::ALL.map(Status::name)))
}

pub(super) fn step() -> ObjectBuilder {
    let all = [Step::Debit, Step::Credit, Step::Refund, Step::Settle].map(|step| json!(step));
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(all))
}
