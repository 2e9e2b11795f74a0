//! Answers that are worth it are compressed, for callers who take that.

use std::{convert::Infallible, future};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, header},
    response::Response,
};
use tower::{ServiceExt, service_fn};
use tower_http::{
    CompressionLevel,
    compression::{Compression, DefaultPredicate, Predicate, predicate::SizeAbove},
};

/// Shorter answers are not compressed: small ones grow by it.
const COMPRESSED_BYTES: u64 = 1_024;

/// What a caller takes: the headers `Accept-Encoding`.
pub struct Accepted(HeaderMap);

impl Accepted {
    /// By a request's headers.
    pub fn of(request: &HeaderMap) -> Self {
        let given = request.get_all(header::ACCEPT_ENCODING);
        Self(given.iter().map(|value| (header::ACCEPT_ENCODING, value.clone())).collect())
    }

    /// An answer as the caller takes it; 406 where that can't be. Streams of events are never collected, so they aren't
    /// compressed.
    pub async fn compress(self, response: Response) -> Response {
        let worth = SizeAbove::new(COMPRESSED_BYTES).and(DefaultPredicate::new());
        if !self.may_refuse() && !worth.should_compress(&response) {
            return response;
        }
        let mut request = Request::new(Body::empty());
        *request.headers_mut() = self.0;
        let mut response = Some(response);
        let answer = service_fn(move |_| future::ready(Ok::<_, Infallible>(response.take().unwrap_or_default())));
        let compression = Compression::new(answer).quality(CompressionLevel::Fastest).compress_when(worth);
        let Ok(response) = Box::pin(compression.oneshot(request)).await;
        response.map(Body::new)
    }

    /// Whether even an answer as it is may be refused: by `;q=0`.
    fn may_refuse(&self) -> bool {
        self.0.values().any(|value| value.as_bytes().contains(&b';'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    async fn sent(accepted: &str, bytes: usize) -> Response {
        let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, accepted.parse().unwrap())]);
        Accepted::of(&headers).compress(Response::new(Body::from(vec![b'x'; bytes]))).await
    }

    #[tokio::test]
    async fn g16_only_what_is_worth_it_is_compressed_and_only_for_who_takes_it() {
        for (accepted, bytes, encoding) in [
            ("gzip", 1_024, Some("gzip")),
            ("br, gzip;q=0.5", 1_024, Some("gzip")),
            ("gzip", 1_023, None),
            ("identity", 1_024, None),
            ("gzip;q=0", 1_024, None),
        ] {
            let response = sent(accepted, bytes).await;
            let headers = response.headers();
            assert_eq!(
                headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap()),
                encoding,
                "{accepted}"
            );
            assert_eq!(headers.contains_key(header::VARY), bytes == 1_024, "{accepted}");
        }
        let unsaid = Accepted::of(&HeaderMap::new()).compress(Response::new(Body::from(vec![b'x'; 1_024]))).await;
        assert_eq!(unsaid.headers()[header::VARY], "accept-encoding");
    }

    #[tokio::test]
    async fn g16_who_takes_nothing_is_told_so_whatever_the_size() {
        for bytes in [1, 1_024] {
            for accepted in ["*;q=0", "identity;q=0, br", "identity; q=0"] {
                assert_eq!(sent(accepted, bytes).await.status(), StatusCode::NOT_ACCEPTABLE, "{accepted}");
            }
            assert_eq!(sent("identity;q=0, gzip", bytes).await.status(), StatusCode::OK);
        }
    }
}
