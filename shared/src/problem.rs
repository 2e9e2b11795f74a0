//! RFC 9457 problem documents: what every error on HTTP looks like.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use problem_details::ProblemDetails;
use serde_json::{Map, Value};

use crate::domain::AggregateInfo;

/// A kind of problem; its name is part of the contract.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The last part of `type`, e.g. `malformed-request`.
    pub name: &'static str,
    /// HTTP status.
    pub status: u16,
    /// One line for people.
    pub title: &'static str,
    /// What it means and what to do about it.
    pub meaning: &'static str,
}

macro_rules! kinds {
    ($($constant:ident = $name:literal $status:literal $title:literal $meaning:literal;)+) => {
        $(
            #[doc = $title]
            pub static $constant: Kind = Kind { name: $name, status: $status, title: $title, meaning: $meaning };
        )+
        /// All kinds that don't belong to one domain.
        pub static KINDS: &[&Kind] = &[$(&$constant),+];
    };
}

kinds! {
    MALFORMED = "malformed-request" 400 "The request is malformed"
        "A field, parameter or header is missing, unknown or out of range; `errors` points to it. Mend the request.";
    UNAUTHENTICATED = "unauthenticated" 401 "Not authenticated"
        "Every call of the API must carry the token that the service was given: `Authorization: Bearer <token>`.";
    UNKNOWN_COMMAND = "unknown-command" 404 "There is no such command"
        "The last part of the path names no command of this aggregate type.";
    NOT_FOUND = "not-found" 404 "Not found"
        "There is nothing at this address, or nothing with this id yet.";
    NOT_SCHEDULED = "not-scheduled" 404 "No such command is scheduled"
        "No command with this id waits for its time: it was decided, cancelled, or never scheduled.";
    METHOD_NOT_ALLOWED = "method-not-allowed" 405 "The method is not allowed here"
        "The header `Allow` names the methods that are.";
    REQUEST_TIMEOUT = "request-timeout" 408 "The request did not come in time"
        "Its body was not sent whole within the time that the service waits. Nothing happened. Send it again.";
    HISTORY_TRIMMED = "history-trimmed" 410 "The past asked for is no longer kept"
        "The oldest events of an aggregate with a long history are not kept for queries. `kept_since` says from which \
         version and time on the past can be asked for. The log has all of it: `command-service replay`.";
    VERSION_CONFLICT = "version-conflict" 412 "The aggregate has another version"
        "`If-Match` names another version than the aggregate has (`actual_version`). Nothing happened. Read the \
         aggregate again, decide again, and send a new command with a new key.";
    TOO_LARGE = "too-large" 413 "The body is too large"
        "Bodies of commands are limited to 64 KiB.";
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type" 415 "The body is not JSON"
        "Send `Content-Type: application/json`.";
    KEY_REUSED = "idempotency-key-reused" 422 "The command id was used for another command"
        "A command id names one command of its aggregate. Send this one with a key of its own.";
    CANCELLED = "cancelled" 422 "The command was cancelled before it was due"
        "It was scheduled, and cancelled before its time had come. Nothing happened, and nothing will under this id.";
    OVERLOADED = "overloaded" 429 "Too much at once"
        "The service has as many commands in flight, or streams open to one caller, as it may. Try again after \
         `Retry-After` seconds.";
    INTERNAL = "internal" 500 "Something went wrong on our side"
        "It is logged with the id that the answer names.";
    UNAVAILABLE = "unavailable" 503 "Not available at the moment"
        "Something the service depends on does not answer, or it serves as many as it may. Try again after `Retry-After` \
         seconds; a command with the same key.";
    STALE = "stale" 503 "The view has not got there yet"
        "The projection has not reached what was asked for within the time. Ask again.";
    REBUILDING = "rebuilding" 503 "The projection is being built"
        "There is no complete version to answer from yet. Ask again.";
    OUTCOME_UNKNOWN = "outcome-unknown" 504 "No outcome yet"
        "The command may or may not have been decided. Send it again with the same key, or ask at `Location`.";
}

