//! Query parameters, taken one by one, so that a caller is told everything that is wrong at once.

use std::{str::FromStr, time::Duration};

use axum::{
    extract::{FromRequestParts, Path, rejection::PathRejection},
    http::request::Parts,
};
use millrace_shared::{
    domain::AggregateId,
    problem::{FieldError, Problem},
    token::Token,
};
use percent_encoding::percent_decode_str;

const DEFAULT_WAIT_MS: u64 = 2_000;
/// Longest wait for a token.
pub const MAX_WAIT_MS: u64 = 30_000;

/// What is behind the `?`, being taken apart.
#[derive(Debug, Default)]
pub struct Params {
    rest: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Params {
    /// Reads a query string. What is wrong with it is said by [`Params::finish`].
    pub fn parse(query: Option<&str>) -> Self {
        let mut params = Self::default();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match (decode(name), decode(value)) {
                (Some(name), Some(value)) => {
                    if params.rest.iter().any(|(known, _)| *known == name) {
                        params.wrong(&name, "the parameter is there twice");
                    } else {
                        params.rest.push((name, value));
                    }
                }
                _ => params.wrong(name, "not UTF-8 once percent-decoded"),
            }
        }
        params
    }

    /// Takes a parameter as text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let at = self.rest.iter().position(|(known, _)| known == name)?;
        Some(self.rest.remove(at).1)
    }

    /// Takes a parameter that is read by a function.
    pub fn read<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(&self.text(name)?) {
            Ok(value) => Some(value),
            Err(detail) => {
                self.wrong(name, &detail);
                None
            }
        }
    }

    /// Takes a whole number within bounds.
    pub fn number(&mut self, name: &str, least: u64, most: u64) -> Option<u64> {
        self.read(name, |text| {
            let plain = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = u64::from_str(text).ok().filter(|number| plain && (least..=most).contains(number));
            number.ok_or_else(|| format!("must be a whole number from {least} to {most}"))
        })
    }

    /// Notes what is wrong with a parameter.
    pub fn wrong(&mut self, name: &str, detail: &str) {
        // A hostile name is cut, so that the answer stays small.
        self.errors.push(FieldError::new(name.chars().take(64).collect::<String>(), detail));
    }

    /// Every parameter must have been asked for and found good.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.rest) {
            self.wrong(&name, "there is no such parameter here");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::malformed(self.errors)) }
    }
}

fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}

/// What must have been reached before a query is answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct After {
    /// The token, where there is one.
    pub token: Option<Token>,
    /// Longest wait.
    pub wait: Duration,
    /// Whether a stale answer is an error.
    pub strict: bool,
}

impl After {
    /// Takes `after`, `wait_ms` and `stale`. The token must be of the aggregate type, and of `id` where one is named.
    pub fn take(params: &mut Params, aggregate_type: &str, id: Option<&str>) -> Self {
        let token = params.read("after", |text| {
            let token = Token::decode(text).ok_or("is no token of an accepted command")?;
            if token.aggregate_type != aggregate_type || id.is_some_and(|id| id != token.aggregate_id) {
                return Err(format!("is a token of {} {}", token.aggregate_type, token.aggregate_id));
            }
            Ok(token)
        });
        let wait = params.number("wait_ms", 0, MAX_WAIT_MS).unwrap_or(DEFAULT_WAIT_MS);
        let strict = params.read("stale", |text| match text {
            "error" => Ok(()),
            _ => Err("must be `error`, or absent".to_owned()),
        });
        Self { token, wait: Duration::from_millis(wait), strict: strict.is_some() }
    }
}

/// The aggregate's id in the path.
#[derive(Debug)]
pub struct IdInPath(pub AggregateId);

impl<S: Send + Sync> FromRequestParts<S> for IdInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = segments::<String, S>(parts, state).await?;
        checked(&id).map(Self)
    }
}

/// The aggregate's id and a command id in the path.
#[derive(Debug)]
pub struct CommandInPath(pub AggregateId, pub String);

impl<S: Send + Sync> FromRequestParts<S> for CommandInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((id, command_id)) = segments::<(String, String), S>(parts, state).await?;
        if !millrace_shared::envelope::is_command_id(&command_id) {
            let error = FieldError::new("command_id", "a command id is 1 to 128 visible ASCII characters");
            return Err(Problem::malformed(vec![error]));
        }
        Ok(Self(checked(&id)?, command_id))
    }
}

async fn segments<T, S>(parts: &mut Parts, state: &S) -> Result<Path<T>, Problem>
where
    T: serde::de::DeserializeOwned + Send,
    S: Send + Sync,
{
    let read: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
    read.map_err(|error| Problem::malformed(vec![FieldError::new("path", error.body_text())]))
}

fn checked(id: &str) -> Result<AggregateId, Problem> {
    AggregateId::new(id).map_err(|detail| Problem::malformed(vec![FieldError::new("id", detail)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(params: Params) -> Vec<String> {
        let Err(problem) = params.finish() else { return Vec::new() };
        let all = problem.body()["errors"].clone();
        all.as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn g13_everything_that_is_wrong_is_said_at_once() {
        let mut params = Params::parse(Some("limit=0&limit=2&x=1&owner=%ff&y"));
        assert_eq!(params.number("limit", 1, 200), None);
        assert_eq!(errors(params), ["limit", "owner", "limit", "x", "y"]);
    }

    #[test]
    fn what_was_asked_for_is_fine() {
        let mut params = Params::parse(Some("owner=Ada+L%C3%B6w&limit=50&"));
        assert_eq!(params.text("owner").as_deref(), Some("Ada Löw"));
        assert_eq!(params.number("limit", 1, 200), Some(50));
        assert_eq!(errors(params), [] as [&str; 0]);
    }

    #[test]
    fn g13_numbers_are_plain() {
        for bad in ["", "+1", "-1", "1.0", "0x1", "201", "99999999999999999999"] {
            let mut params = Params::parse(Some(&format!("limit={}", bad.replace('+', "%2B"))));
            assert_eq!(params.number("limit", 1, 200), None, "{bad}");
            assert_eq!(errors(params), ["limit"], "{bad}");
        }
    }

    #[test]
    fn g08_a_token_must_be_of_what_is_asked_for() {
        let token = Token { aggregate_type: "bank-account".into(), aggregate_id: "a".into(), sequence: 1 }.encode();
        let take = |aggregate_type: &str, id| {
            let mut params = Params::parse(Some(&format!("after={token}")));
            let after = After::take(&mut params, aggregate_type, id);
            (after.token.is_some(), errors(params).len())
        };
        assert_eq!(take("bank-account", Some("a")), (true, 0));
        assert_eq!(take("bank-account", None), (true, 0));
        assert_eq!(take("bank-account", Some("b")), (false, 1));
        assert_eq!(take("user", None), (false, 1));
    }
}
