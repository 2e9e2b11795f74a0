//! Start-up: waits for what we depend on and says for which; refuses what can't work.

use millrace_shared::{
    kafka::topics::{self, Names, Said},
    registry::Registry,
    serve::{Attempt, blocking, wait_for},
};
use tokio_util::sync::CancellationToken;

use crate::store::{self, Store};

/// The only setting of Redis under which no view vanishes by itself.
const NO_EVICTION: &str = "noeviction";

/// What makes starting pointless.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The topics have another shape.
    #[error(transparent)]
    Topics(#[from] topics::Error),
    /// Redis would throw views away.
    #[error(
        "Redis has maxmemory-policy {0}, under which it drops views when its memory is full, and nobody would notice; \
         set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)"
    )]
    Evicting(String),
    /// Keys of others would be refused.
    #[error("Redis is a node of a cluster: set MILLRACE_REDIS_CLUSTER=true")]
    Cluster,
}

/// Waits until the topics are there, and checks their shape. False when told to end meanwhile.
pub async fn topics(
    bootstrap: &str,
    names: &Names,
    types: &[&'static str],
    partitions: i32,
    shutdown: &CancellationToken,
) -> Result<bool, Error> {
    let checked = wait_for("Kafka", shutdown, || {
        let (bootstrap, names, types) = (bootstrap.to_owned(), names.clone(), types.to_vec());
        async move {
            let check = move || topics::check(&bootstrap, &names, &types, partitions, |_| Said::Configured);
            blocking(check).await.map_err(|error| match error {
                topics::Error::Unavailable(_) | topics::Error::Missing(_) => Attempt::Again(error.to_string()),
                topics::Error::Partitions { .. } | topics::Error::Settings(_) => Attempt::Fatal(Error::Topics(error)),
            })
        }
    });
    Ok(checked.await?.is_some())
}

/// Waits for the registry. False when told to end meanwhile.
pub async fn registry(registry: &Registry, shutdown: &CancellationToken) -> Result<bool, Error> {
    let asked = wait_for("the schema registry", shutdown, || async {
        registry.ping().await.map_err(|error| Attempt::<Error>::Again(error.to_string()))
    });
    Ok(asked.await?.is_some())
}

/// Waits for Redis, and refuses one that would drop views. False when told to end meanwhile.
pub async fn redis(store: impl Fn() -> Store, cluster: bool, shutdown: &CancellationToken) -> Result<bool, Error> {
    let asked = wait_for("Redis", shutdown, || {
        let mut store = store();
        async move {
            let asked = blocking(move || Ok((store.info("maxmemory_policy")?, store.info("redis_mode")?))).await;
            let (policies, modes) = asked.map_err(|error: store::Error| Attempt::Again(error.to_string()))?;
            if !cluster && modes.iter().any(|mode| mode == "cluster") {
                return Err(Attempt::Fatal(Error::Cluster));
            }
            match policies.into_iter().find(|policy| policy != NO_EVICTION) {
                None => Ok(()),
                Some(other) => Err(Attempt::Fatal(Error::Evicting(other))),
            }
        }
    });
    Ok(asked.await?.is_some())
}
