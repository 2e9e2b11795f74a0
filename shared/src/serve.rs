//! Running a service: listeners, signals, waiting for what it depends on, a bounded end.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::Router;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Waiting for less than this is the ordinary course of a start.
const START_TOGETHER: Duration = Duration::from_secs(10);
/// Open requests get so long to finish after SIGTERM.
const HTTP_DRAIN: Duration = Duration::from_secs(5);

/// Runs a service's `main` on the async runtime. When it returns, nothing is waited for: a question to Kafka that nobody
/// answers must not hold up the end.
pub fn run<T>(main: impl Future<Output = T>) -> T {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => crate::config::exit_with(&error),
    };
    let returned = runtime.block_on(main);
    runtime.shutdown_background();
    returned
}

/// Binds an address; the error says which setting to change.
pub async fn bind(addr: SocketAddr, setting: &str) -> io::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("can't listen on {addr}: {error}; change {setting}")))
}

/// Serves until `shutdown`, then finishes open requests for a bounded time.
pub async fn http(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let ended = shutdown.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.cancelled().await });
    let deadline = async move {
        ended.cancelled().await;
        tokio::time::sleep(HTTP_DRAIN).await;
    };
    tokio::select! {
        result = server => result,
        () = deadline => Ok(()),
    }
}

/// A token that is cancelled by SIGTERM or Ctrl-C.
pub fn shutdown_on_signals() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("interrupted: ending"),
        }
        cancelled.cancel();
    });
    Ok(token)
}

/// Whether a failed attempt is worth another one.
#[derive(Debug)]
pub enum Attempt<E> {
    /// It is.
    Again(String),
    /// It never will be.
    Fatal(E),
}

/// Tries until it works, with back-off, saying what is waited for; `None` when told to end meanwhile.
pub async fn wait_for<T, E, F: Future<Output = Result<T, Attempt<E>>>>(
    what: &str,
    shutdown: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Result<Option<T>, E> {
    let mut pause = Duration::from_millis(100);
    let begun = Instant::now();
    loop {
        let attempted = tokio::select! {
            attempted = attempt() => attempted,
            () = shutdown.cancelled() => return Ok(None),
        };
        match attempted {
            Ok(value) => return Ok(Some(value)),
            Err(Attempt::Fatal(error)) => return Err(error),
            // Services that start together wait for each other for a moment: that is worth no warning.
            Err(Attempt::Again(reason)) if begun.elapsed() < START_TOGETHER => {
                tracing::info!("waiting for {what}: {reason}");
            }
            Err(Attempt::Again(reason)) => tracing::warn!("waiting for {what}: {reason}"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Runs blocking work on a thread of its own kind and waits for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
