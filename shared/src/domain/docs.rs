//! What the API's description (OpenAPI) says of a domain: schemas and examples, in the domain's own folder.

use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{
        Object, RefOr,
        schema::{AdditionalProperties, ObjectBuilder, Schema, SchemaType, Type},
    },
};

/// A document and one that there might be.
#[derive(Clone)]
pub struct Described {
    /// What it looks like.
    pub schema: RefOr<Schema>,
    /// One.
    pub example: Value,
}

/// A command over HTTP.
#[derive(Clone)]
pub struct CommandDocs {
    /// As paths name it: one of [`super::Aggregate::COMMANDS`].
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Its body.
    pub body: Described,
}

/// An event in a history.
#[derive(Clone)]
pub struct EventDocs {
    /// Record name, e.g. `MoneyDeposited`.
    pub name: &'static str,
    /// Its data.
    pub data: Described,
}

/// All of an aggregate type.
#[derive(Clone)]
pub struct Docs {
    /// What one is called, e.g. `bank account`.
    pub noun: &'static str,
    /// In the order of [`super::Aggregate::COMMANDS`].
    pub commands: Vec<CommandDocs>,
    /// All that there are.
    pub events: Vec<EventDocs>,
    /// The view of the main projection.
    pub view: Described,
    /// Its statistics.
    pub stats: Described,
}

/// A command, as its type says.
pub fn command<T: ToSchema>(name: &'static str, summary: &'static str, example: Value) -> CommandDocs {
    let mut body = described::<T>(example);
    if let RefOr::T(Schema::Object(object)) = &mut body.schema {
        // Unknown fields are refused.
        object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    }
    CommandDocs { name, summary, body }
}

/// An event, as its type says.
pub fn event<T: ToSchema>(name: &'static str, example: Value) -> EventDocs {
    EventDocs { name, data: described::<T>(example) }
}

/// A document, as its type says.
pub fn described<T: ToSchema>(example: Value) -> Described {
    Described { schema: T::schema(), example }
}

pub(super) fn object<const N: usize>(members: [(&'static str, RefOr<Schema>); N]) -> RefOr<Schema> {
    let object = ObjectBuilder::new().schema_type(Type::Object);
    members.into_iter().fold(object, |object, (name, schema)| object.property(name, schema).required(name)).into()
}

pub(super) fn counts<const N: usize>(names: [&'static str; N]) -> RefOr<Schema> {
    object(names.map(|name| (name, Object::with_type(Type::Integer).into())))
}

pub(super) fn by_currency<const N: usize>(members: [(&'static str, RefOr<Schema>); N]) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("By ISO 4217 code."))
        .additional_properties(Some(object(members)))
        .into()
}

/// A number, or text when it does not fit into 64 bits.
pub(super) fn total() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Integer, Type::String]))
        .description(Some("A whole number; as text beyond 64 bits."))
        .into()
}
