//! `GET /v1/<collection>/{id}`: the view, now or as it was.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use millrace_shared::{
    domain::{Aggregate, AggregateId, Projection},
    http,
    problem::{NOT_FOUND, Problem},
};
use serde_json::json;

use super::versioned;
use crate::{
    edition::Edition,
    params::{After, IdInPath, Params, time},
    past::{Replay, trimmed},
    service::{Service, View, caveats, not_found},
};

/// Which view is asked for.
enum When {
    Now,
    AtVersion(u64),
    AsOf(Timestamp),
}

pub(super) async fn get<A: Aggregate>(
    State(service): State<Arc<Service<A>>>,
    IdInPath(id): IdInPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let mut after = After::take(&mut params, service.means.waits(), A::TYPE, Some(id.as_str()));
    if A::Projection::IS_FINAL.is_some() {
        after = after.or_final(&mut params);
    }
    let when = when(&mut params);
    params.finish()?;
    let (service, id, after, when) = (&*service, &id, &after, &when);
    service.editions.answer(|edition| async move { view(service, &edition, id, after, when).await }).await
}

async fn view<A: Aggregate>(
    service: &Service<A>,
    edition: &Edition,
    id: &AggregateId,
    after: &After,
    when: &When,
) -> Result<Response, Problem> {
    let found = service.find(edition, id.as_str(), after).await?;
    let headers = caveats(found.stale, found.parked);
    let Some((json, view)) = found.view else { return Ok((headers, not_found::<A>(id)).into_response()) };
    let present = A::Projection::version(&view);
    let asked = if let When::AtVersion(version) = when { Some(*version) } else { None };
    let mut replay = Replay::new(service, edition, id.as_str());
    let past: Option<View<A>> = match *when {
        When::Now => return Ok(versioned(headers, present, json)),
        When::AtVersion(0) => None,
        When::AtVersion(version) => {
            let then = replay.until(|meta| meta.sequence <= version).await?;
            then.filter(|view| A::Projection::version(view) == version)
        }
        When::AsOf(time) => {
            let then = replay.until(|meta| meta.time <= time).await?;
            // Before the first event of all.
            then.filter(|_| replay.base.as_ref().is_none_or(|base| base.first <= time))
        }
    };
    service.require_unchanged(edition, &[found.seen]).await?;
    if let Some(base) = &replay.base {
        let gone = match *when {
            When::AsOf(time) => (base.first..base.time).contains(&time),
            When::AtVersion(version) => (1..replay.kept_since()).contains(&version),
            When::Now => false,
        };
        if gone {
            return Ok((headers, trimmed::<A>(id.as_str(), base)).into_response());
        }
    }
    let Some(view) = past else {
        let detail = match asked {
            Some(version) => format!("{} {id} has no version {version}, but 1 to {present}", A::TYPE),
            None => format!("{} {id} was not there yet at that time", A::TYPE),
        };
        let aggregate = json!({"type": A::TYPE, "id": id.as_str(), "version": present});
        return Ok((headers, Problem::new(&NOT_FOUND, detail).with("aggregate", aggregate)).into_response());
    };
    let body = serde_json::to_string(&view).map_err(|error| http::internal(&error))?;
    if A::IS_PERSONAL {
        // What was told of a version may be erased by the next time: its content tells one answer from another.
        return Ok(super::json(headers, body));
    }
    Ok(versioned(headers, A::Projection::version(&view), body))
}

fn when(params: &mut Params) -> When {
    let version = params.number("at_version", 0, u64::MAX);
    let time = params.read("as_of", time);
    match (version, time) {
        (Some(_), Some(_)) => {
            params.wrong("as_of", "can't be combined with at_version");
            When::Now
        }
        (Some(version), None) => When::AtVersion(version),
        (None, Some(time)) => When::AsOf(time),
        (None, None) => When::Now,
    }
}
