//! The way to Redis.

use std::{future::Future, time::Duration};

use millrace_shared::{
    http,
    problem::{Problem, UNAVAILABLE},
    views::errors::is_passing,
};
use redis::{
    Client, FromRedisValue, Pipeline, RedisError, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};

/// A caller is told soon that Redis can't be reached; it may come back and ask again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that everybody shares, and that is made again when it is lost. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    manager: ConnectionManager,
    longest: Duration,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Connects when first used. `timeout` bounds each answer.
    pub fn new(client: Client, timeout: Duration) -> RedisResult<Self> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(50))
            .set_connection_timeout(Some(CONNECT_TIMEOUT.min(timeout)))
            .set_response_timeout(Some(timeout));
        let manager = ConnectionManager::new_lazy_with_config(client, config)?;
        Ok(Self { manager, longest: timeout + CONNECT_TIMEOUT })
    }

    /// Runs commands, all in one go.
    pub async fn ask<T: FromRedisValue>(&self, pipe: &Pipeline) -> Result<T, Problem> {
        let mut manager = self.manager.clone();
        self.bounded(pipe.query_async(&mut manager)).await
    }

    /// Runs commands among which are calls of a script.
    pub async fn ask_with<T: FromRedisValue>(&self, pipe: &Pipeline, script: &Script) -> Result<T, Problem> {
        let mut manager = self.manager.clone();
        let unloaded = redis::ErrorKind::Server(redis::ServerErrorKind::NoScript);
        let answered = self.bounded(async {
            match pipe.query_async(&mut manager).await {
                Err(error) if error.kind() == unloaded => {
                    script.load_async(&mut manager).await?;
                    pipe.query_async(&mut manager).await
                }
                answered => answered,
            }
        });
        answered.await
    }

    /// Whether it answers.
    pub async fn ping(&self) -> Result<(), String> {
        let mut manager = self.manager.clone();
        let ping = redis::cmd("PING");
        match tokio::time::timeout(CONNECT_TIMEOUT, ping.query_async::<()>(&mut manager)).await {
            Ok(answered) => answered.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
        }
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
