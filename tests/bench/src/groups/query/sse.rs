//! `sse`: changes of everything to many streams. The next changes are handed out when everybody has got all but the last
//! few, so that nobody is too slow and no server waits.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use millrace_tests::services::Service;
use serde_json::json;
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpStream};

use super::{Round, Settings};
use crate::{
    client::{self, Connection, Streams},
    progress,
    raw::web::RawWeb,
    report::rounded,
    scene::Scene,
    served::{Feeds, Served, address},
};

/// Changes that are handed out at once.
pub const BATCH: usize = 64;
/// Such that are under way.
const UNDER_WAY: u64 = 4;
/// What a stream may take, in kB.
const LIMIT_KB: f64 = 20.0;
const PATH: &str = "/v1/bank-accounts/changes";

/// How many streams.
pub fn streams(settings: &Settings) -> usize {
    if settings.quick { 300 } else { 2_000 }
}

/// What came of one server.
struct Delivered {
    per_second: f64,
    /// Memory for each stream, in kB.
    memory: f64,
}

/// Rate and memory.
pub fn round(served: &Served, settings: &Settings, round: usize) -> Result<(Round, Round)> {
    let mut query = served.another_query_service();
    let mut feeds = served.feeds()?;
    let frame = frame(&query, &mut feeds)?;
    let raw = RawWeb::start(&served.redis_prefix, Scene::PARTITIONS, &frame)?;
    let (ours_at, process) = (address(&query)?, query.process().id());
    let mut ours = || {
        let add = async |feeds: &mut Feeds| feeds.add(BATCH).map(drop);
        deliver(settings, ours_at, PATH, process, &mut feeds, add)
    };
    let bare = || {
        let publish = async |connection: &mut Option<Connection>| {
            let connection = match connection {
                Some(connection) => connection,
                None => connection.insert(Connection::open(raw.address).await?),
            };
            connection.ask("POST", &format!("/changes/{BATCH}")).await.map(drop)
        };
        deliver(settings, raw.address, "/changes", raw.process.id(), &mut None, publish)
    };
    let (ours, bare) = if round.is_multiple_of(2) {
        let bare = bare()?;
        (ours()?, bare)
    } else {
        (ours()?, bare()?)
    };
    progress(format_args!(
        "sse: round {round} of {}: {:.0} changes/s, raw {:.0}/s; {:.1} kB a stream, raw {:.1}",
        settings.rounds, ours.per_second, bare.per_second, ours.memory, bare.memory
    ));
    let rate = (ours.per_second, bare.per_second, json!({"bytes": frame.len()}));
    Ok((rate, (ours.memory, LIMIT_KB, json!({"broadcast": rounded(bare.memory)}))))
}

/// A change as the service sends it.
fn frame(query: &Service, feeds: &mut Feeds) -> Result<String> {
    client::run(async {
        let mut stream = TcpStream::connect(address(query)?).await?;
        // By HTTP/1.0, without chunks.
        stream.write_all(format!("GET {PATH} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut read = Vec::new();
        loop {
            let more = stream.read_buf(&mut read).await?;
            anyhow::ensure!(more > 0, "the stream was ended");
            let text = String::from_utf8_lossy(&read);
            // The first id is the place to begin from: the stream is open.
            let Some((_, told)) = text.split_once("\r\n\r\nretry: ") else { continue };
            let Some((_, changes)) = told.split_once("\n\n") else { continue };
            match changes.split_once("\n\n") {
                Some((change, _)) => return Ok(format!("{change}\n\n")),
                None if changes.is_empty() => drop(feeds.add(1)?),
                None => {}
            }
        }
    })
}

async fn handed_out<T>(
    streams: &Streams,
    settings: &Settings,
    process: u32,
    by: &mut T,
    hand_out: impl AsyncFn(&mut T) -> Result<()>,
) -> Result<(f64, f64)> {
    let duration = Duration::from_millis(if settings.quick { 500 } else { 8_000 });
    let (mut handed_out, mut most) = (0_u64, 0.0);
    let begin = Instant::now();
    while begin.elapsed() < duration {
        hand_out(by).await?;
        handed_out += 1;
        streams.wait(handed_out.saturating_sub(UNDER_WAY) * BATCH as u64).await?;
        most = resident(process)?.max(most);
    }
    streams.wait(handed_out * BATCH as u64).await?;
    Ok((handed_out as f64 * BATCH as f64 / begin.elapsed().as_secs_f64(), most))
}

fn deliver<T>(
    settings: &Settings,
    to: std::net::SocketAddr,
    path: &str,
    process: u32,
    by: &mut T,
    hand_out: impl AsyncFn(&mut T) -> Result<()>,
) -> Result<Delivered> {
    client::run(async {
        let count = streams(settings);
        let before = resident(process)?;
        let streams = Streams::open(to, path, count).await?;
        let (per_second, most) = handed_out(&streams, settings, process, by, hand_out).await?;
        Ok(Delivered { per_second: per_second * count as f64, memory: (most - before) / count as f64 })
    })
}

/// Physical memory of a process, in kB of 1,024 bytes.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has memory")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