/// A problem to be answered. Small, as it is the error of many results.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    name: String,
    status: u16,
    title: String,
    detail: String,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem of a kind, with what is wrong in this case.
    pub fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            name: kind.name.into(),
            status: kind.status,
            title: kind.title.into(),
            detail: detail.into(),
            members: Map::new(),
            headers: Vec::new(),
        }))
    }

    /// The problem that a stored reason stands for: a refusal of the domain's rules, or one of the general kinds.
    pub fn of_reason(domain: &AggregateInfo, reason: &str, figures: Map<String, Value>) -> Self {
        let refusal = domain.refusals.iter().find(|refusal| refusal.name == reason);
        let (status, title, meaning) = match (refusal, KINDS.iter().find(|kind| kind.name == reason)) {
            (Some(refusal), _) => (422, refusal.title, refusal.title),
            (None, Some(kind)) => (kind.status, kind.title, kind.title),
            (None, None) => (422, "A rule refused the command", "A rule refused the command"),
        };
        let mut detail = meaning.to_owned();
        if !figures.is_empty() {
            let figures: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {value}")).collect();
            detail = format!("{detail}: {}", figures.join(", "));
        }
        let (name, title) = (reason.into(), title.into());
        Self(Box::new(Parts { name, status, title, detail, members: figures, headers: Vec::new() }))
    }

    /// The request can't be understood; each error is a JSON pointer (or the name of a parameter) and what is wrong.
    pub fn malformed(errors: Vec<FieldError>) -> Self {
        let detail = errors
            .iter()
            .map(|e| if e.pointer.is_empty() { e.detail.clone() } else { format!("{}: {}", e.pointer, e.detail) })
            .collect::<Vec<_>>()
            .join("; ");
        Self::new(&MALFORMED, detail).with("errors", serde_json::to_value(errors).unwrap_or_default())
    }

    /// Whether it is of this kind.
    pub fn is(&self, kind: &Kind) -> bool {
        self.0.name == kind.name
    }

    /// Adds a member to the document.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.members.insert(name.into(), value.into());
        self
    }

    /// Adds a header to the answer; one that can't be a header is left out.
    pub fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        self.0.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    /// Says when trying again may help.
    pub fn retry_after(self, seconds: u32) -> Self {
        self.with_header(header::RETRY_AFTER, &seconds.to_string())
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The document's members.
    pub fn body(&self) -> Map<String, Value> {
        match serde_json::to_value(self.document()) {
            Ok(Value::Object(body)) => body,
            _ => Map::new(),
        }
    }

    fn document(&self) -> ProblemDetails<Map<String, Value>> {
        let document = ProblemDetails::new()
            .with_status(self.status())
            .with_title(&self.0.title)
            .with_detail(&self.0.detail)
            .with_extensions(self.0.members.clone());
        match format!("/problems/{}", self.0.name).parse::<axum::http::Uri>() {
            Ok(uri) => document.with_type(uri),
            Err(_) => document,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.document().into_response();
        response.headers_mut().extend(self.0.headers);
        response
    }
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct FieldError {
    /// JSON pointer into the body, or the name of a header or parameter; empty for the whole.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

impl FieldError {
    /// An error at a place.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

/// The page that `type` links to.
pub fn page(domains: &[AggregateInfo], name: &str) -> Response {
    let general = KINDS.iter().find(|kind| kind.name == name).map(|kind| (kind.status, kind.title, kind.meaning));
    let of_domain = || {
        let refusal = domains.iter().flat_map(|domain| domain.refusals).find(|refusal| refusal.name == name)?;
        Some((422, refusal.title, refusal.meaning))
    };
    match general.or_else(of_domain) {
        Some((status, title, meaning)) => Html(format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title>\
             <h1>{title}</h1><p><code>{name}</code>, status {status}</p><p>{meaning}</p></html>"
        ))
        .into_response(),
        None => Problem::new(&NOT_FOUND, "there is no problem of that name").into_response(),
    }
}
