//! Query parameters, taken one by one, so that a caller is told everything that is wrong at once.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use axum::{
    extract::{FromRequestParts, Path, rejection::PathRejection},
    http::request::Parts,
};
use jiff::Timestamp;
use millrace_shared::{
    domain::AggregateId,
    problem::{FieldError, Problem},
    token::Token,
};
use percent_encoding::percent_decode_str;

const DEFAULT_WAIT_MS: u64 = 2_000;
/// Tokens that one query can wait for.
const MAX_TOKENS: usize = 32;

/// What is behind the `?`, being taken apart.
#[derive(Debug, Default)]
pub struct Params {
    rest: Vec<(String, String)>,
    taken: Vec<String>,
    errors: Vec<FieldError>,
}

impl Params {
    /// Reads a query string. What is wrong with it is said by [`Params::finish`].
    pub fn parse(query: Option<&str>) -> Self {
        let mut params = Self::default();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match (decode(name), decode(value)) {
                (Some(name), Some(value)) => params.rest.push((name, value)),
                _ => params.wrong(name, "not UTF-8 once percent-decoded"),
            }
        }
        params
    }

    /// Takes a parameter as text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let at = self.rest.iter().position(|(known, _)| known == name)?;
        self.taken.push(name.to_owned());
        Some(self.rest.remove(at).1)
    }

    /// Takes all parameters of a name.
    fn texts(&mut self, name: &str) -> Vec<String> {
        self.rest.extract_if(.., |(known, _)| known == name).map(|(_, value)| value).collect()
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
            let twice = self.taken.contains(&name);
            self.wrong(&name, if twice { "the parameter is there twice" } else { "there is no such parameter here" });
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::malformed(self.errors)) }
    }
}

fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}

/// What must have been reached before a query is answered.
#[derive(Clone, Debug)]
pub struct After {
    /// The tokens; of each aggregate the one with the last sequence.
    pub tokens: Vec<Token>,
    /// It is waited until then.
    pub until: Instant,
    /// Whether a stale answer is an error.
    pub strict: bool,
    /// Whether the view must have come to its end.
    pub r#final: bool,
}

impl After {
    /// Nothing in particular.
    pub fn nothing() -> Self {
        Self { tokens: Vec::new(), until: Instant::now(), strict: false, r#final: false }
    }

    /// Takes `after` (any number of them), `wait_ms` (at most `longest`) and `stale`. Tokens must be of the deployment and the
    /// aggregate type, and of `id` where one is named.
    pub fn take(
        params: &mut Params,
        (deployment, longest): (&str, Duration),
        aggregate_type: &str,
        id: Option<&str>,
    ) -> Self {
        let mut tokens: Vec<Token> = Vec::new();
        let given = params.texts("after");
        if given.len() > MAX_TOKENS {
            params.wrong("after", &format!("there are {} tokens, {MAX_TOKENS} at most", given.len()));
        }
        for text in given.iter().take(MAX_TOKENS) {
            let Some(token) = Token::decode(text, deployment) else {
                params.wrong("after", "is no token of a command that was accepted here");
                continue;
            };
            if token.aggregate_type != aggregate_type || id.is_some_and(|id| id != token.aggregate_id) {
                params.wrong("after", &format!("is a token of {} {}", token.aggregate_type, token.aggregate_id));
                continue;
            }
            match tokens.iter_mut().find(|known| known.aggregate_id == token.aggregate_id) {
                Some(known) => known.sequence = known.sequence.max(token.sequence),
                None => tokens.push(token),
            }
        }
        let longest = longest.as_millis() as u64;
        let wait = params.number("wait_ms", 0, longest).unwrap_or(DEFAULT_WAIT_MS.min(longest));
        let strict = params.read("stale", |text| match text {
            "error" => Ok(()),
            _ => Err("must be `error`, or absent".to_owned()),
        });
        let until = Instant::now() + Duration::from_millis(wait);
        Self { tokens, until, strict: strict.is_some(), r#final: false }
    }

    /// Takes `until=final` as well.
    pub fn or_final(self, params: &mut Params) -> Self {
        let r#final = params.read("until", |text| match text {
            "final" => Ok(()),
            _ => Err("must be `final`, or absent".to_owned()),
        });
        Self { r#final: r#final.is_some(), ..self }
    }

    /// Whether there is anything to wait for.
    pub fn is_asked_for(&self) -> bool {
        self.r#final || !self.tokens.is_empty()
    }

    /// The sequence that an aggregate must have reached.
    pub fn sequence(&self, id: &str) -> u64 {
        self.tokens.iter().find(|token| token.aggregate_id == id).map_or(0, |token| token.sequence)
    }
}

/// Reads a time by RFC 3339.
pub fn time(text: &str) -> Result<Timestamp, String> {
    // The + of an offset is a space to those who forgot to encode it.
    let time = text.replace(' ', "+").parse();
    time.map_err(|_| "must be a time by RFC 3339, e.g. 2026-01-31T12:00:00Z".to_owned())
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
        if !millrace_shared::envelope::is_known_command_id(&command_id) {
            let error = FieldError::new("command_id", "a command id is 1 to 128 visible ASCII characters");
            return Err(Problem::malformed(vec![error]));
        }
        Ok(Self(checked(&id)?, command_id))
    }
}

/// One part of the path that is no id of an aggregate.
#[derive(Debug)]
pub struct TextInPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for TextInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        segments::<String, S>(parts, state).await.map(|Path(text)| Self(text))
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
        assert_eq!(errors(params), ["owner", "limit", "limit", "x", "y"]);
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
        let token = Token { aggregate_type: "bank-account".into(), aggregate_id: "a".into(), sequence: 1 }.encode("x.");
        let take_at = |deployment: &str, aggregate_type: &str, id| {
            let mut params = Params::parse(Some(&format!("after={token}")));
            let after = After::take(&mut params, (deployment, Duration::from_secs(1)), aggregate_type, id);
            (!after.tokens.is_empty(), errors(params).len())
        };
        assert_eq!(take_at("y.", "bank-account", Some("a")), (false, 1));
        let take = |aggregate_type: &str, id| take_at("x.", aggregate_type, id);
        assert_eq!(take("bank-account", Some("a")), (true, 0));
        assert_eq!(take("bank-account", None), (true, 0));
        assert_eq!(take("bank-account", Some("b")), (false, 1));
        assert_eq!(take("user", None), (false, 1));
    }

    #[test]
    fn g08_of_several_tokens_the_last_of_each_aggregate_counts() {
        let token =
            |id: &str, sequence| Token { aggregate_type: "bank-account".into(), aggregate_id: id.into(), sequence };
        let given = [token("a", 3), token("b", 7), token("a", 2)].map(|token| format!("after={}", token.encode("")));
        let take = |query: &str| {
            let mut params = Params::parse(Some(query));
            let after = After::take(&mut params, ("", Duration::from_secs(1)), "bank-account", None);
            (after.tokens, errors(params))
        };
        assert_eq!(take(&given.join("&")), (vec![token("a", 3), token("b", 7)], vec![]));
        let many = vec![given[0].as_str(); MAX_TOKENS + 1].join("&");
        assert_eq!(take(&many).1, ["after"]);
    }
}
