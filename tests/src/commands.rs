//! Commands as another program writes them to the topic: by schemas of its own, under subjects of its own.

use std::sync::OnceLock;

use apache_avro::types::Value as Avro;
use serde_json::{Value, json};

use crate::avro::{Registry, encode};

fn schema(name: &str, fields: &Value) -> Value {
    json!({"type": "record", "name": name, "namespace": "millrace.bank_account.commands", "fields": fields})
}

fn payment_fields() -> Value {
    json!([
        {"name": "amount_minor", "type": "long"},
        {"name": "reference", "type": ["null", "string"], "default": null},
    ])
}

fn registered<'a>(id: &OnceLock<u32>, schema: &'a Value) -> (u32, &'a Value) {
    let subject = format!("somebody-elses-{}", schema["name"].as_str().expect("records have names"));
    (*id.get_or_init(|| Registry::shared().register(&subject, schema)), schema)
}

/// `OpenAccount`.
pub fn open(owner: &str, currency: &str) -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    let fields = json!([{"name": "owner", "type": "string"}, {"name": "currency", "type": "string"}]);
    let schema = schema("OpenAccount", &fields);
    let (id, schema) = registered(&ID, &schema);
    encode(id, schema, vec![("owner", Avro::String(owner.into())), ("currency", Avro::String(currency.into()))])
}

/// `Deposit` without a reference.
pub fn deposit(amount_minor: i64) -> Vec<u8> {
    deposit_for(amount_minor, None)
}

/// `Deposit`.
pub fn deposit_for(amount_minor: i64, reference: Option<&str>) -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    let schema = schema("Deposit", &payment_fields());
    let (id, schema) = registered(&ID, &schema);
    encode(id, schema, payment(amount_minor, reference))
}

/// `Withdraw` with a reference.
pub fn withdraw(amount_minor: i64, reference: Option<&str>) -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    let schema = schema("Withdraw", &payment_fields());
    let (id, schema) = registered(&ID, &schema);
    encode(id, schema, payment(amount_minor, reference))
}

fn payment(amount_minor: i64, reference: Option<&str>) -> Vec<(&'static str, Avro)> {
    let reference = match reference {
        Some(text) => Avro::Union(1, Box::new(Avro::String(text.into()))),
        None => Avro::Union(0, Box::new(Avro::Null)),
    };
    vec![("amount_minor", Avro::Long(amount_minor)), ("reference", reference)]
}

/// `CloseAccount`.
pub fn close() -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    let schema = schema("CloseAccount", &json!([]));
    let (id, schema) = registered(&ID, &schema);
    encode(id, schema, Vec::new())
}

/// `RequestTransfer` without a reference.
pub fn request_transfer(from: &str, to: &str, amount_minor: i64, currency: &str) -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    let fields = json!([
        {"name": "from", "type": "string"},
        {"name": "to", "type": "string"},
        {"name": "amount_minor", "type": "long"},
        {"name": "currency", "type": "string"},
        {"name": "reference", "type": ["null", "string"], "default": null},
    ]);
    let mut schema = schema("RequestTransfer", &fields);
    schema["namespace"] = json!("millrace.transfer.commands");
    let (id, schema) = registered(&ID, &schema);
    let text = |text: &str| Avro::String(text.into());
    let values = vec![
        ("from", text(from)),
        ("to", text(to)),
        ("amount_minor", Avro::Long(amount_minor)),
        ("currency", text(currency)),
        ("reference", Avro::Union(0, Box::new(Avro::Null))),
    ];
    encode(id, schema, values)
}

/// `DebitTransfer`.
pub fn debit_transfer(transfer_id: &str, amount_minor: i64, currency: &str) -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    movement(&ID, "DebitTransfer", transfer_id, amount_minor, currency)
}

/// `CreditTransfer`.
pub fn credit_transfer(transfer_id: &str, amount_minor: i64, currency: &str) -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    movement(&ID, "CreditTransfer", transfer_id, amount_minor, currency)
}

fn movement(id: &OnceLock<u32>, name: &str, transfer_id: &str, amount_minor: i64, currency: &str) -> Vec<u8> {
    let fields = json!([
        {"name": "transfer_id", "type": "string"},
        {"name": "amount_minor", "type": "long"},
        {"name": "currency", "type": "string"},
    ]);
    let schema = schema(name, &fields);
    let (id, schema) = registered(id, &schema);
    let values = vec![
        ("transfer_id", Avro::String(transfer_id.into())),
        ("amount_minor", Avro::Long(amount_minor)),
        ("currency", Avro::String(currency.into())),
    ];
    encode(id, schema, values)
}

/// `RefundTransfer`.
pub fn refund_transfer(transfer_id: &str) -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    let schema = schema("RefundTransfer", &json!([{"name": "transfer_id", "type": "string"}]));
    let (id, schema) = registered(&ID, &schema);
    encode(id, schema, vec![("transfer_id", Avro::String(transfer_id.into()))])
}

/// A record that is no command at all.
pub fn no_command() -> Vec<u8> {
    static ID: OnceLock<u32> = OnceLock::new();
    let mut schema = schema("Invoice", &json!([{"name": "amount_minor", "type": "long"}]));
    schema["namespace"] = json!("somebody.else");
    let (id, schema) = registered(&ID, &schema);
    encode(id, schema, vec![("amount_minor", Avro::Long(1))])
}
