//! `GET /v1/<collection>/changes` and `…/{id}/changes`: changes as they come, as server-sent events.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::Response,
};
use millrace_shared::{
    domain::{Aggregate, Projection},
    problem::Problem,
};

use crate::{
    changes::{Hub, Topic, position::Position, stream::Stream},
    params::{After, IdInPath, Params},
    service::caveats,
};

const LAST_EVENT_ID: &str = "last-event-id";
/// Keeps nginx from collecting what is to be sent at once.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) async fn get_all<A: Aggregate>(
    State(hub): State<Arc<Hub<A>>>,
    ConnectInfo(caller): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
    request: HeaderMap,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let mut topic = None;
    for (at, filter) in A::Projection::FILTERS.iter().enumerate().filter(|(_, filter)| filter.selective && filter.fixed)
    {
        let value = params.read(filter.name, |text| match (filter.accepts)(text) {
            true => Ok(text.to_owned()),
            false => Err(format!("can't be the value of {}", filter.name)),
        });
        if let Some(value) = value {
            if topic.is_some() {
                params.wrong(filter.name, "only one of these can be given");
            }
            topic = Some(Topic::With(at, value));
        }
    }
    let position = since(&hub, &mut params, &request);
    params.finish()?;
    let edition = hub.service.editions.now().await?;
    hub.service.require_live(&edition).await?;
    open(hub, topic.unwrap_or(Topic::All), position, caller, HeaderMap::new()).await
}

pub(super) async fn get_one<A: Aggregate>(
    State(hub): State<Arc<Hub<A>>>,
    ConnectInfo(caller): ConnectInfo<SocketAddr>,
    IdInPath(id): IdInPath,
    RawQuery(query): RawQuery,
    request: HeaderMap,
) -> Result<Response, Problem> {
    let mut params = Params::parse(query.as_deref());
    let position = since(&hub, &mut params, &request);
    params.finish()?;
    let edition = hub.service.editions.now().await?;
    // One that is not there yet may come.
    let found = hub.service.find(&edition, id.as_str(), &After::nothing()).await?;
    let headers = caveats(false, found.parked);
    open(hub, Topic::Of(id.into()), position, caller, headers).await
}

async fn open<A: Aggregate>(
    hub: Arc<Hub<A>>,
    topic: Topic,
    position: Option<Position>,
    caller: SocketAddr,
    mut headers: HeaderMap,
) -> Result<Response, Problem> {
    let place = hub.means.places.take(caller.ip())?;
    let stream = Stream::open(hub, topic, position, place).await?;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(UNBUFFERED, HeaderValue::from_static("no"));
    let mut response = Response::new(stream.body());
    *response.headers_mut() = headers;
    Ok(response)
}

/// Where the caller was. A browser that connects again names it in the header; the address is the one of before.
fn since<A: Aggregate>(hub: &Hub<A>, params: &mut Params, request: &HeaderMap) -> Option<Position> {
    let read = |text: &str| hub.ids.decode(text).ok_or_else(|| "is no id of a change of these".to_owned());
    let in_address = params.read("last_event_id", read);
    let Some(header) = request.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return in_address };
    match header.to_str().map_err(|error| error.to_string()).and_then(read) {
        Ok(position) => Some(position),
        Err(detail) => {
            params.wrong("Last-Event-ID", &detail);
            None
        }
    }
}
