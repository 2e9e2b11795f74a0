//! Commands over HTTP: `POST /v1/<collection>/{id}/{command}` and `POST /v1/<collection>`.

mod openapi;
mod request;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use millrace_shared::{
    auth,
    domain::{AggregateId, AggregateInfo, CommandError, Domains},
    envelope::{CommandHeaders, is_known_command_id},
    http::{Sizes, complete, internal},
    outcome::Verdict,
    problem::{self, FieldError, OUTCOME_UNKNOWN, OVERLOADED, Problem, UNAVAILABLE, UNKNOWN_COMMAND},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use uuid::Uuid;

use crate::{
    partition::cancel_fingerprint,
    submit::{Answered, Error, Submission, Submitter},
    types::{CommandType, EncodeError, Encoded},
};
use request::Options;

/// What a path's segment has to encode: all but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What the handlers need.
pub struct Api {
    /// Aggregate types by index.
    pub types: Arc<[Arc<dyn CommandType>]>,
    /// The way to the topics.
    pub submitter: Submitter,
    /// Public base URL of query-service.
    pub query_url: String,
    /// What tokens belong to: the prefix of topics and keys.
    pub deployment: String,
    /// Token that calls must carry.
    pub token: Option<String>,
    /// Longest wait for a request's body.
    pub body_timeout: Duration,
    /// What is let through of a request.
    pub sizes: Sizes,
}

/// The routes of all types.
///
/// # Errors
/// When their description is no JSON, which is our fault.
pub fn router<D: Domains>(api: Api) -> Result<Router, serde_json::Error> {
    let api = Arc::new(api);
    let mut router = Router::new();
    for (kind, served) in api.types.iter().enumerate() {
        let collection = served.info().collection;
        let to_one = move |State(api): State<Arc<Api>>, path: InPath<(String, String)>, request: Request| async move {
            let (id, command) = match in_path(path) {
                Ok(parts) => parts,
                Err(problem) => return problem.into_response(),
            };
            answer(api.command(kind, Some(id), &command, request).await)
        };
        let to_new = move |State(api): State<Arc<Api>>, request: Request| async move {
            let Some(command) = api.types[kind].info().commands.first() else {
                return Problem::new(&UNKNOWN_COMMAND, "the type has no commands").into_response();
            };
            answer(api.command(kind, None, command, request).await)
        };
        let cancel = move |State(api): State<Arc<Api>>, path: InPath<(String, String)>, headers: HeaderMap| async move {
            let (id, command_id) = match in_path(path) {
                Ok(parts) => parts,
                Err(problem) => return problem.into_response(),
            };
            answer(api.cancel(kind, &id, command_id, &headers).await)
        };
        router = router
            .route(&format!("/v1/{collection}/{{id}}/scheduled/{{command_id}}"), delete(cancel))
            .route(&format!("/v1/{collection}/{{id}}/{{command}}"), post(to_one))
            .route(&format!("/v1/{collection}"), post(to_new));
    }
    let domains: Arc<[AggregateInfo]> = api.types.iter().map(|served| served.info()).collect();
    let problems = move |name: InPath<String>| async move {
        in_path(name).map_or_else(IntoResponse::into_response, |name| problem::page(&domains, &name))
    };
    let (token, sizes) = (api.token.clone(), api.sizes);
    let router = router.route("/problems/{name}", get(problems)).with_state(api);
    let description = millrace_shared::openapi::router(&openapi::describe::<D>(token.is_some()))?;
    Ok(complete(auth::require(router.merge(description), token.as_deref()), "command", sizes))
}

type InPath<T> = Result<Path<T>, PathRejection>;

/// What does not decode to UTF-8 is the caller's mistake.
fn in_path<T>(path: InPath<T>) -> Result<T, Problem> {
    path.map(|Path(parts)| parts).map_err(|error| Problem::malformed(vec![FieldError::new("path", error.to_string())]))
}

fn aggregate_id(id: &str) -> Result<AggregateId, Problem> {
    AggregateId::new(id).map_err(|reason| Problem::malformed(vec![FieldError::new("id", reason)]))
}

fn answer(result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(IntoResponse::into_response)
}

impl Api {
    async fn command(
        &self,
        kind: usize,
        id: Option<String>,
        command: &str,
        request: Request,
    ) -> Result<Response, Problem> {
        let served = &self.types[kind];
        let info = served.info();
        let given_id = id.as_deref().map(aggregate_id).transpose()?;
        if !info.commands.contains(&command) {
            let commands = info.commands.join(", ");
            return Err(Problem::new(&UNKNOWN_COMMAND, format!("{} takes the commands {commands}", info.collection)));
        }
        let options = Options::read(request.headers())?;
        let body = request::json_body(request, self.body_timeout).await?;
        let encoded = served.encode(command, &body).map_err(|error| match error {
            EncodeError::Command(CommandError::Malformed(errors)) => Problem::malformed(errors),
            EncodeError::Command(CommandError::Unknown) => Problem::new(&UNKNOWN_COMMAND, "there is no such command"),
            EncodeError::Internal(cause) => internal(&cause),
        })?;
        let aggregate_id = match given_id {
            Some(id) => id,
            None => aggregate_id(&self.new_id(info.collection, options.idempotency_key.as_deref()))?,
        };
        let command_id = options.idempotency_key.unwrap_or_else(|| Uuid::now_v7().to_string());
        let submission = Submission { kind, aggregate_id, command_id, headers: options.headers, encoded };
        self.submit(&submission, options.respond_async).await
    }

