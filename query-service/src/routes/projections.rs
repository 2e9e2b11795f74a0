//! `GET /v1/projections`: how far every projection is, and what waits.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use millrace_shared::{
    domain::{Aggregate, Projection},
    http,
    kafka::topics::Topic,
    problem::Problem,
    views::{Keys, Parked, meta},
};
use serde::Serialize;

use super::json;
use crate::{
    params::Params,
    service::{Means, outcome_keys, view_keys},
};

/// Outcomes are kept in one form so far.
const OUTCOMES_VERSION: u32 = 1;

/// All projections.
#[derive(Debug)]
pub struct Projections {
    /// The way to Redis and Kafka.
    pub means: Means,
    /// One by one.
    pub all: Vec<Described>,
}

/// What there is to know of a projection beforehand.
#[derive(Debug)]
pub struct Described {
    name: String,
    version: u32,
    topic: String,
    keys: Vec<Keys>,
}

impl Described {
    /// Those of an aggregate type: its views and its outcomes.
    pub fn of<A: Aggregate>(means: &Means) -> [Self; 2] {
        let (names, partitions) = (&means.names, means.partitions);
        [
            Self {
                name: A::Projection::NAME.to_owned(),
                version: A::Projection::VERSION,
                topic: names.topic(A::TYPE, Topic::Events),
                keys: view_keys::<A>(names, partitions),
            },
            Self {
                name: format!("{}-outcomes", A::TYPE),
                version: OUTCOMES_VERSION,
                topic: names.topic(A::TYPE, Topic::Outcomes),
                keys: outcome_keys::<A>(names, partitions),
            },
        ]
    }
}

#[derive(Serialize)]
struct Body {
    projections: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    name: String,
    version: u32,
    state: &'static str,
    partitions: Vec<ShownPartition>,
    parked: Vec<ShownParked>,
    rebuild: Option<()>,
}

#[derive(Serialize)]
struct ShownPartition {
    partition: usize,
    checkpoint: Option<i64>,
    lag_records: Option<i64>,
    lag_seconds: Option<f64>,
}

#[derive(Serialize)]
struct ShownParked {
    partition: usize,
    id: String,
    #[serde(flatten)]
    parked: Parked,
}

type Read = ((Option<String>, Option<i64>), BTreeMap<String, String>);

pub(super) async fn get(
    State(projections): State<Arc<Projections>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref()).finish()?;
    // Ends first: no lag then means that everything is read that was there when the question came.
    let ends = projections.means.ends.all().await;
    let mut body = Body { projections: Vec::new() };
    for described in &projections.all {
        let mut pipe = redis::pipe();
        for keys in &described.keys {
            pipe.cmd("HMGET").arg(keys.meta()).arg(&[meta::STATE, meta::OFFSET]);
            pipe.cmd("HGETALL").arg(keys.parked());
        }
        let flat: Vec<redis::Value> = projections.means.store.ask(&pipe).await?;
        let read = flat.chunks_exact(2).map(pair).collect::<Result<Vec<Read>, Problem>>()?;
        body.projections.push(show(&projections.means, described, ends.as_ref(), read));
    }
    let body = serde_json::to_string(&body).map_err(|error| http::internal(&error))?;
    Ok(json(HeaderMap::new(), body))
}

fn pair(values: &[redis::Value]) -> Result<Read, Problem> {
    let damaged = |error: redis::ParsingError| http::internal(&format_args!("Redis: {error}"));
    let meta = redis::from_redis_value(values[0].clone()).map_err(damaged)?;
    let parked = redis::from_redis_value(values[1].clone()).map_err(damaged)?;
    Ok((meta, parked))
}

fn show(means: &Means, described: &Described, ends: Option<&BTreeMap<(String, i32), i64>>, read: Vec<Read>) -> Shown {
    let live = read.iter().all(|((state, _), _)| state.as_deref() == Some(meta::LIVE));
    let (mut partitions, mut parked) = (Vec::new(), Vec::new());
    for (partition, ((_, checkpoint), waiting)) in read.into_iter().enumerate() {
        let at = checkpoint.unwrap_or(0);
        let end = ends.and_then(|ends| ends.get(&(described.topic.clone(), partition as i32)));
        let lag_records = end.map(|end| (end - at).max(0));
        let lag_seconds = lag_records.map(|lag| match lag {
            0 => 0.0,
            _ => means.ends.lag_seconds(&described.topic, partition as i32, at),
        });
        partitions.push(ShownPartition { partition, checkpoint, lag_records, lag_seconds });
        for (id, json) in waiting {
            parked.extend(serde_json::from_str(&json).ok().map(|parked| ShownParked { partition, id, parked }));
        }
    }
    Shown {
        name: described.name.clone(),
        version: described.version,
        state: if live { "live" } else { "building" },
        partitions,
        parked,
        rebuild: None,
    }
}
