//! `list` and `asof`: pages of a long list, and one long past, by a caller who asks for one after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use millrace_shared::envelope::rfc3339_micros;
use serde_json::{Map, Value, json};

use super::{LIMIT_MS, Round, Settings};
use crate::{
    arrivals::quantile,
    client::{self, Connection},
    progress,
    random::Random,
    report::rounded,
    served::{self, Served, address},
};

/// Items of a page.
pub const LIMIT: usize = 50;
const ORDERS: [&str; 8] =
    ["balance_minor", "-balance_minor", "updated_at", "-updated_at", "opened_at", "-opened_at", "id", "-id"];
/// How deep the deep page lies, in items; less where the list ends before.
const DEEP: usize = 100_000;
/// As many as may be had at once, on the way there.
const LARGE: usize = 200;
const READ: &str = "millrace_query_list_entries_read_total";

/// Pages of one order, with some filters, at the beginning or far behind it.
pub struct Case {
    name: String,
    path: String,
    /// Entries of indexes and views that were read for it.
    read: u64,
    /// Its items.
    items: u64,
    millis: Vec<f64>,
}

/// What filters leave: everything, one owner of a thousand (by the index), one with too many for that, one account in a
/// hundred, nothing at all.
fn filters() -> Vec<(&'static str, String)> {
    let encoded = |number| served::owner(number).replace(' ', "%20");
    vec![
        ("all", String::new()),
        ("open", "&status=open".to_owned()),
        ("owner", format!("&owner={}", encoded(2))),
        ("large owner", format!("&owner={}", encoded(0))),
        ("dollars", "&currency=USD".to_owned()),
        ("none", "&status=closed&currency=USD".to_owned()),
    ]
}

/// Finds the deep pages, and counts what is read for each page.
pub fn cases(served: &Served) -> Result<Vec<Case>> {
    progress(format_args!("list: finding deep pages"));
    client::run(async {
        let mut connection = Connection::open(address(&served.query)?).await?;
        let mut cases = Vec::new();
        for order in ORDERS {
            for (name, filter) in filters() {
                let path = format!("/v1/bank-accounts?sort={order}{filter}");
                let mut paths = vec![format!("{path}&limit={LIMIT}")];
                let mut cursor = None;
                // With filters far fewer: a page goes over thousands of views.
                let steps = if filter.is_empty() { DEEP.min(served.accounts / 2) / LARGE } else { 5 };
                for _ in 0..steps {
                    let from: String = cursor.iter().map(|cursor| format!("&cursor={cursor}")).collect();
                    let page: Value =
                        serde_json::from_slice(connection.get(&format!("{path}&limit={LARGE}{from}")).await?)?;
                    let Some(next) = page["next_cursor"].as_str() else { break };
                    cursor = Some(next.to_owned());
                }
                paths.extend(cursor.map(|cursor| format!("{path}&limit={LIMIT}&cursor={cursor}")));
                for (path, depth) in paths.into_iter().zip(["first", "deep"]) {
                    let before = served.query.metric(READ);
                    let page: Value = serde_json::from_slice(connection.get(&path).await?)?;
                    let items = page["items"].as_array().context("a page has items")?.len() as u64;
                    let read = (served.query.metric(READ) - before) as u64;
                    let name = format!("{order}, {name}, {depth}");
                    cases.push(Case { name, path, read, items, millis: Vec::new() });
                }
            }
        }
        Ok(cases)
    })
}

/// The slowest case.
pub fn round(served: &Served, settings: &Settings, cases: &mut [Case], round: usize) -> Result<Round> {
    let times = if settings.quick { 2 } else { 100 };
    client::run(async {
        let mut connection = Connection::open(address(&served.query)?).await?;
        cases.iter_mut().for_each(|case| case.millis.clear());
        // In turn, so that a bad moment is one of all.
        for _ in 0..times {
            for case in cases.iter_mut() {
                let begin = Instant::now();
                connection.get(&case.path).await?;
                case.millis.push(begin.elapsed().as_secs_f64() * 1e3);
            }
        }
        anyhow::Ok(())
    })?;
    cases.iter_mut().for_each(|case| case.millis.sort_by(f64::total_cmp));
    let p99 = |case: &Case| quantile(&case.millis, 0.99);
    let slowest = cases.iter().max_by(|a, b| p99(a).total_cmp(&p99(b))).context("there are cases")?;
    let mut all: Vec<f64> = cases.iter().flat_map(|case| case.millis.iter().copied()).collect();
    all.sort_by(f64::total_cmp);
    let (ours, of_all, p50) = (p99(slowest), quantile(&all, 0.99), quantile(&all, 0.5));
    progress(format_args!(
        "list: round {round} of {}: p99 {ours:.1} ms ({}); of all {of_all:.1} ms, p50 {p50:.1} ms",
        settings.rounds, slowest.name
    ));
    let more = json!({"slowest": slowest.name, "p99_of_all": rounded(of_all), "p50_of_all": rounded(p50)});
    Ok((ours, LIMIT_MS, more))
}

/// What was read for a page of each case, and its last p99.
pub fn told(cases: &[Case]) -> Value {
    let told = |case: &Case| {
        let p99 = rounded(quantile(&case.millis, 0.99));
        (case.name.clone(), json!({"entries_read": case.read, "items": case.items, "p99": p99}))
    };
    Value::Object(cases.iter().map(told).collect::<Map<_, _>>())
}

/// An account of a long past, as of some time or at some version of it.
pub fn past(served: &Served, settings: &Settings, round: usize) -> Result<Round> {
    let times = if settings.quick { 20 } else { 500 };
    let path = Served::path(served::LONG);
    let mut millis = client::run(async {
        let mut connection = Connection::open(address(&served.query)?).await?;
        let view: Value = serde_json::from_slice(connection.get(&path).await?)?;
        let last = view["version"].as_u64().context("a view has a version")?;
        let [opened, updated] = ["opened_at", "updated_at"].map(|at| view[at].as_str().and_then(|at| at.parse().ok()));
        let (opened, updated): (Timestamp, Timestamp) = opened.zip(updated).context("a view has times")?;
        let (mut random, mut millis) = (Random::new(round as u64), Vec::new());
        for at in 0..times {
            let when = if at % 2 == 0 {
                let since = (updated.as_microsecond() - opened.as_microsecond()) as f64 * random.unit();
                format!("as_of={}", rfc3339_micros(opened.saturating_add(Duration::from_micros(since as u64))?))
            } else {
                format!("at_version={}", 1 + random.below(last as usize))
            };
            let begin = Instant::now();
            connection.get(&format!("{path}?{when}")).await?;
            millis.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        anyhow::Ok(millis)
    })?;
    millis.sort_by(f64::total_cmp);
    let (p99, p50) = (quantile(&millis, 0.99), quantile(&millis, 0.5));
    progress(format_args!("asof: round {round} of {}: p99 {p99:.1} ms, p50 {p50:.1} ms", settings.rounds));
    Ok((p99, LIMIT_MS, json!({"p50": rounded(p50)})))
}
