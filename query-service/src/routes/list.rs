//! `GET /v1/<collection>`: many views, filtered, sorted, page by page.
//!
//! A page is found from the cursor's place alone, in the sorted sets of all partitions: nothing is kept between two
//! pages, and an item that does not change while somebody pages comes exactly once.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{RawQuery, State},
    response::Response,
};
use metrics::counter;
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
/// Views that one request looks at when filters leave few: the page is then short, and the cursor goes on. (With
/// 2,000, one page in a hundred took 24 ms on two cores that others were using, and 59 ms with a load average of 17.)
const MAX_SCANNED: usize = 1_000;
/// Views read from Redis at a time, at most.
const MAX_AT_ONCE: usize = 512;
/// Names of the counters of what was read for pages, entries of indexes and views, and of what was answered.
const READ: &str = "millrace_query_list_entries_read_total";
const ITEMS: &str = "millrace_query_list_items_total";

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
    /// Entries of indexes and views that were read for it.
    read: usize,
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
    let after = After::take(&mut params, service.means.waits(), A::TYPE, None);
    let wanted = wanted(service, edition.version, &mut params);
    params.finish()?;
    let stale = service.wait(edition, &after).await?;
    let seen = service.require_live(edition).await?;
    let page = match indexed(service, edition, &wanted).await? {
        Some(page) => page,
        None => scanned(service, edition, &wanted).await?,
    };
    counter!(READ).increment(page.read as u64);
    counter!(ITEMS).increment(page.items.len() as u64);
    service.require_unchanged(edition, &seen).await?;
    let body = Body { items: page.items, next_cursor: page.next.map(|place| wanted.cursors.encode(&place)) };
    let body = serde_json::to_string(&body).map_err(|error| http::internal(&error))?;
    Ok(json(caveats(stale, false), body))
}

fn wanted<A: Aggregate>(service: &Service<A>, version: u32, params: &mut Params) -> Wanted<A> {
    let most = service.means.limits.list;
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
    let cursors = Cursors::new(service.means.names.redis_prefix(), A::Projection::NAME, version, &order.name(), &named);
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
    let (mut sizes, mut pipe) = (redis::pipe(), redis::pipe());
    for keys in &edition.keys {
        let key = keys.filter(filter.name, value);
        sizes.cmd("ZCARD").arg(&key);
        // It may have grown meanwhile.
        pipe.cmd("ZRANGE").arg(key).arg(0).arg(MAX_INDEXED);
    }
    let sizes: Vec<usize> = service.means.store.ask(&sizes).await?;
    if sizes.into_iter().sum::<usize>() > MAX_INDEXED {
        return Ok(None);
    }
    let sets: Vec<Vec<String>> = service.means.store.ask(&pipe).await?;
    let ids: Vec<(usize, String)> =
        sets.into_iter().enumerate().flat_map(|(at, ids)| ids.into_iter().map(move |id| (at, id))).collect();
    let read = 2 * ids.len();
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
    Ok(Some(Page { items, next, read }))
}

/// By the sort's own sets, in which the list lies in order.
async fn scanned<A: Aggregate>(service: &Service<A>, edition: &Edition, wanted: &Wanted<A>) -> Result<Page, Problem> {
    let mut scan = Scan::new(service, edition, &wanted.order, wanted.behind.as_ref(), wanted.limit);
    let mut page = Page { items: Vec::new(), next: None, read: 0 };
    // One more than is shown tells whether there is more. Where filters refuse many, ever more are looked at together.
    let (mut scanned, mut at_once, most) = (0, wanted.limit + 1, MAX_SCANNED.max(wanted.limit + 1));
    loop {
        let places = scan.next(at_once.min(most - scanned)).await?;
        if places.is_empty() {
            page.next = None;
            return Ok(page);
        }
        scanned += places.len();
        at_once = (at_once * 2).min(MAX_AT_ONCE.max(wanted.limit));
        page.read = scan.read + scanned;
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
        if scanned >= most {
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
    // One question for each partition: it costs half of what a question for each view does.
    let mut of_partition: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, (at, _)) in ids.iter().enumerate() {
        of_partition.entry(*at).or_default().push(place);
    }
    let mut pipe = redis::pipe();
    for (at, places) in &of_partition {
        let get = pipe.cmd("MGET");
        for place in places {
            get.arg(edition.keys[*at].view(&ids[*place].1));
        }
    }
    let mut views = vec![None; ids.len()];
    if !ids.is_empty() {
        let answers: Vec<Vec<Option<String>>> = service.means.store.ask(&pipe).await?;
        for (places, answers) in of_partition.values().zip(answers) {
            for (place, json) in places.iter().zip(answers) {
                views[*place] = json;
            }
        }
    }
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
