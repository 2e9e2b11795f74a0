//! `GET /v1/<collection>/stats`: totals over all aggregates.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{RawQuery, State},
    response::Response,
};
use millrace_shared::{
    domain::{Aggregate, Projection},
    http,
    problem::Problem,
};

use super::json;
use crate::{
    params::{After, Params},
    service::{Service, caveats},
};

pub(super) async fn get<A: Aggregate>(
    State(service): State<Arc<Service<A>>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let after = After::take(&mut params, A::TYPE, None);
    params.finish()?;
    let stale = service.wait(&after).await?;
    service.require_live().await?;
    let mut pipe = redis::pipe();
    for keys in &service.keys {
        pipe.cmd("HGETALL").arg(keys.counters());
    }
    let parts: Vec<BTreeMap<String, String>> = service.means.store.ask(&pipe).await?;
    let mut totals: BTreeMap<String, i128> = BTreeMap::new();
    for (name, value) in parts.into_iter().flatten() {
        let value: i128 =
            value.parse().map_err(|_| http::internal(&format_args!("counter {name} of {} is no number", A::TYPE)))?;
        *totals.entry(name).or_default() += value;
    }
    Ok(json(caveats(stale, false), A::Projection::stats(&totals).to_string()))
}
