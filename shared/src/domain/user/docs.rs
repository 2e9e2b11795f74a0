//! What the API's description says of users.

use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};

use super::{
    ChangeAddress, ChangeEmail, ChangeName, DeactivateUser, EraseUser, ReactivateUser, RegisterUser, Status, UserView,
    events::{AddressChanged, EmailChanged, NameChanged, UserDeactivated, UserErased, UserReactivated, UserRegistered},
    values::{MAX_EMAIL_BYTES, MAX_LINE_CHARACTERS},
};
use crate::domain::docs::{Described, Docs, command, counts, described, event, object};

pub(super) fn docs() -> Docs {
    let address = json!({"street": "Main Street 1", "postal_code": "53111", "city": "Bonn", "country": "DE"});
    let name = json!({"given_name": "Ada", "family_name": "Lovelace"});
    let email = json!({"email": "ada@example.org"});
    let person = json!({
        "given_name": "Ada", "family_name": "Lovelace", "email": "ada@example.org", "address": address.clone(),
    });
    let reserved = |mut data: serde_json::Value| {
        data["reservation"] = "9b74c9897bac770ffc029102a200c5de9b74c9897bac770ffc029102a200c5de".into();
        data
    };
    Docs {
        noun: "user",
        commands: vec![
            command::<RegisterUser>("register", "Registers a user", person.clone()),
            command::<ChangeName>("change-name", "Changes the name", name.clone()),
            command::<ChangeEmail>("change-email", "Changes the e-mail address", email.clone()),
            command::<ChangeAddress>("change-address", "Changes the address", address.clone()),
            command::<DeactivateUser>("deactivate", "Suspends the user", json!({})),
            command::<ReactivateUser>("reactivate", "Takes the user up again", json!({})),
            command::<EraseUser>("erase", "Forgets the user for ever: their personal data is destroyed", json!({})),
        ],
        events: vec![
            event::<UserRegistered>("UserRegistered", reserved(person)),
            event::<NameChanged>("NameChanged", name),
            event::<EmailChanged>("EmailChanged", reserved(email)),
            event::<AddressChanged>("AddressChanged", json!({"address": address.clone()})),
            event::<UserDeactivated>("UserDeactivated", json!({})),
            event::<UserReactivated>("UserReactivated", json!({})),
            event::<UserErased>("UserErased", json!({"was_active": true})),
        ],
        view: described::<UserView>(json!({
            "id": "u-1", "given_name": "Ada", "family_name": "Lovelace", "email": "ada@example.org", "address": address,
            "status": "active", "version": 1, "registered_at": "2026-01-31T12:00:00.000000Z",
            "updated_at": "2026-01-31T12:00:00.000000Z",
        })),
        stats: Described {
            schema: object([("users", counts(Status::ALL.map(Status::name)))]),
            example: json!({"users": {"active": 12, "inactive": 1, "erased": 2}}),
        },
    }
}

pub(super) fn line() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(MAX_LINE_CHARACTERS))
        .pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]+$"))
}

pub(super) fn email() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).max_length(Some(MAX_EMAIL_BYTES)).pattern(Some(r"^[^@\s]+@[^@\s]+$"))
}

pub(super) fn country() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[A-Z]{2}$"))
}

pub(super) fn optional_address() -> RefOr<Schema> {
    let members = object([
        ("street", line().into()),
        ("postal_code", line().into()),
        ("city", line().into()),
        ("country", country().into()),
    ]);
    OneOfBuilder::new().item(ObjectBuilder::new().schema_type(Type::Null)).item(members).into()
}

pub(super) fn status() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Status::ALL.map(Status::name)))
}
