//! The raw limit of query-service: axum with nothing around it. A view by one question to Redis, `hello` by none, and a
//! stream to which somebody else's batches are broadcast.
//!
//! A process of its own, with as many threads and the same connection to Redis as query-service has.

use std::{convert::Infallible, fs, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path as InPath, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use futures_util::stream;
use millrace_shared::{kafka::partition_of, views::Keys};
use millrace_tests::{
    Stack, eventually,
    process::{Process, binary, command, free_port},
};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::broadcast};

/// Batches that a listener may be behind, as in query-service.
const BEHIND: usize = 128;

/// What it is told, by a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Where to listen.
    pub address: SocketAddr,
    /// Redis.
    pub redis: String,
    /// Keys of the views begin with it.
    pub redis_prefix: String,
    /// Partitions of the views.
    pub partitions: i32,
    /// A change as query-service sends it.
    pub frame: String,
}

struct Server {
    redis: ConnectionManager,
    keys: Vec<Keys>,
    frame: String,
    changes: broadcast::Sender<Bytes>,
}

/// Runs until killed.
pub fn run(file: &Path) -> Result<()> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let options: Options = serde_json::from_slice(&text).context("reading the options")?;
    tokio::runtime::Runtime::new()?.block_on(serve(options))
}

async fn serve(options: Options) -> Result<()> {
    let config = ConnectionManagerConfig::new();
    let client = redis::Client::open(options.redis.as_str())?;
    let server = Arc::new(Server {
        redis: ConnectionManager::new_with_config(client, config).await?,
        keys: (0..options.partitions)
            .map(|partition| Keys::projection(&options.redis_prefix, "bank-accounts", 1, partition))
            .collect(),
        frame: options.frame,
        changes: broadcast::channel(BEHIND).0,
    });
    let router = Router::new()
        .route("/hello", get(|| async { "hello" }))
        .route("/v1/bank-accounts/{id}", get(view))
        .route("/changes", get(changes))
        .route("/changes/{count}", post(publish))
        .with_state(server);
    let listener = TcpListener::bind(options.address).await?;
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

async fn view(State(server): State<Arc<Server>>, InPath(id): InPath<String>) -> Response {
    let partition = partition_of(id.as_bytes(), server.keys.len() as i32).unsigned_abs() as usize;
    let mut get = redis::cmd("GET");
    get.arg(server.keys[partition].view(&id));
    match get.query_async::<Option<String>>(&mut server.redis.clone()).await {
        Ok(Some(view)) => ([(header::CONTENT_TYPE, "application/json")], view).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn changes(State(server): State<Arc<Server>>) -> Response {
    let next = |mut batches: broadcast::Receiver<Bytes>| async {
        let batch = batches.recv().await.ok()?;
        Some((Ok::<_, Infallible>(batch), batches))
    };
    let body = Body::from_stream(stream::unfold(server.changes.subscribe(), next));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

async fn publish(State(server): State<Arc<Server>>, InPath(count): InPath<usize>) -> String {
    let sent = server.changes.send(server.frame.repeat(count).into());
    sent.unwrap_or_default().to_string()
}

/// One that runs.
pub struct RawWeb {
    /// Its process.
    pub process: Process,
    /// Where it is.
    pub address: SocketAddr,
}

impl RawWeb {
    /// Starts one on the views of a deployment.
    pub fn start(redis_prefix: &str, partitions: i32, frame: &str) -> Result<Self> {
        let stack = Stack::shared();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let options = Options {
            address,
            redis: stack.redis.clone(),
            redis_prefix: redis_prefix.to_owned(),
            partitions,
            frame: frame.to_owned(),
        };
        let name = format!("{redis_prefix}raw-web-{}", address.port());
        let file = stack.dir.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_vec(&options)?).with_context(|| format!("writing {}", file.display()))?;
        let mut raw = command(binary("millrace-bench"));
        raw.arg("raw-web").arg(file);
        let process = Process::start(&raw, &stack.log(&name));
        eventually("raw server that listens", || {
            std::net::TcpStream::connect(address).map(drop).map_err(|error| error.to_string())
        });
        Ok(Self { process, address })
    }
}
