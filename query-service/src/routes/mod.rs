//! The paths, one file each.

mod changes;
mod group;
mod history;
mod list;
mod outcome;
mod projections;
mod scheduled;
mod statement;
mod stats;
mod system;
mod view;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, header},
    response::Response,
    routing::get,
};
use millrace_shared::{
    domain::{Aggregate, AggregateInfo, Domains, Grouping, Projection},
    ops::Health,
    problem,
};

pub use group::Groups;
pub use projections::{Described, Projections};

use crate::{caching, changes::Hub, dashboard, dead_letters::DeadLetters, params::TextInPath, service::Service};

/// The queries of an aggregate type.
pub fn of<A: Aggregate>(service: Arc<Service<A>>) -> Router {
    let base = format!("/v1/{}", A::COLLECTION);
    let mut router = Router::new();
    if A::Projection::STATEMENT.is_some() {
        router = router.route(&format!("{base}/{{id}}/statement"), get(statement::get::<A>));
    }
    router
        .route(&base, get(list::get::<A>))
        .route(&format!("{base}/stats"), get(stats::get::<A>))
        .route(&format!("{base}/{{id}}"), get(view::get::<A>))
        .route(&format!("{base}/{{id}}/history"), get(history::get::<A>))
        .route(&format!("{base}/{{id}}/scheduled"), get(scheduled::get::<A>))
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
pub fn general<D: Domains>(projections: Projections, health: Health, letters: DeadLetters) -> Router {
    Router::new()
        .route("/v1/projections", get(projections::get))
        .with_state(Arc::new(projections))
        .route(
            "/problems/{name}",
            get(|TextInPath(name): TextInPath| async move { problem::page(&AggregateInfo::all::<D>(), &name) }),
        )
        .merge(system::routes(health, letters))
        .merge(dashboard::routes())
}

/// An answer in JSON that is text already; where it has no version, it is told by what it says.
fn json(mut headers: HeaderMap, body: String) -> Response {
    if !headers.contains_key(header::ETAG) {
        headers.insert(header::ETAG, caching::tag(body.as_bytes()));
    }
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// One version of something.
fn versioned(mut headers: HeaderMap, version: u64, body: String) -> Response {
    headers.extend(header::HeaderValue::try_from(format!("\"{version}\"")).ok().map(|tag| (header::ETAG, tag)));
    json(headers, body)
}
