//! `GET /v1/<collection>/stats`: totals over all aggregates.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{RawQuery, State as Extract},
    response::Response,
};
use millrace_shared::{
    domain::{Aggregate, Projection},
    http,
    problem::Problem,
};

use super::json;
use crate::{
    edition::{Edition, State},
    params::{After, Params},
    service::{Service, all_live, caveats},
    store::decoded,
};

pub(super) async fn get<A: Aggregate>(
    Extract(service): Extract<Arc<Service<A>>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let after = After::take(&mut params, service.means.waits(), A::TYPE, None);
    params.finish()?;
    let (service, after) = (&*service, &after);
    service.editions.answer(|edition| async move { stats(service, &edition, after).await }).await
}

async fn stats<A: Aggregate>(service: &Service<A>, edition: &Edition, after: &After) -> Result<Response, Problem> {
    let stale = service.wait(edition, after).await?;
    let mut pipe = redis::pipe();
    for (partition, keys) in edition.keys.iter().enumerate() {
        pipe.cmd("HGETALL").arg(keys.counters());
        pipe.add_command(edition.state(partition));
    }
    let read: Vec<redis::Value> = service.means.store.ask(&pipe).await?;
    let (mut parts, mut states): (Vec<BTreeMap<String, String>>, Vec<State>) = (Vec::new(), Vec::new());
    for pair in read.chunks_exact(2) {
        parts.push(decoded(&pair[0])?);
        states.push(decoded(&pair[1])?);
    }
    if all_live(&states).is_none() {
        return Err(service.rebuilding(edition).await);
    }
    let mut totals: BTreeMap<String, i128> = BTreeMap::new();
    for (name, value) in parts.into_iter().flatten() {
        let value: i128 =
            value.parse().map_err(|_| http::internal(&format_args!("counter {name} of {} is no number", A::TYPE)))?;
        *totals.entry(name).or_default() += value;
    }
    Ok(json(caveats(stale, false), A::Projection::stats(&totals).to_string()))
}
