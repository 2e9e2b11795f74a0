//! The operations listener: is the process alive, can it do its work, and its metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

/// How often dependencies are asked whether they are there.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// What a service needs in order to be ready. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Part>>>,
}

#[derive(Debug)]
struct Part {
    needed: bool,
    missing: Option<String>,
    since: Instant,
}

impl Health {
    /// Names a part that is needed and not there yet.
    pub fn expect(&self, part: &'static str) {
        self.set(part, Err("not started yet".to_owned()));
    }

    /// Notes how a part is; changes are logged.
    pub fn set(&self, part: &'static str, state: Result<(), String>) {
        self.put(part, true, state);
    }

    /// Notes how a part is that the service can do without; it is shown, and never makes the service not ready.
    pub fn note(&self, part: &'static str, state: Result<(), String>) {
        self.put(part, false, state);
    }

    fn put(&self, part: &'static str, needed: bool, state: Result<(), String>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = parts.get(part);
        let (was, is) = (known.map(|p| p.missing.is_none()), state.is_ok());
        if was == Some(is) {
            if let (Some(part), Err(reason)) = (parts.get_mut(part), state) {
                part.missing = Some(reason);
            }
            return;
        }
        match &state {
            Ok(()) => tracing::info!(part, "ready"),
            Err(reason) if was.is_some() => tracing::warn!(part, reason, "not ready"),
            Err(_) => {}
        }
        parts.insert(part, Part { needed, missing: state.err(), since: Instant::now() });
    }

    /// What is missing of what is needed, by part.
    pub fn missing(&self) -> BTreeMap<&'static str, String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = parts.iter().filter(|(_, part)| part.needed);
        needed.filter_map(|(name, part)| Some((*name, part.missing.clone()?))).collect()
    }

    /// Every part with how it is, and whether all that is needed is there.
    pub fn report(&self) -> Value {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = !parts.is_empty() && parts.values().all(|part| !part.needed || part.missing.is_none());
        let of = |part: &Part| {
            json!({
                "ready": part.missing.is_none(),
                "needed": part.needed,
                "reason": part.missing,
                "for_seconds": part.since.elapsed().as_secs(),
            })
        };
        json!({
            "ready": ready,
            "missing": parts.iter().filter(|(_, part)| part.needed && part.missing.is_some()).map(|(name, _)| name).collect::<Vec<_>>(),
            "parts": parts.iter().map(|(name, part)| (*name, of(part))).collect::<BTreeMap<_, _>>(),
        })
    }

    fn ready(&self) -> Response {
        let body = self.report();
        let status = if body["ready"] == true { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Json(body)).into_response()
    }
}

/// The operations listener's routes.
pub fn router(health: Health, metrics: PrometheusHandle) -> Router {
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    Router::new()
        .route("/health/live", get(|| async { Json(json!({"live": true})) }))
        .route("/health/ready", get(move || async move { health.ready() }))
        .route("/metrics", get(move || async move { metrics.render() }))
}
