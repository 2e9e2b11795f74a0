//! `GET /v1/projections`: how far every projection is, and what waits.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use millrace_shared::{
    domain::{Aggregate, Grouping, Projection},
    http,
    kafka::topics::Topic,
    problem::Problem,
    views::{
        Keys, Parked, meta,
        versions::{self, Versions},
    },
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::json;
use crate::{
    edition::Edition,
    params::Params,
    service::{Means, outcome_keys, scheduled_keys},
    store::decoded,
};

/// Outcomes, and what is scheduled, are kept in one form so far.
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
    topic: String,
    kept: Kept,
}

/// Where it is kept.
#[derive(Debug)]
enum Kept {
    /// In versions, of which the list tells.
    Versioned(&'static str),
    /// In one form, under these keys.
    Once(Vec<Keys>),
}

impl Described {
    /// Those of an aggregate type: its views, its outcomes and what is scheduled.
    pub fn of<A: Aggregate>(means: &Means) -> [Self; 3] {
        let (names, partitions) = (&means.names, means.partitions);
        [
            Self {
                name: A::Projection::NAME.to_owned(),
                topic: names.topic(A::TYPE, Topic::Events),
                kept: Kept::Versioned(A::Projection::NAME),
            },
            Self {
                name: format!("{}-outcomes", A::TYPE),
                topic: names.topic(A::TYPE, Topic::Outcomes),
                kept: Kept::Once(outcome_keys::<A>(names, partitions)),
            },
            Self {
                name: format!("{}-scheduled", A::TYPE),
                topic: names.topic(A::TYPE, Topic::Scheduled),
                kept: Kept::Once(scheduled_keys::<A>(names, partitions)),
            },
        ]
    }

    /// A further projection.
    pub fn grouping<G: Grouping>(means: &Means) -> Self {
        let topic = means.names.topic(G::Aggregate::TYPE, Topic::Events);
        Self { name: G::NAME.to_owned(), topic, kept: Kept::Versioned(G::NAME) }
    }

    /// How many records lie behind a checkpoint, at most; `None` where Kafka can't be asked.
    fn lag(&self, ends: Option<&Ends>, partition: usize, checkpoint: i64) -> Option<i64> {
        let end = ends?.get(&(self.topic.clone(), partition as i32))?;
        Some((end - checkpoint).max(0))
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
    versions: Vec<ShownVersion>,
    rebuild: Option<Box<RawValue>>,
}

/// A version that there is.
#[derive(Serialize)]
struct ShownVersion {
    version: u32,
    state: &'static str,
    partitions_live: usize,
    lag_records: Option<i64>,
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

type Ends = BTreeMap<(String, i32), i64>;
type Read = ((Option<String>, Option<i64>), BTreeMap<String, String>);

pub(super) async fn get(
    State(projections): State<Arc<Projections>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref()).finish()?;
    let means = &projections.means;
    // Ends first: no lag then means that everything is read that was there when the question came.
    let ends = means.ends.all().await;
    let mut body = Body { projections: Vec::new() };
    for described in &projections.all {
        let shown = match &described.kept {
            Kept::Once(keys) => show(means, described, ends.as_ref(), (OUTCOMES_VERSION, keys)).await?,
            Kept::Versioned(name) => {
                let (versions, rebuild) = versions(means, name).await?;
                let edition = |version| Edition::new(&means.names, name, version, means.partitions);
                let active = edition(versions.active);
                let mut shown = show(means, described, ends.as_ref(), (active.version, &active.keys)).await?;
                for (version, state) in versions.states {
                    let (lag_records, partitions_live) =
                        behind(means, described, ends.as_ref(), &edition(version)).await?;
                    shown.versions.push(ShownVersion { version, state: state.name(), partitions_live, lag_records });
                }
                shown.rebuild = rebuild;
                shown
            }
        };
        body.projections.push(shown);
    }
    let body = serde_json::to_string(&body).map_err(|error| http::internal(&error))?;
    Ok(json(HeaderMap::new(), body))
}

/// The list of versions, and what a rebuild that is under way says of itself.
async fn versions(means: &Means, name: &str) -> Result<(Versions, Option<Box<RawValue>>), Problem> {
    let prefix = means.names.redis_prefix();
    let mut pipe = redis::pipe();
    pipe.cmd("HGETALL").arg(versions::key(prefix, name));
    pipe.cmd("GET").arg(versions::rebuild_key(prefix, name));
    let (fields, rebuild): (Vec<(String, String)>, Option<String>) = means.store.ask(&pipe).await?;
    let versions = Versions::read(fields).map_err(|reason| http::internal(&reason))?;
    Ok((versions, rebuild.and_then(|json| RawValue::from_string(json).ok())))
}

/// By how many records a version is behind, and how many of its partitions have caught up once.
async fn behind(
    means: &Means,
    described: &Described,
    ends: Option<&Ends>,
    edition: &Edition,
) -> Result<(Option<i64>, usize), Problem> {
    let checkpoints = means.checkpoints(edition).await?;
    let live = checkpoints.iter().filter(|(live, _)| *live).count();
    let lag = |(partition, (_, checkpoint)): (usize, &(bool, Option<i64>))| {
        described.lag(ends, partition, checkpoint.unwrap_or(0))
    };
    Ok((checkpoints.iter().enumerate().map(lag).sum(), live))
}

async fn show(
    means: &Means,
    described: &Described,
    ends: Option<&Ends>,
    (version, keys): (u32, &[Keys]),
) -> Result<Shown, Problem> {
    let mut pipe = redis::pipe();
    for keys in keys {
        pipe.cmd("HMGET").arg(keys.meta()).arg(&[meta::STATE, meta::OFFSET]);
        pipe.cmd("HGETALL").arg(keys.parked());
    }
    let flat: Vec<redis::Value> = means.store.ask(&pipe).await?;
    let pair = |values: &[redis::Value]| Ok((decoded(&values[0])?, decoded(&values[1])?));
    let read = flat.chunks_exact(2).map(pair).collect::<Result<Vec<Read>, Problem>>()?;
    let live = read.iter().all(|((state, _), _)| state.as_deref() == Some(meta::LIVE));
    let (mut partitions, mut parked) = (Vec::new(), Vec::new());
    for (partition, ((_, checkpoint), waiting)) in read.into_iter().enumerate() {
        let at = checkpoint.unwrap_or(0);
        let lag_records = described.lag(ends, partition, at);
        let lag_seconds = lag_records.map(|lag| match lag {
            0 => 0.0,
            _ => means.ends.lag_seconds(&described.topic, partition as i32, at),
        });
        partitions.push(ShownPartition { partition, checkpoint, lag_records, lag_seconds });
        for (id, json) in waiting {
            parked.extend(serde_json::from_str(&json).ok().map(|parked| ShownParked { partition, id, parked }));
        }
    }
    Ok(Shown {
        name: described.name.clone(),
        version,
        state: if live { "live" } else { "building" },
        partitions,
        parked,
        versions: Vec::new(),
        rebuild: None,
    })
}
