//! `GET /v1/<collection>/{id}`: the view, now or as it was.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    http::HeaderMap,
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
    service::{Seen, Service, View, caveats, not_found},
};

/// Which view of the past is asked for.
enum Then {
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
    let then = then(&mut params);
    params.finish()?;
    let (service, id, after, then) = (&*service, &id, &after, then.as_ref());
    service.editions.answer(|edition| async move { view(service, &edition, id, after, then).await }).await
}

async fn view<A: Aggregate>(
    service: &Service<A>,
    edition: &Edition,
    id: &AggregateId,
    after: &After,
    then: Option<&Then>,
) -> Result<Response, Problem> {
    let found = service.find(edition, id.as_str(), after).await?;
    let headers = caveats(found.stale, found.parked);
    let Some((json, view)) = found.view else { return Ok((headers, not_found::<A>(id)).into_response()) };
    let present = A::Projection::version(&view);
    match then {
        None => Ok(versioned(headers, present, json)),
        Some(then) => past(service, edition, id, then, (headers, found.seen, present)).await,
    }
}

/// The view as it was, of an aggregate whose present version was seen.
async fn past<A: Aggregate>(
    service: &Service<A>,
    edition: &Edition,
    id: &AggregateId,
    then: &Then,
    (headers, seen, present): (HeaderMap, Seen, u64),
) -> Result<Response, Problem> {
    let asked = if let Then::AtVersion(version) = then { Some(*version) } else { None };
    let mut replay = Replay::new(service, edition, id.as_str());
    let past: Option<View<A>> = match *then {
        Then::AtVersion(0) => None,
        Then::AtVersion(version) => {
            let found = replay.until(|meta| meta.sequence <= version).await?;
            found.filter(|view| A::Projection::version(view) == version)
        }
        Then::AsOf(time) => {
            let found = replay.until(|meta| meta.time <= time).await?;
            // Before the first event of all.
            found.filter(|_| replay.base.as_ref().is_none_or(|base| base.first <= time))
        }
    };
    service.require_unchanged(edition, &[seen]).await?;
    if let Some(base) = &replay.base {
        let gone = match *then {
            Then::AsOf(time) => (base.first..base.time).contains(&time),
            Then::AtVersion(version) => (1..replay.kept_since()).contains(&version),
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

fn then(params: &mut Params) -> Option<Then> {
    let version = params.number("at_version", 0, u64::MAX);
    let time = params.read("as_of", time);
    if version.is_some() && time.is_some() {
        params.wrong("as_of", "can't be combined with at_version");
    }
    version.map(Then::AtVersion).or(time.map(Then::AsOf))
}