    /// Has a scheduled command not be decided.
    async fn cancel(&self, kind: usize, id: &str, scheduled: String, headers: &HeaderMap) -> Result<Response, Problem> {
        let aggregate_id = aggregate_id(id)?;
        if !is_known_command_id(&scheduled) {
            return Err(Problem::malformed(vec![FieldError::new("command_id", "is no command id")]));
        }
        let Options { idempotency_key, respond_async, headers } = Options::read(headers)?;
        let fingerprint = cancel_fingerprint(&scheduled).map_err(|error| internal(&error.to_string()))?;
        let submission = Submission {
            kind,
            aggregate_id,
            command_id: idempotency_key.unwrap_or_else(|| Uuid::now_v7().to_string()),
            headers: CommandHeaders { cancels: Some(scheduled), expected_version: None, not_before: None, ..headers },
            encoded: Encoded { value: None, fingerprint },
        };
        self.submit(&submission, respond_async).await
    }

    async fn submit(&self, submission: &Submission, respond_async: bool) -> Result<Response, Problem> {
        let info = self.types[submission.kind].info();
        let accepted = |body| {
            let location = [(header::LOCATION, self.outcome_url(submission, &info))];
            (StatusCode::ACCEPTED, location, Json(body)).into_response()
        };
        if respond_async {
            let enqueued = self.submitter.enqueue(submission).await;
            enqueued.map_err(|error| self.failure(submission, &info, error))?;
            return Ok(accepted(json!({"command_id": submission.command_id})));
        }
        match self.submitter.submit(submission).await {
            Ok(answered) if answered.answer.outcome.is_scheduled() => {
                Ok(accepted(answered.answer.outcome.waiting_body()))
            }
            Ok(answered) => Ok(self.respond(&answered, &info)),
            Err(error) => Err(self.failure(submission, &info, error)),
        }
    }

    /// Made here when the caller leaves it to us; the same for the same caller and key.
    fn new_id(&self, collection: &str, key: Option<&str>) -> String {
        let caller = if self.token.is_some() { "token" } else { "anybody" };
        match key {
            Some(key) => Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("millrace {caller} {collection} {key}").as_bytes()),
            None => Uuid::now_v7(),
        }
        .to_string()
    }

    fn respond(&self, answered: &Answered, info: &AggregateInfo) -> Response {
        let outcome = &answered.answer.outcome;
        let mut response = match outcome.outcome {
            Verdict::Accepted => {
                let status = if outcome.created() { StatusCode::CREATED } else { StatusCode::OK };
                let mut response = (status, Json(outcome.accepted_body(&self.deployment))).into_response();
                insert(&mut response, header::ETAG, &format!("\"{}\"", outcome.version));
                if outcome.created() {
                    let url = format!("{}/v1/{}/{}", self.query_url, info.collection, outcome.aggregate_id);
                    insert(&mut response, header::LOCATION, &url);
                }
                response
            }
            Verdict::Rejected => {
                let problem = outcome.problem(info, &self.deployment);
                let problem =
                    if problem.status() == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(5) } else { problem };
                problem.into_response()
            }
        };
        if answered.replayed {
            insert(&mut response, REPLAYED, "true");
        }
        response
    }

    fn failure(&self, submission: &Submission, info: &AggregateInfo, error: Error) -> Problem {
        match error {
            Error::Overloaded => Problem::new(&OVERLOADED, error.to_string()).retry_after(1),
            Error::Full => Problem::new(&UNAVAILABLE, error.to_string()).retry_after(5),
            Error::Restoring => Problem::new(&UNAVAILABLE, error.to_string()).retry_after(2),
            Error::Unavailable(_) => {
                tracing::warn!(%error, "a command was refused");
                Problem::new(&UNAVAILABLE, error.to_string()).retry_after(2)
            }
            Error::Unknown(_) => Problem::new(&OUTCOME_UNKNOWN, error.to_string())
                .with_header(header::LOCATION, &self.outcome_url(submission, info))
                .retry_after(1),
        }
        .with("command_id", submission.command_id.clone())
    }

    fn outcome_url(&self, submission: &Submission, info: &AggregateInfo) -> String {
        let command_id = utf8_percent_encode(&submission.command_id, SEGMENT);
        format!("{}/v1/{}/{}/commands/{command_id}", self.query_url, info.collection, submission.aggregate_id)
    }
}

fn insert(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
