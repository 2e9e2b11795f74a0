//! `GET /v1/<collection>/{id}/history`: every event, with the view after it.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use millrace_shared::{
    domain::{Aggregate, AggregateId},
    envelope::rfc3339_micros,
    http,
    problem::Problem,
    records::Records,
};
use serde::Serialize;

use super::json;
use crate::{
    edition::Edition,
    params::{After, IdInPath, Params},
    past::{Replay, trimmed},
    service::{Service, View, caveats, not_found},
};

const DEFAULT_LIMIT: u64 = 100;

#[derive(Serialize)]
#[serde(bound = "")]
struct Page<A: Aggregate> {
    items: Vec<Item<A>>,
    next: Option<String>,
}

#[derive(Serialize)]
#[serde(bound = "")]
struct Item<A: Aggregate> {
    sequence: u64,
    r#type: &'static str,
    time: String,
    command_id: String,
    data: A::Event,
    state: View<A>,
}

pub(super) async fn get<A: Aggregate>(
    State(service): State<Arc<Service<A>>>,
    IdInPath(id): IdInPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let after = After::take(&mut params, service.means.waits(), A::TYPE, None);
    let after_sequence = params.number("after_sequence", 0, u64::MAX).unwrap_or(0);
    let most = service.means.limits.history;
    let limit = params.number("limit", 1, most).unwrap_or(DEFAULT_LIMIT.min(most)) as usize;
    params.finish()?;
    let (service, id, after) = (&*service, &id, &after);
    service
        .editions
        .answer(|edition| async move { history(service, &edition, id, after, after_sequence, limit).await })
        .await
}

async fn history<A: Aggregate>(
    service: &Service<A>,
    edition: &Edition,
    id: &AggregateId,
    after: &After,
    after_sequence: u64,
    limit: usize,
) -> Result<Response, Problem> {
    let found = service.find_after_all(edition, id.as_str(), after).await?;
    let headers = caveats(found.stale, found.parked);
    if found.view.is_none() {
        return Ok((headers, not_found::<A>(id)).into_response());
    }
    let mut page = Page::<A> { items: Vec::new(), next: None };
    let mut replay = Replay::new(service, edition, id.as_str());
    while let Some((meta, event)) = replay.next().await? {
        if page.items.len() == limit {
            let last = page.items.last().map_or(after_sequence, |item| item.sequence);
            page.next = Some(format!("/v1/{}/{id}/history?after_sequence={last}&limit={limit}", A::COLLECTION));
            break;
        }
        let state = replay.fold(&meta, &event)?;
        if meta.sequence > after_sequence {
            page.items.push(Item {
                sequence: meta.sequence,
                r#type: event.name(),
                time: rfc3339_micros(meta.time),
                command_id: meta.command_id,
                data: event,
                state: state.clone(),
            });
        }
    }
    service.require_unchanged(edition, &[found.seen]).await?;
    if let Some(base) = replay.base.as_ref().filter(|_| after_sequence < replay.kept_since()) {
        return Ok((headers, trimmed::<A>(id.as_str(), base)).into_response());
    }
    let body = serde_json::to_string(&page).map_err(|error| http::internal(&error))?;
    Ok(json(headers, body))
}
