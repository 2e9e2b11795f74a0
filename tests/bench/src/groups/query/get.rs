//! `get`: views, as fast as they can be had.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{Round, Settings};
use crate::{
    client::saturate,
    progress,
    raw::web::RawWeb,
    report::rounded,
    scene::Scene,
    served::{Served, address},
};

/// Of the client.
pub const CONNECTIONS: usize = 64;
/// Accounts that are asked for.
const DIFFERENT: usize = 1_000;

/// Beside a view of the raw server, and beside its hello.
pub fn round(served: &Served, settings: &Settings, round: usize) -> Result<(Round, Round)> {
    let raw = RawWeb::start(&served.redis_prefix, Scene::PARTITIONS, "")?;
    let duration = Duration::from_millis(if settings.quick { 300 } else { 5_000 });
    let paths: Vec<String> = (0..DIFFERENT).map(Served::path).collect();
    let (ours, hello) = (address(&served.query)?, ["/hello".to_owned()]);
    let mut measured = [0.0; 3];
    // Who begins changes.
    for turn in 0..3 {
        let at = (round + turn) % 3;
        measured[at] = match at {
            0 => saturate(ours, CONNECTIONS, duration, &paths)?,
            1 => saturate(raw.address, CONNECTIONS, duration, &paths)?,
            _ => saturate(raw.address, CONNECTIONS, duration, &hello)?,
        };
    }
    let [view, bare, hello] = measured;
    progress(format_args!(
        "get: round {round} of {}: {view:.0}/s, bare {bare:.0}/s, hello {hello:.0}/s",
        settings.rounds
    ));
    Ok(((view, bare, json!({"hello": rounded(hello)})), (view, hello, json!({}))))
}
