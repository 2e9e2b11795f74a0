//! `GET /v1/<collection>/{id}/commands/{command_id}`: the stored answer to a command.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use millrace_shared::{
    domain::Aggregate,
    kafka::topics::Topic,
    problem::{NOT_FOUND, Problem},
    views::{Keys, meta},
};

use super::json;
use crate::{
    params::{CommandInPath, Params},
    service::{Means, Service, stale},
    store::unavailable,
};

/// An outcome that was just decided is waited for so long.
const WAIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn get<A: Aggregate>(
    State(service): State<Arc<Service<A>>>,
    CommandInPath(id, command_id): CommandInPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref()).finish()?;
    let partition = service.partition(id.as_str());
    let keys = &service.outcome_keys[partition];
    let (_, stored) = look(&service, keys, id.as_str(), &command_id).await?;
    if let Some(stored) = stored {
        return Ok(json(HeaderMap::new(), stored));
    }
    // "Never seen" can only be said of what lies before the end as it is now.
    let topic = service.means.names.topic(A::TYPE, Topic::Outcomes);
    let stored = until_end(&service.means, &topic, partition, || async {
        let (offset, stored) = look(&service, keys, id.as_str(), &command_id).await?;
        // What is there needs no end.
        Ok((if stored.is_some() { Some(i64::MAX) } else { offset }, stored))
    });
    let detail = || format!("no command {command_id} of {} {id} is known, or it was answered too long ago", A::TYPE);
    let stored = stored.await?.ok_or_else(|| Problem::new(&NOT_FOUND, detail()))?;
    Ok(json(HeaderMap::new(), stored))
}

/// Looks again and again until the checkpoint that it finds is where the topic's partition ended when this was called.
pub(super) async fn until_end<T, F: Future<Output = Result<(Option<i64>, T), Problem>>>(
    means: &Means,
    topic: &str,
    partition: usize,
    look: impl Fn() -> F,
) -> Result<T, Problem> {
    let Some(end) = means.ends.one(topic, partition as i32).await else {
        return Err(unavailable("Kafka can't be asked whether there is something that is not here yet"));
    };
    let (deadline, mut pause) = (Instant::now() + WAIT, FIRST_PAUSE);
    loop {
        let (offset, found) = look().await?;
        if offset.is_some_and(|offset| offset >= end) {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(stale());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Position first: what lies before it is then there, if it ever was.
async fn look<A: Aggregate>(
    service: &Service<A>,
    keys: &Keys,
    id: &str,
    command_id: &str,
) -> Result<(Option<i64>, Option<String>), Problem> {
    let mut pipe = redis::pipe();
    pipe.cmd("HGET").arg(keys.meta()).arg(meta::OFFSET);
    pipe.cmd("GET").arg(keys.outcome(id, command_id));
    service.means.store.ask(&pipe).await
}
