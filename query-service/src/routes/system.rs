//! `GET /v1/health` and `GET /v1/dead-letters`: what the dashboard shows of the system, for everybody who may ask.

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::get,
};
use millrace_shared::{
    http::internal,
    ops::Health,
    problem::{Problem, UNAVAILABLE},
};

use super::json;
use crate::{dead_letters::DeadLetters, params::Params};

pub(super) fn routes(health: Health, letters: DeadLetters) -> Router {
    Router::new()
        .route("/v1/health", get(seen).with_state(health))
        .route("/v1/dead-letters", get(dead_letters).with_state(letters))
}

/// Always 200: it is an answer about the others. The operations listener has the one for probes.
async fn seen(State(health): State<Health>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    Params::parse(query.as_deref()).finish()?;
    // It says for how many seconds: nothing to be kept.
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(health.report())).into_response())
}

async fn dead_letters(State(letters): State<DeadLetters>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    Params::parse(query.as_deref()).finish()?;
    match letters.newest().await {
        Some(found) => {
            let body = serde_json::to_string(&found).map_err(|error| internal(&error))?;
            Ok(json(HeaderMap::new(), body))
        }
        None => Err(Problem::new(&UNAVAILABLE, "Kafka can't be asked").retry_after(2)),
    }
}
