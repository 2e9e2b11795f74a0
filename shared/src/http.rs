//! What every HTTP listener of ours does alike: limits, problems instead of bare errors, metrics, an access log.

use std::{any::Any, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request},
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tower_http::catch_panic::CatchPanicLayer;
use uuid::Uuid;

use crate::problem::{FieldError, INTERNAL, METHOD_NOT_ALLOWED, NOT_FOUND, Problem};

/// What is let through of a request, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Longest path with query string.
    pub uri: usize,
    /// Largest sum of header names and values.
    pub headers: usize,
}

/// Completes the routes of a service: unknown paths and methods, panics and oversized requests are answered by problem
/// documents, and every request is counted under `millrace_<service>_http_…`. To be called when all routes are there.
pub fn complete(router: Router, service: &'static str, sizes: Sizes) -> Router {
    let requests = format!("millrace_{service}_http_requests_total");
    let seconds = format!("millrace_{service}_http_request_seconds");
    router
        .fallback(|| async { Problem::new(&NOT_FOUND, "there is nothing at this address") })
        // axum adds the header `Allow`.
        .method_not_allowed_fallback(|| async { Problem::new(&METHOD_NOT_ALLOWED, "this address has other methods") })
        .layer(middleware::from_fn(move |request, next| limit(sizes, request, next)))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(move |request, next| {
            let (requests, seconds) = (requests.clone(), seconds.clone());
            async move { observe(requests, seconds, request, next).await }
        }))
}

/// Our own fault: logs the cause under an id and answers with the id only.
pub fn internal(cause: &dyn std::fmt::Display) -> Problem {
    let id = Uuid::now_v7().simple().to_string();
    tracing::error!(id, "internal error: {cause}");
    Problem::new(&INTERNAL, format!("our fault; it is logged under {id}")).with("trace_id", id)
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("of an unknown kind");
    internal(&format_args!("a panic: {text}")).into_response()
}

async fn limit(sizes: Sizes, request: Request, next: Next) -> Response {
    let uri = request.uri();
    let uri_bytes = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if uri_bytes > sizes.uri {
        let detail = format!("path and query are {uri_bytes} bytes, {} at most", sizes.uri);
        return Problem::malformed(vec![FieldError::new("", detail)]).into_response();
    }
    let header_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if header_bytes > sizes.headers {
        let detail = format!("the headers are {header_bytes} bytes, {} at most", sizes.headers);
        return Problem::malformed(vec![FieldError::new("", detail)]).into_response();
    }
    next.run(request).await
}

async fn observe(requests: String, seconds: String, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = known_method(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let path = tracing::enabled!(tracing::Level::DEBUG).then(|| request.uri().path().to_owned());
    let response = next.run(request).await;
    let (status, took) = (response.status(), begun.elapsed().as_secs_f64());
    if let Some(path) = path {
        tracing::debug!(method, path, status = status.as_u16(), seconds = took, "answered");
    }
    metrics::counter!(requests, "method" => method, "route" => route.clone(), "status" => status_text(status))
        .increment(1);
    metrics::histogram!(seconds, "method" => method, "route" => route).record(took);
    response
}

fn status_text(status: StatusCode) -> String {
    status.as_str().to_owned()
}

/// A caller may invent methods; each would be another time series.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::header, routing::get};
    use tower::ServiceExt;

    async fn ask(method: &str, uri: &str) -> Response {
        let boom = || async {
            if std::env::args().count() > 0 {
                panic!("boom");
            }
        };
        let router = Router::new().route("/v1/here", get(|| async { "here" })).route("/v1/boom", get(boom));
        let router = complete(crate::auth::require(router, None), "test", Sizes { uri: 100, headers: 1_000 });
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        router.oneshot(request).await.unwrap()
    }

    fn is_problem(response: &Response) -> bool {
        response.headers()[header::CONTENT_TYPE] == "application/problem+json"
    }

    #[tokio::test]
    async fn g13_whatever_is_wrong_is_a_problem_document() {
        assert_eq!(ask("GET", "/v1/here").await.status(), 200);
        assert_eq!(ask("HEAD", "/v1/here").await.status(), 200);
        let unknown = ask("GET", "/v1/there").await;
        assert_eq!(unknown.status(), 404);
        assert!(is_problem(&unknown));
        let method = ask("BREW", "/v1/here").await;
        assert_eq!((method.status().as_u16(), &method.headers()[header::ALLOW]), (405, &"GET,HEAD".parse().unwrap()));
        assert!(is_problem(&method));
        let panicked = ask("GET", "/v1/boom").await;
        assert_eq!(panicked.status(), 500);
        assert!(is_problem(&panicked));
        let long = ask("GET", &format!("/v1/here?x={}", "y".repeat(100))).await;
        assert_eq!(long.status(), 400);
        assert!(is_problem(&long));
    }
}
