//! Logs and metrics.

use std::io::{self, IsTerminal};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{LogFormat, LogSettings},
    panics,
};

/// Seconds; from a fast command to a long wait.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Starts logging to standard error and collecting metrics; the handle renders them. To be called once.
pub fn init(settings: &LogSettings) -> io::Result<PrometheusHandle> {
    panics::install();
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|error| io::Error::other(format!("MILLRACE_LOG is no tracing filter: {error}")))?;
    let text = (settings.log_format == LogFormat::Text).then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
    });
    let json = (settings.log_format == LogFormat::Json)
        .then(|| tracing_subscriber::fmt::layer().json().with_writer(io::stderr));
    tracing_subscriber::registry().with(filter).with(text).with(json).try_init().map_err(io::Error::other)?;
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(io::Error::other)
}
