//! `get`: views, as fast as they can be had.

use std::time::{Duration, Instant};

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
    side::{cpu_seconds, pid},
};

/// Of the client.
pub const CONNECTIONS: usize = 64;
/// Accounts that are asked for.
const DIFFERENT: usize = 1_000;

/// Beside a view of the raw server, and beside its hello.
pub fn round(served: &mut Served, settings: &Settings, round: usize) -> Result<(Round, Round)> {
    let raw = RawWeb::start(&served.redis_prefix, Scene::PARTITIONS, "")?;
    let duration = Duration::from_millis(if settings.quick { 300 } else { 5_000 });
    let paths: Vec<String> = (0..DIFFERENT).map(Served::path).collect();
    let (ours, hello) = (address(&served.query)?, ["/hello".to_owned()]);
    let (our_server, raw_server) = (pid(served.query.process()), pid(&raw.process));
    let (mut measured, mut cpu_us) = ([0.0; 3], [0.0; 3]);
    // Who begins changes.
    for turn in 0..3 {
        let at = (round + turn) % 3;
        let (server, to, paths) = match at {
            0 => (our_server, ours, &paths[..]),
            1 => (raw_server, raw.address, &paths[..]),
            _ => (raw_server, raw.address, &hello[..]),
        };
        let (cpu, begun) = (cpu_seconds(server)?, Instant::now());
        measured[at] = saturate(to, CONNECTIONS, duration, paths)?;
        let answers = measured[at] * begun.elapsed().as_secs_f64();
        cpu_us[at] = 1e6 * (cpu_seconds(server)? - cpu) / answers;
    }
    let [view, bare, hello] = measured;
    // Of the server alone, an answer.
    let [view_us, bare_us, hello_us] = cpu_us.map(rounded);
    progress(format_args!(
        "get: round {round} of {}: {view:.0}/s, bare {bare:.0}/s, hello {hello:.0}/s",
        settings.rounds
    ));
    let (beside_bare, beside_hello) =
        (json!({"cpu_us": view_us, "raw_cpu_us": bare_us}), json!({"cpu_us": view_us, "raw_cpu_us": hello_us}));
    Ok(((view, bare, beside_bare), (view, hello, beside_hello)))
}
