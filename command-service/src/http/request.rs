//! What a command's request carries beside its path.

use std::time::Duration;

use axum::{
    body::{Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, header},
};
use jiff::Timestamp;
use millrace_shared::{
    domain::process::reserved_prefixes,
    envelope::{CommandHeaders, is_command_id, is_traceparent, parse_version},
    problem::{FieldError, Problem, REQUEST_TIMEOUT, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE},
};

/// Largest body of a command.
const MAX_BODY_BYTES: usize = 64 << 10;

/// The headers that steer a command.
#[derive(Debug, Default)]
pub struct Options {
    /// `Idempotency-Key`: the command id.
    pub idempotency_key: Option<String>,
    /// `Prefer: respond-async`.
    pub respond_async: bool,
    /// `If-Match`, `Millrace-Not-Before`, correlation id, trace context.
    pub headers: CommandHeaders,
}

impl Options {
    /// Reads and checks them.
    pub fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let mut one = |name: &'static str, check: &dyn Fn(&str) -> Result<(), String>| {
            let mut values = headers.get_all(name).iter();
            let value = values.next()?;
            let text = match (value.to_str(), values.next()) {
                (Ok(text), None) => text,
                (_, Some(_)) => {
                    errors.push(FieldError::new(name, "the header is there twice"));
                    return None;
                }
                (Err(_), None) => {
                    errors.push(FieldError::new(name, "the header is not visible ASCII"));
                    return None;
                }
            };
            match check(text) {
                Ok(()) => Some(text.to_owned()),
                Err(reason) => {
                    errors.push(FieldError::new(name, reason));
                    None
                }
            }
        };
        let id =
            |text: &str| is_command_id(text).then_some(()).ok_or("must be 1 to 128 visible ASCII characters".into());
        let idempotency_key = one("Idempotency-Key", &|text| match reserved_prefixes()
            .iter()
            .find(|prefix| text.starts_with(prefix.as_str()))
        {
            Some(prefix) => Err(format!("ids that begin with {prefix} are Millrace's own")),
            None => id(text),
        });
        let correlation_id = one("Millrace-Correlation-Id", &id);
        let if_match = one("If-Match", &|text| {
            let reason = "must be the expected version in quotes, e.g. \"3\" (\"0\" = must not exist)".to_owned();
            version(text).map(|_| ()).ok_or(reason)
        });
        let not_before = one("Millrace-Not-Before", &|text| {
            let reason = "must be a time in RFC 3339, such as 2027-01-31T08:00:00Z".to_owned();
            text.parse::<Timestamp>().map(|_| ()).map_err(|_| reason)
        });
        let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
        if !errors.is_empty() {
            return Err(Problem::malformed(errors));
        }
        let preferences = headers.get_all("Prefer").iter().filter_map(|value| value.to_str().ok());
        Ok(Self {
            idempotency_key,
            respond_async: preferences
                .flat_map(|value| value.split(','))
                .any(|preference| preference.trim().eq_ignore_ascii_case("respond-async")),
            headers: CommandHeaders {
                expected_version: if_match.as_deref().and_then(version),
                correlation_id,
                not_before: not_before.and_then(|text| text.parse().ok()),
                traceparent: traceparent.filter(|text| is_traceparent(text)).map(str::to_owned),
                ..CommandHeaders::default()
            },
        })
    }
}

fn version(entity_tag: &str) -> Option<u64> {
    parse_version(entity_tag.strip_prefix('"')?.strip_suffix('"')?)
}

/// The body, which must be JSON of a bounded size, and there in time.
pub async fn json_body(request: Request, timeout: Duration) -> Result<Bytes, Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json"));
    }
    let too_large = || Problem::new(&TOO_LARGE, format!("a command's body is at most {MAX_BODY_BYTES} bytes"));
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.and_then(|text| text.parse().ok()).is_some_and(|length: u64| length > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    let body = tokio::time::timeout(timeout, to_bytes(request.into_body(), MAX_BODY_BYTES)).await;
    let body = body.map_err(|_| Problem::new(&REQUEST_TIMEOUT, format!("the body did not come within {timeout:?}")))?;
    body.map_err(|error| {
        let limited = std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("length limit"));
        match limited {
            true => too_large(),
            false => Problem::malformed(vec![FieldError::new("", format!("the body can't be read: {error}"))]),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn read(name: &'static str, value: &'static str) -> Result<Options, Problem> {
        Options::read(&HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]))
    }

    #[test]
    fn g06_if_match_is_one_version_in_quotes() {
        assert_eq!(read("if-match", "\"0\"").unwrap().headers.expected_version, Some(0));
        assert_eq!(read("if-match", "\"42\"").unwrap().headers.expected_version, Some(42));
        for malformed in ["*", "42", "\"\"", "W/\"42\"", "\"-1\"", "\"042\"", "\"1\", \"2\"", "\"x\""] {
            assert!(read("if-match", malformed).is_err(), "{malformed}");
        }
    }

    #[test]
    fn g13_a_key_of_ours_or_a_malformed_one_is_refused() {
        assert_eq!(read("idempotency-key", "k-1").unwrap().idempotency_key.as_deref(), Some("k-1"));
        for malformed in ["", "a b", "transfer/1/2"] {
            assert!(read("idempotency-key", malformed).is_err(), "{malformed:?}");
        }
    }

    #[test]
    fn g13_a_time_is_one_by_rfc_3339() {
        let due = read("millrace-not-before", "2027-01-31T09:00:00+01:00").unwrap().headers.not_before;
        assert_eq!(due, Some("2027-01-31T08:00:00Z".parse().unwrap()));
        for malformed in ["", "tomorrow", "2027-01-31", "2027-01-31T08:00:00", "1800000000"] {
            assert!(read("millrace-not-before", malformed).is_err(), "{malformed:?}");
        }
    }

    #[test]
    fn preferences_are_found_among_others() {
        assert!(read("prefer", "wait=5, Respond-Async").unwrap().respond_async);
        assert!(!read("prefer", "return=minimal").unwrap().respond_async);
    }
}
