//! What callers may keep, and how they ask whether it still holds: every answer has an `ETag`, and is asked for again
//! before it is used again.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use millrace_shared::problem::{FieldError, Problem};
use sha2::{Digest, Sha256};

use crate::compression::Accepted;

/// An `ETag` by content.
pub fn tag(body: &[u8]) -> HeaderValue {
    let digest: [u8; 32] = Sha256::digest(body).into();
    let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// What of a request matters once it is answered.
pub struct Asked {
    reads: bool,
    known: Known,
    accepted: Accepted,
}

impl Asked {
    /// A request.
    pub fn of(request: &Request) -> Self {
        Self {
            reads: matches!(*request.method(), Method::GET | Method::HEAD),
            known: Known::of(request.headers()),
            accepted: Accepted::of(request.headers()),
        }
    }

    /// Compresses an answer, completes one that says nothing about caches, and leaves out the body of one that the caller
    /// has already.
    pub async fn complete(self, response: Response) -> Response {
        complete(self.reads, &self.known, self.accepted.compress(response).await)
    }
}

fn complete(reads: bool, known: &Known, mut response: Response) -> Response {
    if response.status() == StatusCode::NOT_ACCEPTABLE {
        // Of what compresses, without a body.
        let error =
            FieldError::new("Accept-Encoding", "answers are sent as they are, or by gzip: one must be accepted");
        response = Problem::malformed(vec![error]).into_response();
    }
    let answered = response.status() == StatusCode::OK;
    if !response.headers().contains_key(header::CACHE_CONTROL) {
        // Problems pass. Views may be kept, but not by those in between: some are for their callers only.
        let keep = HeaderValue::from_static(if answered { "private, no-cache" } else { "no-store" });
        response.headers_mut().insert(header::CACHE_CONTROL, keep);
    }
    let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
    if reads && answered && tag.is_some_and(|tag| known.contains(tag)) {
        let mut headers = std::mem::take(response.headers_mut());
        headers.remove(header::CONTENT_TYPE);
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::CONTENT_ENCODING);
        return (StatusCode::NOT_MODIFIED, headers, Body::empty()).into_response();
    }
    response
}

/// Whether the caller has this already.
pub fn has(request: &HeaderMap, tag: &str) -> bool {
    Known::of(request).contains(tag)
}

/// What the caller has.
struct Known(Vec<HeaderValue>);

impl Known {
    fn of(request: &HeaderMap) -> Self {
        Self(request.get_all(header::IF_NONE_MATCH).iter().cloned().collect())
    }

    fn contains(&self, tag: &str) -> bool {
        let given = self.0.iter().filter_map(|value| value.to_str().ok());
        let mut each = given.flat_map(|value| value.split(',')).map(str::trim);
        each.any(|one| one == "*" || one.trim_start_matches("W/") == tag.trim_start_matches("W/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_who_has_the_version_is_known_by_it() {
        let knows = |value: &str| {
            let request = HeaderMap::from_iter([(header::IF_NONE_MATCH, value.parse().unwrap())]);
            has(&request, "\"7\"")
        };
        for known in ["\"7\"", "W/\"7\"", "*", "\"6\", \"7\""] {
            assert!(knows(known), "{known}");
        }
        for other in ["\"6\"", "7", ""] {
            assert!(!knows(other), "{other}");
        }
        assert!(!has(&HeaderMap::new(), "\"7\""));
    }

    #[test]
    fn what_differs_has_another_tag() {
        assert_eq!(tag(b"{}"), tag(b"{}"));
        assert_ne!(tag(b"{}"), tag(b"{} "));
    }
}
