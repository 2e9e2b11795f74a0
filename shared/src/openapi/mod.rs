//! The API's description (OpenAPI 3.1): what all operations share, and how it is served. What the operations are is said
//! by the services, beside their routes; what commands and views look like, by the domains.

mod operation;

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use serde_json::json;
use utoipa::openapi::{
    HttpMethod, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder,
    schema::{ArrayBuilder, ComponentsBuilder, ObjectBuilder, Type},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_swagger_ui::Config;

pub use operation::{Operation, anything, boolean, number, text, time};

use crate::{
    http::internal,
    problem::{Kind, NOT_FOUND, Problem},
};

/// Name of the schema of all problems.
pub const PROBLEM: &str = "Problem";
const TOKEN: &str = "token";
/// Of the viewer, which is licensed by Apache-2.0 as we are.
const NOTICE: &str = "swagger-ui\nCopyright 2020-2021 SmartBear Software Inc.\n";
/// The viewer is all of our own origin; it sets styles from its scripts.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      font-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A description that grows operation by operation.
pub struct Description {
    title: &'static str,
    about: &'static str,
    authenticated: bool,
    paths: PathsBuilder,
}

impl Description {
    /// An empty one. `authenticated`: whether calls must carry a token.
    pub fn new(title: &'static str, about: &'static str, authenticated: bool) -> Self {
        let mut new = Self { title, about, authenticated, paths: PathsBuilder::new() };
        let problems = Operation::new("problem", "general", "What a problem means")
            .path("name", text(1, 100), "The last part of a problem's `type`.", json!("not-found"))
            .content(200, "A page for people.", "text/html", text(1, 100_000).into(), json!("<!doctype html>…"))
            .problems(&[&NOT_FOUND]);
        new.add_open(HttpMethod::Get, "/problems/{name}", problems);
        new
    }

    /// Adds an operation of the API.
    pub fn add(&mut self, method: HttpMethod, path: &str, operation: Operation) {
        let operation = if self.authenticated { operation.authenticated() } else { operation };
        self.add_open(method, path, operation);
    }

    /// Adds an operation that is for everybody.
    pub fn add_open(&mut self, method: HttpMethod, path: &str, operation: Operation) {
        let paths = std::mem::take(&mut self.paths);
        self.paths = paths.path(path, PathItem::new(method, operation.build()));
    }

    /// The document.
    pub fn build(self) -> OpenApi {
        let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
        let info = InfoBuilder::new()
            .title(self.title)
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some(self.about))
            .license(Some(license));
        let mut components = ComponentsBuilder::new().schema(PROBLEM, problem_schema());
        let mut api = OpenApiBuilder::new().info(info.build()).paths(self.paths);
        if self.authenticated {
            let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The service's token."));
            components = components.security_scheme(TOKEN, SecurityScheme::Http(bearer.build()));
        }
        api = api.components(Some(components.build()));
        api.build()
    }
}

fn security() -> SecurityRequirement {
    SecurityRequirement::new(TOKEN, Vec::<String>::new())
}

/// RFC 9457, with the members that ours may have. Problems have further ones of their own.
fn problem_schema() -> ObjectBuilder {
    let string = || ObjectBuilder::new().schema_type(Type::String);
    let error = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property(
            "pointer",
            string().description(Some("JSON pointer, or name of a parameter or header; empty: the whole.")),
        )
        .required("pointer")
        .property("detail", string())
        .required("detail");
    let aggregate = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("type", string())
        .property("id", string())
        .property("version", ObjectBuilder::new().schema_type(Type::Integer));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("RFC 9457. `type` names a page that says what it means."))
        .property("type", string().pattern(Some("^/problems/[a-z-]+$")))
        .required("type")
        .property("title", string())
        .required("title")
        .property("status", ObjectBuilder::new().schema_type(Type::Integer))
        .required("status")
        .property("detail", string())
        .property("errors", ArrayBuilder::new().items(error))
        .property("command_id", string())
        .property("aggregate", aggregate)
        .property("token", string())
        .property("trace_id", string())
}

/// An example of a problem.
fn problem_example(kind: &Kind) -> serde_json::Value {
    let mut example = json!({
        "type": format!("/problems/{}", kind.name), "title": kind.title, "status": kind.status, "detail": kind.meaning,
    });
    if kind.name == "malformed-request" {
        example["errors"] = json!([{"pointer": "/amount_minor", "detail": "the field is missing"}]);
    }
    example
}

/// `/openapi.json`, and `/docs`, which shows it.
///
/// # Errors
/// When the description is no JSON, which is our fault.
pub fn router(api: &OpenApi) -> Result<Router, serde_json::Error> {
    let document = Bytes::from(serde_json::to_vec(api)?);
    // No badge by a validator elsewhere.
    let viewer = Arc::new(Config::new(["../openapi.json"]).validator_url("none").try_it_out_enabled(true));
    let index = viewer.clone();
    Ok(Router::new()
        .route("/openapi.json", get(|| async move { ([(header::CONTENT_TYPE, "application/json")], document) }))
        .route("/docs", get(|| async { Redirect::permanent("docs/") }))
        .route("/docs/NOTICE", get(|| async { NOTICE }))
        .route("/docs/", get(|| async move { page("", index) }))
        .route(
            "/docs/{*file}",
            get(|file: Result<Path<String>, PathRejection>| async move {
                // What is no UTF-8 names no file.
                page(&file.map_or_else(|_| "?".to_owned(), |Path(file)| file), viewer)
            }),
        ))
}

fn page(file: &str, viewer: Arc<Config<'static>>) -> Response {
    let found = match utoipa_swagger_ui::serve(file, viewer) {
        Ok(Some(found)) => found,
        Ok(None) => return Problem::new(&NOT_FOUND, "the viewer has no such file").into_response(),
        Err(error) => return internal(&error).into_response(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CONTENT_TYPE, found.content_type.as_str()),
        (header::CACHE_CONTROL, "public, max-age=3600"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
    }
    (headers, found.bytes.into_owned()).into_response()
}
