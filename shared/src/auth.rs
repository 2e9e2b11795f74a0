//! Who may call: a bearer token that every call of the API must carry, where one is set.

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use crate::problem::{Problem, UNAUTHENTICATED};

/// Paths below it are the API; pages about problems, health and the like are for everybody.
const PROTECTED: &str = "/v1";

/// Lets only those calls of the API through that carry the token; without a token, all of them.
pub fn require(router: Router, token: Option<&str>) -> Router {
    let Some(token) = token else { return router };
    let expected = digest(token.as_bytes());
    router.layer(middleware::from_fn(move |request: Request, next: Next| async move {
        if is_protected(request.uri().path()) && !carries(request.headers(), &expected) {
            return refusal();
        }
        next.run(request).await
    }))
}

fn is_protected(path: &str) -> bool {
    path.strip_prefix(PROTECTED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn carries(headers: &HeaderMap, expected: &[u8; 32]) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(axum::http::HeaderValue::as_bytes).unwrap_or_default();
    let Some((scheme, token)) = given.split_at_checked(b"Bearer ".len()) else { return false };
    // Digests have one length, and every byte is looked at: the time taken tells nothing about the token.
    let differing = digest(token).iter().zip(expected).fold(0, |differing, (a, b)| differing | (a ^ b));
    scheme.eq_ignore_ascii_case(b"Bearer ") && std::hint::black_box(differing) == 0
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn refusal() -> Response {
    Problem::new(&UNAUTHENTICATED, "the call carries no token that is valid here")
        .with_header(header::WWW_AUTHENTICATE, "Bearer")
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(value: &str) -> bool {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        carries(&headers, &digest(b"s3cret"))
    }

    #[test]
    fn g14_only_the_token_itself_is_let_in() {
        assert!(allowed("Bearer s3cret"));
        assert!(allowed("bearer s3cret"));
        for refused in
            ["", "s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret ", "Basic s3cret", "Bearer S3CRET"]
        {
            assert!(!allowed(refused), "{refused}");
        }
        assert!(!carries(&HeaderMap::new(), &digest(b"s3cret")));
    }

    #[test]
    fn g14_the_api_is_protected_and_its_pages_are_not() {
        for path in ["/v1", "/v1/", "/v1/bank-accounts"] {
            assert!(is_protected(path), "{path}");
        }
        for path in ["/", "/problems/not-found", "/v10", "/docs"] {
            assert!(!is_protected(path), "{path}");
        }
    }
}
