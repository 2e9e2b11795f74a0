//! What the API's description says of reservations.

use serde_json::json;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::{
    ReservationView, Status,
    events::{EmailReserved, HolderAsked, ReservationConfirmed, ReservationReleased},
};
use crate::domain::docs::{Described, Docs, counts, described, event, object};

pub(super) fn docs() -> Docs {
    Docs {
        noun: "e-mail reservation",
        commands: Vec::new(),
        events: vec![
            event::<EmailReserved>(
                "EmailReserved",
                json!({"holder": "u-1", "claim": "5f0c9f6b1d1e4c2a8b7d6e5f4a3b2c1d"}),
            ),
            event::<HolderAsked>("HolderAsked", json!({})),
            event::<ReservationConfirmed>("ReservationConfirmed", json!({})),
            event::<ReservationReleased>("ReservationReleased", json!({})),
        ],
        view: described::<ReservationView>(json!({
            "id": "9b74c9897bac770ffc029102a200c5de9b74c9897bac770ffc029102a200c5de", "status": "confirmed", "version": 2,
            "updated_at": "2026-01-31T12:00:00.000000Z",
        })),
        stats: Described {
            schema: object([("reservations", counts(["free", "taken"]))]),
            example: json!({"reservations": {"free": 1, "taken": 12}}),
        },
    }
}

pub(super) fn status() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Status::ALL.map(Status::name)))
}
