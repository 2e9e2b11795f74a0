//! What the tools on parked aggregates print.

use std::io::{self, Write};

use jiff::Timestamp;
use millrace_shared::{envelope::rfc3339_micros, views::Parked};
use serde::Serialize;
use serde_json::json;

use super::{Event, Replayed};

/// A parked aggregate.
#[derive(Serialize)]
pub struct Listed {
    /// Projection.
    pub projection: String,
    /// Partition.
    pub partition: i32,
    /// The aggregate.
    pub id: String,
    /// Since where, how many, why.
    #[serde(flatten)]
    pub parked: Parked,
}

/// A table, or an object a line.
pub fn list(found: &[Listed], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        for one in found {
            writeln!(out, "{}", serde_json::to_string(one)?)?;
        }
        return out.flush();
    }
    if found.is_empty() {
        return writeln!(out, "nothing is parked");
    }
    let width = |of: fn(&Listed) -> usize, least: usize| found.iter().map(of).max().unwrap_or(0).max(least);
    let (names, ids) = (width(|one| one.projection.len(), 10), width(|one| name(&one.id).len(), 2));
    writeln!(out, "{:names$}  {:ids$}  partition      offset  waiting  reason", "projection", "id")?;
    for Listed { projection, partition, id, parked } in found {
        let (id, Parked { offset, count, reason, discarded }) = (name(id), parked);
        let discarded = if *discarded { "discarded; " } else { "" };
        writeln!(out, "{projection:names$}  {id:ids$}  {partition:9}  {offset:10}  {count:7}  {discarded}{reason}")?;
    }
    out.flush()
}

/// Records that name no aggregate wait under an empty id.
fn name(id: &str) -> &str {
    if id.is_empty() { "(no id)" } else { id }
}

/// A line an event.
pub fn waiting(event: &Event, json: bool) -> io::Result<()> {
    let Event { place, timestamp_ms, content } = event;
    let time = timestamp_ms.and_then(|millis| Timestamp::from_millisecond(millis).ok()).map(rfc3339_micros);
    let mut out = io::stdout().lock();
    match content {
        Ok((sequence, kind)) if json => {
            writeln!(out, "{}", json!({"position": place, "time": time, "sequence": sequence, "type": kind}))
        }
        Err(reason) if json => writeln!(out, "{}", json!({"position": place, "time": time, "problem": reason})),
        Ok((sequence, kind)) => writeln!(out, "{place}  {}  {sequence:6}  {kind}", time.unwrap_or_default()),
        Err(reason) => writeln!(out, "{place}  {}       !  {reason}", time.unwrap_or_default()),
    }
}

/// What became of an aggregate.
pub fn replayed(id: &str, replayed: &Replayed) -> io::Result<()> {
    let (id, done) = (name(id), replayed.done);
    let mut out = io::stdout().lock();
    match &replayed.left {
        None => writeln!(out, "{id}: {done} applied, nothing waits any more"),
        Some(Parked { offset, count, reason, .. }) => {
            writeln!(out, "{id}: {done} applied, {count} wait from offset {offset} on: {reason}")
        }
    }
}

/// What was given up.
pub fn discarded(id: &str, parked: &Parked) -> io::Result<()> {
    let (id, Parked { offset, count, reason, .. }) = (name(id), parked);
    writeln!(io::stdout().lock(), "{id}: done without {count} and all later ones, from offset {offset} on: {reason}")
}
