//! Running a service: listeners, signals, waiting for what it depends on, a bounded end.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::ConnectInfo, serve::Listener};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

/// Waiting for less than this is the ordinary course of a start.
const START_TOGETHER: Duration = Duration::from_secs(10);
/// Open requests get so long to finish after SIGTERM.
const HTTP_DRAIN: Duration = Duration::from_secs(5);
/// hyper demands so much.
const LEAST_HEAD_BYTES: usize = 8 << 10;
/// Open files beside those of connections.
const OTHER_FILES: usize = 300;

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

/// What callers may hold of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait until one is closed.
    pub connections: usize,
    /// Longest wait for the whole head of a request, the next one on a connection as well, and for the caller to take
    /// some of the answer.
    pub timeout: Duration,
    /// What a connection keeps of a request before it is answered 431: more than [`crate::http`] lets through.
    pub head_bytes: usize,
}

impl Limits {
    /// Those of an operations listener: its own, so that health is told while the API is at its limit.
    pub const OPERATIONS: Self = Self { connections: 100, timeout: Duration::from_secs(10), head_bytes: 32 << 10 };
}

/// Serves until `shutdown`, then finishes open requests for a bounded time.
pub async fn http(
    mut listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let connections = affordable(limits.connections);
    let address = listener.local_addr()?.to_string();
    let free = metrics::gauge!("millrace_http_connections_free", "listener" => address);
    free.set(connections as f64);
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(limits.timeout)
        .max_buf_size(limits.head_bytes.max(LEAST_HEAD_BYTES));
    // As axum::serve does, once and not for every request.
    let service = TowerToHyperService::new(router.with_state::<()>(()));
    let places = Arc::new(Semaphore::new(connections));
    let open = GracefulShutdown::new();
    loop {
        // Whoever comes too many waits in the kernel's queue. An accept that fails is tried again.
        let next = async {
            let place = places.clone().acquire_owned().await;
            (Listener::accept(&mut listener).await, place)
        };
        let ((stream, caller), place) = tokio::select! {
            next = next => next,
            () = shutdown.cancelled() => break,
        };
        // Small pieces go out at once. One who has vanished is noticed even while all that is sent fits into a buffer.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits.timeout));
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.timeout));
        let service = service.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(caller));
            service.call(request)
        });
        let connection = open.watch(server.serve_connection(TokioIo::new(Box::pin(stream)), service));
        let free = free.clone();
        free.decrement(1);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
            free.increment(1);
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(HTTP_DRAIN, open.shutdown()).await;
    Ok(())
}

/// Connections that the limit of open files leaves room for, of those that are wanted.
fn affordable(wanted: usize) -> usize {
    let allowed = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        // The soft limit is often 1,024, for the sake of programs that use select().
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    let Ok(allowed) = allowed else { return wanted };
    let affordable = usize::try_from(allowed).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES).max(1);
    if affordable < wanted {
        tracing::warn!(allowed, "only {affordable} of {wanted} connections are possible: raise `ulimit -Hn`");
    }
    wanted.min(affordable)
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    const PATIENCE: Duration = Duration::from_secs(20);
    const LARGE: usize = 64 << 20;

    async fn served(limits: Limits) -> SocketAddr {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "").await.unwrap();
        let address = listener.local_addr().unwrap();
        let large = || async { Body::from(vec![b'x'; LARGE]) };
        let router = Router::new().route("/", get(|| async { "here" })).route("/large", get(large));
        tokio::spawn(http(listener, router, limits, CancellationToken::new()));
        address
    }

    async fn connect(address: SocketAddr, sent: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream
    }

    /// What comes until the connection is closed.
    async fn read(stream: &mut TcpStream) -> Vec<u8> {
        let mut read = Vec::new();
        // A reset ends it as well.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("it stays open");
        read
    }

    #[tokio::test]
    async fn g16_a_request_whose_head_does_not_come_is_given_up() {
        let address =
            served(Limits { connections: 10, timeout: Duration::from_millis(200), ..Limits::OPERATIONS }).await;
        for sent in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX"] {
            assert!(read(&mut connect(address, sent).await).await.is_empty());
        }
        // Nor does one who sends a byte now and then stay for ever.
        let mut drip = connect(address, b"GET / HTTP/1.1\r\nX: ").await;
        let closed = async {
            while drip.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("it stays open");
        // A connection that is used again and again is kept.
        let mut kept = connect(address, b"").await;
        for _ in 0..20 {
            kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            assert!(kept.read(&mut [0; 1_000]).await.unwrap() > 0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn g16_an_answer_that_nobody_reads_is_given_up() {
        let address =
            served(Limits { connections: 1, timeout: Duration::from_millis(200), ..Limits::OPERATIONS }).await;
        let mut idle = connect(address, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await;
        // Only one may be connected, so the next is served as soon as the first is not.
        let mut next = connect(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(read(&mut next).await.ends_with(b"here"));
        assert!(read(&mut idle).await.len() < LARGE);
    }

    #[tokio::test]
    async fn g16_whoever_comes_too_many_waits_for_a_place() {
        let address = served(Limits { connections: 2, timeout: PATIENCE * 2, ..Limits::OPERATIONS }).await;
        let first = connect(address, b"G").await;
        let _second = connect(address, b"G").await;
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut third = connect(address, request).await;
        let early = tokio::time::timeout(Duration::from_millis(300), third.read(&mut [0])).await;
        assert!(early.is_err(), "{early:?}");
        drop(first);
        assert!(read(&mut third).await.ends_with(b"here"));
    }
}
