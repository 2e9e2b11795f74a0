//! `GET /v1/<projection>/{key}`: the view of a group of aggregates, such as an owner's; added up of its partitions' parts.

use std::{
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{RawQuery, State as Extract},
    response::{IntoResponse, Response},
};
use millrace_shared::{
    domain::{Aggregate, Grouping},
    http,
    kafka::{partition_of, topics::Topic},
    problem::{FieldError, NOT_FOUND, Problem},
    token::Token,
};
use serde_json::Value;

use super::json;
use crate::{
    edition::{Edition, Editions, State},
    params::{After, Params, TextInPath},
    service::{Means, all_live, caveats, stale},
    store::decoded,
};

/// No change is announced for a group: who waits looks so often, and then less and less.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// One further projection.
pub struct Groups<G: Grouping> {
    means: Means,
    editions: Editions,
    grouping: PhantomData<fn() -> G>,
}

impl<G: Grouping> Groups<G> {
    /// Of one deployment.
    pub fn new(means: Means) -> Self {
        Self { editions: means.editions(G::NAME), means, grouping: PhantomData }
    }

    /// Whether an aggregate has not got where its token says in time.
    async fn wait(&self, edition: &Edition, after: &After) -> Result<bool, Problem> {
        for token in &after.tokens {
            let mut pause = FIRST_PAUSE;
            while !self.reached(edition, token).await? {
                if Instant::now() >= after.until {
                    return if after.strict { Err(stale()) } else { Ok(true) };
                }
                tokio::time::sleep(pause).await;
                pause = LONGEST_PAUSE.min(2 * pause);
            }
        }
        Ok(false)
    }

    async fn reached(&self, edition: &Edition, token: &Token) -> Result<bool, Problem> {
        let id = token.aggregate_id.as_str();
        let keys = &edition.keys[partition_of(id.as_bytes(), self.means.partitions).unsigned_abs() as usize];
        let mut pipe = redis::pipe();
        pipe.cmd("HGET").arg(keys.members()).arg(id);
        let (member,): (Option<String>,) = self.means.store.ask(&pipe).await?;
        let member = member.map(|json| serde_json::from_str::<Value>(&json)).transpose();
        let member = member.map_err(|error| http::internal(&format_args!("{} {id}: {error}", keys.members())))?;
        Ok(member.is_some_and(|member| member["sequence"].as_u64() >= Some(token.sequence)))
    }

    async fn view(&self, edition: &Edition, key: &str, after: &After) -> Result<Response, Problem> {
        let stale = self.wait(edition, after).await?;
        let mut pipe = redis::pipe();
        for (partition, keys) in edition.keys.iter().enumerate() {
            pipe.cmd("HGET").arg(keys.parts()).arg(key);
            pipe.cmd("HKEYS").arg(keys.parked());
            // Last, so that it is true of what was read.
            pipe.add_command(edition.state(partition));
        }
        let read: Vec<redis::Value> = self.means.store.ask(&pipe).await?;
        let (mut parts, mut states, mut parked) = (Vec::new(), Vec::<State>::new(), Vec::new());
        for (partition, of_partition) in read.chunks_exact(3).enumerate() {
            let part: Option<String> = decoded(&of_partition[0])?;
            let waiting: Vec<String> = decoded(&of_partition[1])?;
            parked.extend(waiting.into_iter().map(|id| (partition, id)));
            states.push(decoded(&of_partition[2])?);
            let part = part.map(|json| serde_json::from_str::<G::Part>(&json)).transpose();
            parts.extend(part.map_err(|error| http::internal(&format_args!("{} {key}: {error}", G::NAME)))?);
        }
        if all_live(&states).is_none() {
            let topic = self.means.names.topic(G::Aggregate::TYPE, Topic::Events);
            return Err(self.means.rebuilding(G::NAME, &topic, edition).await);
        }
        let headers = caveats(stale, self.waits(edition, key, &parked).await?);
        if parts.is_empty() {
            let problem = Problem::new(&NOT_FOUND, format!("there is nothing of {key} in {}, or not yet", G::NAME));
            return Ok((headers, problem).into_response());
        }
        Ok(json(headers, G::view(key, parts).to_string()))
    }

    /// Whether one of these parked aggregates belongs to the group. One whose first event is parked belongs to none yet.
    async fn waits(&self, edition: &Edition, key: &str, parked: &[(usize, String)]) -> Result<bool, Problem> {
        if parked.is_empty() {
            return Ok(false);
        }
        let mut pipe = redis::pipe();
        for (partition, id) in parked {
            pipe.cmd("HGET").arg(edition.keys[*partition].members()).arg(id);
        }
        let members: Vec<Option<String>> = self.means.store.ask(&pipe).await?;
        let of_group = |json: &String| {
            let member = serde_json::from_str::<Value>(json).ok();
            let member =
                member.and_then(|mut member| serde_json::from_value::<G::Member>(member["member"].take()).ok());
            member.is_some_and(|member| G::key(&member) == key)
        };
        Ok(members.iter().flatten().any(of_group))
    }
}

pub(super) async fn get<G: Grouping>(
    Extract(groups): Extract<Arc<Groups<G>>>,
    TextInPath(key): TextInPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let after = After::take(&mut params, groups.means.waits(), G::Aggregate::TYPE, None);
    params.finish()?;
    if !G::is_key(&key) {
        return Err(Problem::malformed(vec![FieldError::new("key", format!("can't be one of {}", G::NAME))]));
    }
    let (groups, key, after) = (&*groups, key.as_str(), &after);
    groups.editions.answer(|edition| async move { groups.view(&edition, key, after).await }).await
}
