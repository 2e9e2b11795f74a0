//! `GET /v1/<collection>`: many views, filtered, sorted, page by page.
//!
//! A page is found from the cursor's place alone, in the sorted sets of all partitions: nothing is kept between two
//! pages, and an item that does not change while somebody pages comes exactly once.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    response::Response,
};
use millrace_shared::{
    domain::{Aggregate, Filter, Projection},
    http,
    problem::Problem,
    views::BY_ID,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::json;
use crate::{
    cursor::{Cursors, Place},
    edition::Edition,
    params::{After, Params},
    scan::{Order, Scan},
    service::{Service, View, caveats},
};

const DEFAULT_LIMIT: u64 = 50;
/// A filter's index is read whole up to so many members; beyond, the list is scanned in its order.
const MAX_INDEXED: usize = 1_000;
/// Views that one request looks at when filters leave few: the page is then short, and the cursor goes on.
const MAX_SCANNED: usize = 4_000;
/// Views read from Redis at a time when filters may refuse most of them.
const FILTERED_CHUNK: usize = 256;

/// What is asked for.
struct Wanted<A: Aggregate> {
    filters: Vec<(&'static Filter<View<A>>, String)>,
    order: Order<A>,
    limit: usize,
    cursors: Cursors,
    behind: Option<Place>,
}

/// A page that is being filled.
struct Page {
    items: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` at the end.
    next: Option<Place>,
}

#[derive(Serialize)]
struct Body {
    items: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

pub(super) async fn get<A: Aggregate>(
    State(service): State<Arc<Service<A>>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (service, query) = (&*service, query.as_deref());
    service.editions.answer(|edition| async move { list(service, &edition, query).await }).await
}

async fn list<A: Aggregate>(service: &Service<A>, edition: &Edition, query: Option<&str>) -> Result<Response, Problem> {
    let mut params = Params::parse(query);
    let after = After::take(&mut params, service.means.limits.wait, A::TYPE, None);
    let wanted = wanted::<A>(edition.version, service.means.limits.list, &mut params);
    params.finish()?;
    let stale = service.wait(edition, &after).await?;
    let seen = service.require_live(edition).await?;
    let page = match indexed(service, edition, &wanted).await? {
        Some(page) => page,
        None => scanned(service, edition, &wanted).await?,
    };
    service.require_unchanged(edition, &seen).await?;
    let body = Body { items: page.items, next_cursor: page.next.map(|place| wanted.cursors.encode(&place)) };
    let body = serde_json::to_string(&body).map_err(|error| http::internal(&error))?;
    Ok(json(caveats(stale, false), body))
}

fn wanted<A: Aggregate>(version: u32, most: u64, params: &mut Params) -> Wanted<A> {
    let mut filters = Vec::new();
    for filter in A::Projection::FILTERS {
        let value = params.read(filter.name, |text| match (filter.accepts)(text) {
            true => Ok(text.to_owned()),
            false => Err(format!("can't be the value of {}", filter.name)),
        });
        filters.extend(value.map(|value| (filter, value)));
    }
    let order = params.read("sort", Order::<A>::parse).or_else(|| Order::parse(BY_ID).ok());
    let order = order.unwrap_or(Order { sort: &A::Projection::SORTS[0], descending: false });
    let limit = params.number("limit", 1, most).unwrap_or(DEFAULT_LIMIT.min(most)) as usize;
    let named: Vec<(&str, &str)> = filters.iter().map(|(filter, value)| (filter.name, value.as_str())).collect();
    let cursors = Cursors::new(A::Projection::NAME, version, &order.name(), &named);
    let behind = params.read("cursor", |text| cursors.decode(text));
    Wanted { filters, order, limit, cursors, behind }
}

impl<A: Aggregate> Wanted<A> {
    fn accepts(&self, view: &View<A>) -> bool {
        self.filters.iter().all(|(filter, value)| (filter.value)(view) == value)
    }
}

/// By the index of a selective filter; `None` where there is none, or where it is too large to be read whole.
async fn indexed<A: Aggregate>(
    service: &Service<A>,
    edition: &Edition,
    wanted: &Wanted<A>,
) -> Result<Option<Page>, Problem> {
    let Some((filter, value)) = wanted.filters.iter().find(|(filter, _)| filter.selective) else { return Ok(None) };
    let mut pipe = redis::pipe();
    for keys in &edition.keys {
        pipe.cmd("ZRANGE").arg(keys.filter(filter.name, value)).arg(0).arg(MAX_INDEXED);
    }
    let sets: Vec<Vec<String>> = service.means.store.ask(&pipe).await?;
    if sets.iter().map(Vec::len).sum::<usize>() > MAX_INDEXED {
        return Ok(None);
    }
    let ids: Vec<(usize, String)> =
        sets.into_iter().enumerate().flat_map(|(at, ids)| ids.into_iter().map(move |id| (at, id))).collect();
    let mut matching: Vec<(Place, String)> = Vec::new();
    for (id, view) in load(service, edition, ids).await? {
        let Some((json, view)) = view else { continue };
        let place = wanted.order.place(&id, &view);
        let ahead = wanted.behind.as_ref().is_none_or(|behind| wanted.order.compare(&place, behind).is_gt());
        if ahead && wanted.accepts(&view) {
            matching.push((place, json));
        }
    }
    matching.sort_by(|(a, _), (b, _)| wanted.order.compare(a, b));
    let more = matching.len() > wanted.limit;
    matching.truncate(wanted.limit);
    let next = matching.last().filter(|_| more).map(|(place, _)| place.clone());
    let items = matching.into_iter().map(|(_, json)| raw(json)).collect::<Result<_, _>>()?;
    Ok(Some(Page { items, next }))
}

/// By the sort's own sets, in which the list lies in order.
async fn scanned<A: Aggregate>(service: &Service<A>, edition: &Edition, wanted: &Wanted<A>) -> Result<Page, Problem> {
    let mut scan = Scan::new(service, edition, &wanted.order, wanted.behind.as_ref(), wanted.limit);
    let mut page = Page { items: Vec::new(), next: None };
    let mut scanned = 0;
    loop {
        // One more than is shown tells whether there is more.
        let chunk = if wanted.filters.is_empty() { wanted.limit + 1 - page.items.len() } else { FILTERED_CHUNK };
        let places = scan.next(chunk).await?;
        if places.is_empty() {
            page.next = None;
            return Ok(page);
        }
        scanned += places.len();
        let ids = places.iter().map(|(at, place)| (*at, place.id.clone())).collect();
        let views = load(service, edition, ids).await?;
        let mut last = None;
        for ((_, place), (_, view)) in places.into_iter().zip(views) {
            if let Some((json, view)) = view
                && wanted.accepts(&view)
            {
                if page.items.len() == wanted.limit {
                    // `next` was set when the page became full.
                    return Ok(page);
                }
                page.items.push(raw(json)?);
                if page.items.len() == wanted.limit {
                    page.next = Some(place.clone());
                }
            }
            last = Some(place);
        }
        if scanned >= MAX_SCANNED {
            page.next = page.next.or(last);
            return Ok(page);
        }
    }
}

/// The views of these ids, in the same order; one that is gone meanwhile is `None`.
async fn load<A: Aggregate>(
    service: &Service<A>,
    edition: &Edition,
    ids: Vec<(usize, String)>,
) -> Result<Vec<(String, Option<(String, View<A>)>)>, Problem> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = redis::pipe();
    for (at, id) in &ids {
        pipe.cmd("GET").arg(edition.keys[*at].view(id));
    }
    let views: Vec<Option<String>> = service.means.store.ask(&pipe).await?;
    ids.into_iter()
        .zip(views)
        .map(|((_, id), json)| {
            let view = json.map(|json| service.parse(&id, json)).transpose()?;
            Ok((id, view))
        })
        .collect()
}

fn raw(json: String) -> Result<Box<RawValue>, Problem> {
    RawValue::from_string(json).map_err(|error| http::internal(&error))
}
