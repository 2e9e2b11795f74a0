//! What the API's description says of standing orders.

use serde_json::json;
use utoipa::openapi::{
    Object,
    schema::{ObjectBuilder, Type},
};

use super::{
    CancelStandingOrder, PlaceStandingOrder, StandingOrderView, Status,
    events::{StandingOrderCancelled, StandingOrderExecuted, StandingOrderPlaced},
    state::Every,
};
use crate::domain::docs::{Described, Docs, command, described, event, object};
pub(super) use crate::domain::{
    bank_account::docs::{amount, currency, reference},
    transfer::docs::account,
};

pub(super) fn docs() -> Docs {
    let with = |more: serde_json::Value| {
        let mut terms = json!({
            "from": "acc-42", "to": "acc-43", "amount_minor": 5_000, "currency": "EUR", "reference": "rent",
        });
        if let (Some(terms), Some(more)) = (terms.as_object_mut(), more.as_object()) {
            terms.extend(more.clone());
        }
        terms
    };
    let (first, next) = ("2027-01-31T08:00:00Z", "2027-02-28T08:00:00Z");
    Docs {
        noun: "standing order",
        commands: vec![
            command::<PlaceStandingOrder>(
                "place",
                "Places an order: a transfer is requested every time that it is due",
                with(json!({"every": "month", "first_at": first})),
            ),
            command::<CancelStandingOrder>("cancel", "Ends an order", json!({})),
        ],
        events: vec![
            event::<StandingOrderPlaced>("StandingOrderPlaced", with(json!({"every": "month", "first_at": first}))),
            event::<StandingOrderExecuted>("StandingOrderExecuted", with(json!({"number": 1, "next_at": next}))),
            event::<StandingOrderCancelled>("StandingOrderCancelled", json!({})),
        ],
        view: described::<StandingOrderView>(with(json!({
            "id": "rent-42", "every": "month", "status": "active", "executed": 1,
            "last_transfer": "so-6c2b1f0e6d0c5a0f8c1d2e3f4a5b6c7d", "next_at": "2027-02-28T08:00:00.000000Z", "version": 2,
            "placed_at": "2027-01-15T12:00:00.000000Z", "updated_at": "2027-01-31T08:00:00.004000Z",
        }))),
        stats: Described {
            schema: object([
                ("orders", object(Status::ALL.map(|status| (status.name(), Object::with_type(Type::Integer).into())))),
                ("transfers", Object::with_type(Type::Integer).into()),
            ]),
            example: json!({"orders": {"active": 3, "cancelled": 1}, "transfers": 17}),
        },
    }
}

pub(super) fn status() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Status::ALL.map(Status::name)))
}

pub(super) fn every() -> ObjectBuilder {
    let all = [Every::Minute, Every::Day, Every::Month].map(|every| json!(every));
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(all))
}
