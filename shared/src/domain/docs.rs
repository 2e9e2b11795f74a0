//! What the API's description (OpenAPI) says of a domain: schemas and examples, in the domain's own folder.

use serde_json::Value;
use utoipa::openapi::{RefOr, schema::Schema};

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
