//! What every HTTP listener of ours does alike: limits, problems instead of bare errors, metrics, an access log.

use std::{
    any::Any,
    collections::HashMap,
    convert::Infallible,
    future,
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use axum::{
    Router,
    extract::{MatchedPath, Request},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::Route,
};
use futures_util::FutureExt;
use metrics::{Counter, Histogram};
use tower::{Service, layer::layer_fn, service_fn};
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
pub fn complete(router: Router, service: &str, sizes: Sizes) -> Router {
    complete_with(router, service, sizes, |_| future::ready)
}

/// The same, and hands each answer, once it is counted, to what `finish` made of its request.
pub fn complete_with<F, L, R>(router: Router, service: &str, sizes: Sizes, finish: F) -> Router
where
    F: Fn(&Request) -> L + Send + Sync + 'static,
    L: FnOnce(Response) -> R + Send + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    let meters = Arc::new(Meters {
        requests: format!("millrace_{service}_http_requests_total"),
        seconds: format!("millrace_{service}_http_request_seconds"),
        known: RwLock::default(),
    });
    let finish = Arc::new(finish);
    router
        .fallback(|| async { Problem::new(&NOT_FOUND, "there is nothing at this address") })
        // axum adds the header `Allow`.
        .method_not_allowed_fallback(|| async { Problem::new(&METHOD_NOT_ALLOWED, "this address has other methods") })
        // All in one: axum copies every layer, with those within, for each request.
        .layer(layer_fn(move |mut route: Route| {
            let (meters, finish) = (meters.clone(), finish.clone());
            service_fn(move |request: Request| {
                let (meters, open, finish) = (meters.clone(), Open::new(&request), finish(&request));
                let answer = match oversized(sizes, &request) {
                    Some(problem) => Err(problem.into_response()),
                    None => Ok(route.call(request)),
                };
                async move {
                    let response = match answer {
                        Ok(answer) => AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(panicked),
                        Err(refusal) => Ok(refusal),
                    }?;
                    open.end(&meters, response.status());
                    Ok::<_, Infallible>(finish(response).await)
                }
            })
        }))
}

/// Our own fault: logs the cause under an id and answers with the id only.
pub fn internal(cause: &dyn std::fmt::Display) -> Problem {
    let id = Uuid::now_v7().simple().to_string();
    tracing::error!(id, "internal error: {cause}");
    Problem::new(&INTERNAL, format!("our fault; it is logged under {id}")).with("trace_id", id)
}

/// What it says was told before, unless it may be personal.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Result<Response, Infallible> {
    Ok(internal(&"a panic, told above").into_response())
}

/// What is wrong with the size of a request.
fn oversized(sizes: Sizes, request: &Request) -> Option<Problem> {
    let uri = request.uri();
    let uri_bytes = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    let header_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let detail = if uri_bytes > sizes.uri {
        format!("path and query are {uri_bytes} bytes, {} at most", sizes.uri)
    } else if header_bytes > sizes.headers {
        format!("the headers are {header_bytes} bytes, {} at most", sizes.headers)
    } else {
        return None;
    };
    Some(Problem::malformed(vec![FieldError::new("", detail)]))
}

/// A request that is being answered.
struct Open {
    begun: Instant,
    method: &'static str,
    route: Option<MatchedPath>,
    /// Where it is to be logged.
    path: Option<String>,
}

impl Open {
    fn new(request: &Request) -> Self {
        Self {
            begun: Instant::now(),
            method: known_method(request.method()),
            route: request.extensions().get::<MatchedPath>().cloned(),
            path: tracing::enabled!(tracing::Level::DEBUG).then(|| request.uri().path().to_owned()),
        }
    }

    fn end(self, meters: &Meters, status: StatusCode) {
        let took = self.begun.elapsed().as_secs_f64();
        if let Some(path) = self.path {
            tracing::debug!(method = self.method, path, status = status.as_u16(), seconds = took, "answered");
        }
        meters.count(self.route.as_ref().map_or("none", MatchedPath::as_str), self.method, status, took);
    }
}

/// Counts requests. Looking a metric up by its labels costs as much as much of what is done for a request, so those that
/// were used are kept: there are only so many.
struct Meters {
    requests: String,
    seconds: String,
    known: RwLock<HashMap<String, Vec<Known>>>,
}

/// Those of one route.
struct Known {
    method: &'static str,
    status: StatusCode,
    requests: Counter,
    seconds: Histogram,
}

impl Meters {
    fn count(&self, route: &str, method: &'static str, status: StatusCode, seconds: f64) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut of_route = known.get(route).into_iter().flatten();
        if let Some(known) = of_route.find(|known| known.status == status && known.method == method) {
            return known.count(seconds);
        }
        drop(known);
        let (name, labels) = (route.to_owned(), [("method", method.to_owned()), ("route", route.to_owned())]);
        let histogram = metrics::histogram!(self.seconds.clone(), &labels);
        let [method_label, route_label] = labels;
        let labels = [method_label, route_label, ("status", status.as_str().to_owned())];
        let known =
            Known { method, status, requests: metrics::counter!(self.requests.clone(), &labels), seconds: histogram };
        known.count(seconds);
        self.known.write().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().push(known);
    }
}

impl Known {
    fn count(&self, seconds: f64) {
        self.requests.increment(1);
        self.seconds.record(seconds);
    }
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
