//! The change feed: wakes those who wait for a partition to move.
//!
//! One task reads the feeds of all partitions, and only while somebody waits. Who wakes up looks for himself whether
//! what he waits for is there; so a wake-up too many does no harm.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, RedisResult, Value,
    aio::MultiplexedConnection,
    streams::{StreamRangeReply, StreamReadReply},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Redis answers after so long when nothing has changed.
const BLOCK: Duration = Duration::from_secs(1);
/// Entries of one feed in one answer.
const COUNT: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(200);
/// Who waits for a feed that isn't read looks again after so long.
pub const UNWATCHED: Duration = Duration::from_millis(100);

/// The feeds of all partitions of the active versions.
#[derive(Debug, Default)]
pub struct Feed {
    /// Whether anybody reads: one call can't wait for streams on several nodes of a cluster, so there those who wait look
    /// again and again.
    read: bool,
    streams: Mutex<BTreeMap<&'static str, Vec<Stream>>>,
    waiting: AtomicUsize,
    called: Notify,
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Stream {
    key: String,
    moved: watch::Sender<()>,
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Waiter {
    feed: Arc<Feed>,
    moved: watch::Receiver<()>,
}

impl Waiter {
    /// Returns when the partition may have moved since the last call.
    pub async fn moved(&mut self) {
        if self.moved.changed().await.is_err() {
            // Another version is active now; this one's feed is no longer read.
            tokio::time::sleep(UNWATCHED).await;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.feed.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Feed {
    /// That is read, or not.
    pub fn new(read: bool) -> Self {
        Self { read, ..Self::default() }
    }

    /// From now on these are the feeds of a projection.
    pub fn watch(&self, projection: &'static str, keys: Vec<String>) {
        if !self.read {
            return;
        }
        let streams = keys.into_iter().map(|key| Stream { key, moved: watch::channel(()).0 }).collect();
        self.streams().insert(projection, streams);
        self.changed.notify_one();
    }

    /// Begins to wait for a feed.
    pub fn wait_for(self: &Arc<Self>, key: &str) -> Waiter {
        let streams = self.streams();
        let stream = streams.values().flatten().find(|stream| stream.key == key);
        let moved = stream.map_or_else(|| watch::channel(()).1, |stream| stream.moved.subscribe());
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.called.notify_one();
        Waiter { feed: self.clone(), moved }
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<&'static str, Vec<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until `shutdown`. `timeout` bounds each answer, beyond the time Redis was asked to wait.
    pub async fn run(self: Arc<Self>, client: Client, timeout: Duration, shutdown: CancellationToken) {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(BLOCK + timeout));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.called.notified() => {}
            }
            while self.anybody_waits() {
                let read = async {
                    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                    self.read(&mut connection).await
                };
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.changed.notified() => {}
                    read = read => if let Err(error) = read {
                        tracing::debug!("the change feed can't be read: {error}");
                        tokio::time::sleep(PAUSE).await;
                    },
                }
            }
        }
    }

    fn anybody_waits(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    async fn read(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let streams: Vec<Stream> = self.streams().values().flatten().cloned().collect();
        if streams.is_empty() {
            tokio::time::sleep(PAUSE).await;
            return Ok(());
        }
        let mut seen = last(&streams, connection).await?;
        // What came before we began to look.
        for stream in &streams {
            stream.moved.send_replace(());
        }
        while self.anybody_waits() {
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT").arg(COUNT).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
            for stream in &streams {
                read.arg(&stream.key);
            }
            read.arg(&seen);
            let moved: Option<StreamReadReply> = read.query_async(connection).await?;
            for key in moved.into_iter().flat_map(|reply| reply.keys) {
                let Some(at) = streams.iter().position(|stream| stream.key == key.key) else { continue };
                if let Some(last) = key.ids.last() {
                    seen[at].clone_from(&last.id);
                    streams[at].moved.send_replace(());
                }
            }
        }
        Ok(())
    }
}

async fn last(streams: &[Stream], connection: &mut MultiplexedConnection) -> RedisResult<Vec<String>> {
    let mut pipe = redis::pipe();
    for stream in streams {
        pipe.cmd("XREVRANGE").arg(&stream.key).arg("+").arg("-").arg("COUNT").arg(1);
    }
    let all: Vec<Value> = pipe.query_async(connection).await?;
    let mut ids = Vec::new();
    for value in all {
        let range: StreamRangeReply = redis::from_redis_value(value)?;
        ids.push(range.ids.first().map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone()));
    }
    Ok(ids)
}
