//! The way to Redis.

use std::{future::Future, time::Duration};

use millrace_shared::{
    http,
    problem::{Problem, UNAVAILABLE},
    views::{
        address::{Address, by_partition},
        errors::is_passing,
    },
};
use redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisFuture, RedisResult, Script, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterConfig,
    cluster_async::ClusterConnection,
};
use tokio::task::JoinSet;

/// A caller is told soon that Redis can't be reached; it may come back and ask again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that everybody shares, and that is made again when it is lost. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    link: Link,
    longest: Duration,
}

/// To one Redis, or to a cluster. A pipeline through it may be about several partitions.
#[derive(Clone)]
enum Link {
    One(ConnectionManager),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipe: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipe, offset, count),
            Self::Cluster(connection) => {
                let mut parts = by_partition(pipe);
                if parts.len() < 2 {
                    return connection.req_packed_commands(pipe, offset, count);
                }
                let connection = connection.clone();
                Box::pin(async move {
                    let mut asked = JoinSet::new();
                    for (places, part) in parts.drain(..) {
                        let mut connection = connection.clone();
                        asked.spawn(async move {
                            let count = part.len();
                            (places, connection.req_packed_commands(&part, 0, count).await)
                        });
                    }
                    let mut all = vec![Value::Nil; count];
                    while let Some(joined) = asked.join_next().await {
                        let lost = |_| RedisError::from((ErrorKind::Io, "a part of the question was given up"));
                        let (places, answers) = joined.map_err(lost)?;
                        for (place, answer) in places.into_iter().zip(answers?) {
                            all[place] = answer;
                        }
                    }
                    Ok(all)
                })
            }
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Connects when first used. `timeout` bounds each answer.
    pub fn new(address: Address, timeout: Duration) -> RedisResult<Self> {
        let longest = timeout + CONNECT_TIMEOUT;
        let client = match address {
            Address::One(client) => client,
            Address::Cluster(client) => {
                let config = ClusterConfig::new().set_connection_timeout(CONNECT_TIMEOUT.min(timeout));
                let config = config.set_response_timeout(timeout);
                let link = Link::Cluster(client.get_pending_async_connection_with_config(config));
                return Ok(Self { link, longest });
            }
        };
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(50))
            .set_connection_timeout(Some(CONNECT_TIMEOUT.min(timeout)))
            .set_response_timeout(Some(timeout));
        let link = Link::One(ConnectionManager::new_lazy_with_config(client, config)?);
        Ok(Self { link, longest })
    }

    /// Runs commands, all in one go.
    pub async fn ask<T: FromRedisValue>(&self, pipe: &Pipeline) -> Result<T, Problem> {
        let mut link = self.link.clone();
        self.bounded(pipe.query_async(&mut link)).await
    }

    /// Runs commands among which are calls of a script.
    pub async fn ask_with<T: FromRedisValue>(&self, pipe: &Pipeline, script: &Script) -> Result<T, Problem> {
        let mut link = self.link.clone();
        let unloaded = redis::ErrorKind::Server(redis::ServerErrorKind::NoScript);
        let answered = self.bounded(async {
            match pipe.query_async(&mut link).await {
                Err(error) if error.kind() == unloaded => {
                    script.load_async(&mut link).await?;
                    pipe.query_async(&mut link).await
                }
                answered => answered,
            }
        });
        answered.await
    }

    /// Whether it answers, and is what the settings say.
    pub async fn ping(&self) -> Result<(), String> {
        let mut link = self.link.clone();
        let asked = async {
            redis::cmd("PING").query_async::<()>(&mut link).await.map_err(|error| error.to_string())?;
            if matches!(link, Link::One(_)) {
                // Who may not ask can't be told.
                let info = redis::cmd("INFO").arg("server").query_async::<String>(&mut link).await;
                if info.is_ok_and(|info| info.contains("redis_mode:cluster")) {
                    return Err("it is a node of a cluster: set MILLRACE_REDIS_CLUSTER=true".to_owned());
                }
            }
            Ok(())
        };
        let answered = tokio::time::timeout(CONNECT_TIMEOUT, asked).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))
    }

    async fn bounded<T>(&self, asked: impl Future<Output = RedisResult<T>>) -> Result<T, Problem> {
        match tokio::time::timeout(self.longest, asked).await {
            Ok(answered) => answered.map_err(|error| problem(&error)),
            Err(_) => Err(unavailable("Redis does not answer in time")),
        }
    }
}

/// One answer among those of a pipe whose commands answer in different forms.
pub fn decoded<T: FromRedisValue>(value: &redis::Value) -> Result<T, Problem> {
    redis::from_redis_value(value.clone()).map_err(|error| http::internal(&format_args!("Redis: {error}")))
}

/// What callers are told of an error.
pub fn problem(error: &RedisError) -> Problem {
    if is_passing(error) {
        tracing::debug!("Redis: {error}");
        unavailable("Redis can't be asked at the moment")
    } else {
        http::internal(&format_args!("Redis: {error}"))
    }
}

/// Something that we need does not answer.
pub fn unavailable(detail: &str) -> Problem {
    Problem::new(&UNAVAILABLE, detail).retry_after(1)
}
