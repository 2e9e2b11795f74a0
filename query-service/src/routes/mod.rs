//! The paths, one file each.

mod changes;
mod group;
mod history;
mod list;
mod outcome;
mod projections;
mod stats;
mod system;
mod view;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use millrace_shared::{
    domain::{Aggregate, AggregateInfo, Grouping},
    ops::Health,
    problem,
};

pub use group::Groups;
pub use history::MAX_LIMIT as MAX_EVENTS;
pub use list::MAX_LIMIT as MAX_LISTED;
pub use projections::{Described, Projections};

use crate::{changes::Hub, dashboard, dead_letters::DeadLetters, service::Service};

/// The queries of an aggregate type.
pub fn of<A: Aggregate>(service: Arc<Service<A>>) -> Router {
    let base = format!("/v1/{}", A::COLLECTION);
    Router::new()
        .route(&base, get(list::get::<A>))
        .route(&format!("{base}/stats"), get(stats::get::<A>))
        .route(&format!("{base}/{{id}}"), get(view::get::<A>))
        .route(&format!("{base}/{{id}}/history"), get(history::get::<A>))
        .route(&format!("{base}/{{id}}/commands/{{command_id}}"), get(outcome::get::<A>))
        .with_state(service)
}

/// The streams of an aggregate type.
pub fn changes_of<A: Aggregate>(hub: Arc<Hub<A>>) -> Router {
    let base = format!("/v1/{}", A::COLLECTION);
    Router::new()
        .route(&format!("{base}/changes"), get(changes::get_all::<A>))
        .route(&format!("{base}/{{id}}/changes"), get(changes::get_one::<A>))
        .with_state(hub)
}

/// The queries of a further projection.
pub fn of_groups<G: Grouping>(groups: group::Groups<G>) -> Router {
    Router::new().route(&format!("/v1/{}/{{key}}", G::NAME), get(group::get::<G>)).with_state(Arc::new(groups))
}

/// What belongs to no aggregate type.
pub fn general(projections: Projections, health: Health, letters: DeadLetters) -> Router {
    Router::new()
        .route("/v1/projections", get(projections::get))
        .with_state(Arc::new(projections))
        .route(
            "/problems/{name}",
            get(|Path(name): Path<String>| async move { problem::page(&AggregateInfo::all(), &name) }),
        )
        .merge(system::routes(health, letters))
        .merge(dashboard::routes())
}

/// An answer in JSON that is text already.
fn json(headers: HeaderMap, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// One version of something: with its `ETag`, and without a body when the caller has it already.
fn versioned(request: &HeaderMap, mut headers: HeaderMap, version: u64, body: String) -> Response {
    let tag = format!("\"{version}\"");
    headers.extend(header::HeaderValue::from_str(&tag).ok().map(|value| (header::ETAG, value)));
    if has(request, &tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    json(headers, body)
}

pub(crate) fn has(request: &HeaderMap, tag: &str) -> bool {
    let given = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_who_has_the_version_gets_no_body() {
        let status = |value: &str| {
            let request = HeaderMap::from_iter([(header::IF_NONE_MATCH, value.parse().unwrap())]);
            versioned(&request, HeaderMap::new(), 7, "{}".into()).status().as_u16()
        };
        for known in ["\"7\"", "W/\"7\"", "*", "\"6\", \"7\""] {
            assert_eq!(status(known), 304, "{known}");
        }
        for other in ["\"6\"", "7", ""] {
            assert_eq!(status(other), 200, "{other}");
        }
    }
}
