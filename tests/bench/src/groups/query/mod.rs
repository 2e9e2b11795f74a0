//! `get`, `list`, `asof`, `sse` and `visible.after`: what query-service answers from Redis. Raw: axum with nothing around
//! it, or the time that an answer may take.
//!
//! Everything is on one machine: on two cores the client and Redis take a share of what the servers could have, of both
//! alike.

mod after;
mod get;
mod list;
mod sse;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Group, Settings};
use crate::{report::Figure, scene::Scene, served::Served};

const VIEW: &str = "get.view";
const HELLO: &str = "get.hello";
const LIST: &str = "list.p99";
const AS_OF: &str = "asof.p99";
const RATE: &str = "sse.rate";
const MEMORY: &str = "sse.memory";
const AFTER: &str = "visible.after";

pub const GROUP: Group = Group {
    figures: &[
        (VIEW, "GET of a view over 64 kept connections; raw: bare axum and one GET of Redis"),
        (HELLO, "the same; raw: bare axum that says hello"),
        (LIST, "page of 50, the slowest of all orders, filters and depths, 99 % are faster; raw: 20 ms, the limit"),
        (AS_OF, "view as of a time, of an account of 10,000 events, 99 % are faster; raw: 20 ms, the limit"),
        (RATE, "changes delivered to 2,000 streams; raw: a broadcast by bare axum"),
        (MEMORY, "memory of query-service for each of them; raw: 20 kB, the limit"),
        (AFTER, "accepted → visible by `after=`, 99 % are faster; raw: commit + 3 × (fetch + script)"),
    ],
    run,
};

/// Events of the account with a long past.
const LONG: usize = 10_000;
/// Milliseconds that a page, or a view of the past, may take.
const LIMIT_MS: f64 = 20.0;

/// Ours, raw, and what else there is to say.
type Round = (f64, f64, Value);
type Rounds = Vec<Round>;

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let wants = |names: &[&str]| names.iter().any(|name| wanted.contains(name));
    let accounts = match settings.accounts {
        _ if settings.quick => settings.accounts(),
        Some(accounts) => accounts,
        None if wants(&[LIST]) => 1_000_000,
        None => settings.accounts(),
    };
    let mut served = Served::start(settings, accounts, LONG)?;
    let (mut views, mut hellos, mut after): (Rounds, Rounds, Rounds) = Default::default();
    let (mut pages, mut past): (Rounds, Rounds) = Default::default();
    let mut cases = if wants(&[LIST]) { list::cases(&served)? } else { Vec::new() };
    let mut visible = if wants(&[AFTER]) { Some(after::Visible::start(&served)?) } else { None };
    for round in 1..=settings.rounds {
        if wants(&[VIEW, HELLO]) {
            let (view, hello) = get::round(&mut served, settings, round)?;
            views.push(view);
            hellos.push(hello);
        }
        if wants(&[LIST]) {
            pages.push(list::round(&served, settings, &mut cases, round)?);
        }
        if wants(&[AS_OF]) {
            past.push(list::past(&served, settings, round)?);
        }
        if let Some(visible) = &mut visible {
            after.push(visible.round(&served, settings, round)?);
        }
    }
    drop(visible);
    let (mut rates, mut memory): (Rounds, Rounds) = Default::default();
    if wants(&[RATE, MEMORY]) {
        served.stop_writing();
        for round in 1..=settings.rounds {
            let (rate, bytes) = sse::round(&served, settings, round)?;
            rates.push(rate);
            memory.push(bytes);
        }
    }
    served.stop()?;
    let partitions = Scene::PARTITIONS;
    let get = json!({"accounts": accounts, "connections": get::CONNECTIONS, "partitions": partitions});
    let list = json!({"accounts": accounts, "limit": list::LIMIT, "callers": 1, "cases": list::told(&cases), "partitions": partitions});
    let past_of = json!({"events": LONG, "callers": 1});
    let streams = json!({"streams": sse::streams(settings), "changes_at_once": sse::BATCH, "partitions": partitions});
    let waits = json!({"accounts": accounts, "per_second": after::PER_SECOND, "partitions": partitions});
    let figures = [
        Figure::new(VIEW, "answers/s", views, get.clone()),
        Figure::new(HELLO, "answers/s", hellos, get),
        Figure::new(LIST, "ms", pages, list),
        Figure::new(AS_OF, "ms", past, past_of),
        Figure::new(RATE, "changes/s", rates, streams.clone()),
        Figure::new(MEMORY, "kB", memory, streams),
        Figure::new(AFTER, "ms", after, waits),
    ];
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}
