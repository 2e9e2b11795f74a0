//! `GET /v1/<collection>/{id}/scheduled`: the commands that wait until they are due.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use millrace_shared::{domain::Aggregate, kafka::topics::Topic, problem::Problem, views::meta};
use serde_json::{Value, json};

use super::{json as answer, outcome::until_end};
use crate::{
    params::{IdInPath, Params},
    service::Service,
};

/// Commands that are shown, about, at most.
const MOST: usize = 1_000;

pub(super) async fn get<A: Aggregate>(
    State(service): State<Arc<Service<A>>>,
    IdInPath(id): IdInPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref()).finish()?;
    let partition = service.partition(id.as_str());
    let keys = &service.scheduled_keys[partition];
    let topic = service.means.names.topic(A::TYPE, Topic::Scheduled);
    // All that was scheduled before the question.
    let look = || async {
        let mut pipe = redis::pipe();
        pipe.cmd("HGET").arg(keys.meta()).arg(meta::OFFSET);
        // Of thousands some.
        pipe.cmd("HSCAN").arg(keys.waiting(id.as_str())).arg(0).arg("COUNT").arg(MOST);
        service.means.store.ask::<(Option<i64>, (u64, BTreeMap<String, String>))>(&pipe).await
    };
    let (rest, waiting) = until_end(&service.means, &topic, partition, look).await?;
    let mut items: Vec<Value> = waiting.values().filter_map(|json| serde_json::from_str(json).ok()).collect();
    items.sort_by_cached_key(|item| (item["not_before"].to_string(), item["command_id"].to_string()));
    Ok(answer(HeaderMap::new(), json!({"items": items, "complete": rest == 0}).to_string()))
}
