//! What the API's description says of bank accounts.

use std::str::FromStr;

use serde_json::json;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, SchemaType, Type};

use super::{
    AccountView, CloseAccount, Deposit, OpenAccount, Status, Withdraw,
    events::{AccountClosed, AccountOpened, MoneyDeposited, MoneyWithdrawn, TransferHeld, TransferReleased},
    values::{Currency, MAX_AMOUNT_MINOR, MAX_CHANNEL_BYTES, MAX_OWNER_CHARACTERS, MAX_REFERENCE_CHARACTERS},
};
use crate::domain::docs::{Described, Docs, by_currency, command, counts, described, event, object, total};

/// No control character.
const VISIBLE: &str = r"^[^\x00-\x1f\x7f-\x9f]+$";

pub(super) fn docs() -> Docs {
    Docs {
        noun: "bank account",
        commands: vec![
            command::<OpenAccount>("open", "Opens an account", json!({"owner": "Ada", "currency": "EUR"})),
            command::<Deposit>(
                "deposit",
                "Pays in",
                json!({"amount_minor": 10_000, "reference": "salary", "channel": "online"}),
            ),
            command::<Withdraw>("withdraw", "Takes out", json!({"amount_minor": 5_000, "reference": "rent"})),
            command::<CloseAccount>("close", "Closes an account whose balance is 0", json!({})),
        ],
        events: vec![
            event::<AccountOpened>("AccountOpened", json!({"owner": "Ada", "currency": "EUR"})),
            event::<MoneyDeposited>(
                "MoneyDeposited",
                json!({"amount_minor": 10_000, "reference": "salary", "channel": "online"}),
            ),
            event::<MoneyWithdrawn>("MoneyWithdrawn", json!({"amount_minor": 5_000, "reference": null})),
            event::<AccountClosed>("AccountClosed", json!({})),
            event::<TransferHeld>("TransferHeld", json!({"transfer_id": "t-7", "amount_minor": 5_000})),
            event::<TransferReleased>("TransferReleased", json!({"transfer_id": "t-7"})),
        ],
        view: described::<AccountView>(json!({
            "id": "acc-42", "owner": "Ada", "currency": "EUR", "balance_minor": 10_000, "status": "open", "version": 2,
            "opened_at": "2026-01-31T12:00:00.000000Z", "updated_at": "2026-02-01T08:30:00.250000Z",
        })),
        stats: Described {
            schema: object([
                ("accounts", counts(["open", "closed"])),
                (
                    "currencies",
                    by_currency(
                        ["deposited_minor", "withdrawn_minor", "balance_minor", "events"].map(|name| (name, total())),
                    ),
                ),
            ]),
            example: json!({
                "accounts": {"open": 3, "closed": 1},
                "currencies": {"EUR": {"deposited_minor": 15_000, "withdrawn_minor": 5_000, "balance_minor": 10_000, "events": 7}},
            }),
        },
    }
}

pub(super) fn owner_view() -> Described {
    Described {
        schema: object([
            ("owner", owner().into()),
            ("accounts", counts(["open", "closed"])),
            ("currencies", by_currency([("balance_minor", total())])),
        ]),
        example: json!({
            "owner": "Ada", "accounts": {"open": 2, "closed": 0}, "currencies": {"EUR": {"balance_minor": 10_000}},
        }),
    }
}

pub(in crate::domain) fn amount() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(1))
        .maximum(Some(MAX_AMOUNT_MINOR))
}

pub(super) fn owner() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(MAX_OWNER_CHARACTERS))
        .pattern(Some(VISIBLE))
}

pub(in crate::domain) fn reference() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .max_length(Some(MAX_REFERENCE_CHARACTERS))
}

pub(super) fn channel() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .min_length(Some(1))
        .max_length(Some(MAX_CHANNEL_BYTES))
        .pattern(Some("^[a-z0-9._-]+$"))
}

pub(in crate::domain) fn currency() -> ObjectBuilder {
    let letters = || 'A'..='Z';
    let codes =
        letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| String::from_iter([a, b, c]))));
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(codes.filter(|code| Currency::from_str(code).is_ok())))
}

pub(super) fn status() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Status::ALL.map(Status::name)))
}
