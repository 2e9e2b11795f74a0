//! A plain HTTP client: any request, every answer, no redirects, no retries.

use std::{sync::LazyLock, time::Duration};

use serde_json::Value;
use ureq::{
    Agent,
    http::{HeaderMap, HeaderValue, Request as HttpRequest},
};

const LIMIT: Duration = Duration::from_secs(60);

static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // Services are killed and started again on the same port: a kept connection would be a dead one.
        .max_idle_connections(0)
        .build()
        .into()
});

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
    limit: Duration,
}

/// A GET.
pub fn get(url: &str) -> Request {
    Request::new("GET", url)
}

/// A POST; the body is still to come.
pub fn post(url: &str) -> Request {
    let mut request = Request::new("POST", url);
    request.body = Some(Vec::new());
    request
}

impl Request {
    /// Any method.
    pub fn new(method: &str, url: &str) -> Self {
        Self { method: method.to_owned(), url: url.to_owned(), headers: Vec::new(), body: None, limit: LIMIT }
    }

    /// Waits at most so long for the answer.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// The command id.
    pub fn key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }

    /// Sets a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.raw("application/json", body.to_string().into_bytes())
    }

    /// Sets any body.
    pub fn raw(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.header("Content-Type", content_type)
    }

    /// Sends it; a failure of the transport is an error.
    pub fn try_send(&self) -> Result<Answer, String> {
        let mut builder = HttpRequest::builder().method(self.method.as_str()).uri(&self.url);
        for (name, value) in &self.headers {
            builder = builder.header(name, HeaderValue::from_bytes(value).map_err(|e| e.to_string())?);
        }
        let limit = Some(self.limit);
        let sent = match &self.body {
            Some(body) => {
                let request = builder.body(body.as_slice()).map_err(|e| e.to_string())?;
                AGENT.run(AGENT.configure_request(request).timeout_global(limit).build())
            }
            None => {
                let request = builder.body(()).map_err(|e| e.to_string())?;
                AGENT.run(AGENT.configure_request(request).timeout_global(limit).build())
            }
        };
        let response = sent.map_err(|error| format!("{} {}: {error}", self.method, self.url))?;
        let (parts, mut body) = response.into_parts();
        let body = body.read_to_vec().map_err(|error| format!("{} {}: {error}", self.method, self.url))?;
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// Sends it.
    ///
    /// # Panics
    /// When the transport fails.
    #[track_caller]
    pub fn send(&self) -> Answer {
        self.try_send().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sends it until there is a definite answer: as a careful client does when a service goes away, with the same
    /// key. Everything below 500 is definite, except 429.
    #[track_caller]
    pub fn send_until_definite(&self, limit: Duration) -> Answer {
        assert!(self.headers.iter().any(|(name, _)| name == "Idempotency-Key"), "a retry needs a key");
        crate::eventually_within(limit, "definite answer", || match self.try_send()? {
            answer if answer.status >= 500 || answer.status == 429 => Err(format!("{answer:?}")),
            answer => Ok(answer),
        })
    }
}

/// What came back.
#[derive(Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("headers are text"))
    }

    /// A header that must be there.
    #[track_caller]
    pub fn must(&self, name: &str) -> &str {
        self.header(name).unwrap_or_else(|| panic!("no header {name}: {self:?}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// The token of a command's answer.
    #[track_caller]
    pub fn token(&self) -> String {
        self.json()["token"].as_str().unwrap_or_else(|| panic!("no token: {self:?}")).to_owned()
    }

    /// Checks that this is a problem document of a kind, and returns it.
    #[track_caller]
    pub fn problem(&self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{name} expected: {self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["type"], format!("/problems/{name}"), "{self:?}");
        assert_eq!(body["status"], status, "{self:?}");
        for member in ["title", "detail"] {
            assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member} says nothing: {self:?}");
        }
        body
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, self.text())
    }
}
