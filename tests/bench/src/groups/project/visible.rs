//! `visible.p99`: events at a steady rate, open loop; from when the broker had each for good until its partition's
//! checkpoint in Redis, which moves in the same step as the views, is behind it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Settings;
use crate::{
    arrivals::{LEAD_IN, quantile},
    deposits::Committed,
    progress,
    report::rounded,
    side::Side,
    views::{Checkpoints, RawViews, Views},
};

/// Of the raw rate: half of what ours is meant to reach, which is 0.8.
const SHARE: f64 = 0.4;
/// Events per second where only the measuring is tried.
const QUICK: f64 = 2_000.0;
/// How often the checkpoints are looked at.
const LOOK: Duration = Duration::from_millis(2);

/// `(ours, raw, more)`, given what the raw client does at most.
pub fn round(views: &mut Views, settings: &Settings, raw_limit: f64, round: usize) -> Result<(f64, f64, Value)> {
    let (seconds, per_second) = if settings.quick { (1, QUICK) } else { (10, raw_limit * SHARE) };
    let counted = Duration::from_secs(seconds);
    let client = RawViews::start(views, &format!("{}-raw-visible", views.deployment.prefix))?;
    let (ours, raw) = (views.ours_now()?, client.side()?);
    raw.wait(views.end()?)?;
    raw.freeze()?;
    let of_ours = latencies(views, &ours, views.checkpoints_now()?, per_second, counted)?;
    ours.freeze()?;
    let of_raw = latencies(views, &raw, client.checkpoints()?, per_second, counted)?;
    client.stop()?;
    ours.thaw()?;
    let at = |share| (quantile(&of_ours, share), quantile(&of_raw, share));
    let ((ours, raw), (p50, raw_p50)) = (at(0.99), at(0.5));
    progress(format_args!(
        "visible: round {round} of {}: p99 {ours:.1} ms, raw {raw:.1} ms; p50 {p50:.1} ms, raw {raw_p50:.1} ms, at {per_second:.0}/s",
        settings.rounds
    ));
    Ok((ours, raw, json!({"p50": rounded(p50), "raw_p50": rounded(raw_p50), "per_second": per_second.round()})))
}

/// In milliseconds, sorted.
fn latencies(
    views: &mut Views,
    side: &Side,
    checkpoints: Checkpoints,
    per_second: f64,
    counted: Duration,
) -> Result<Vec<f64>> {
    side.thaw()?;
    side.wait(views.end()?)?;
    let ended = &AtomicBool::new(false);
    let begin = Instant::now();
    let (committed, seen) = thread::scope(|scope| {
        let watching = scope.spawn(move || watch(&checkpoints, ended));
        let committed = views.deposits.write_at(per_second, LEAD_IN + counted);
        let caught_up = views.end().and_then(|end| side.wait(end));
        ended.store(true, Ordering::Relaxed);
        let seen = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        anyhow::Ok((committed?, caught_up.and(seen)?))
    })?;
    let of = |(partition, offset, at): &Committed| {
        let behind = |looked: &(Instant, Vec<u64>)| looked.1[partition.unsigned_abs() as usize] > offset.unsigned_abs();
        let visible = seen.get(seen.partition_point(|looked| !behind(looked)))?.0;
        Some(visible.saturating_duration_since(*at).as_secs_f64() * 1e3)
    };
    let counted = committed.iter().filter(|(.., at)| *at >= begin + LEAD_IN);
    let mut millis = counted.map(of).collect::<Option<Vec<f64>>>().unwrap_or_default();
    ensure!(!millis.is_empty(), "some event was not seen");
    millis.sort_by(f64::total_cmp);
    Ok(millis)
}

/// Looks at the checkpoints again and again, once more after the end.
fn watch(checkpoints: &Checkpoints, ended: &AtomicBool) -> Result<Vec<(Instant, Vec<u64>)>> {
    let mut seen: Vec<(Instant, Vec<u64>)> = Vec::new();
    loop {
        let last = ended.load(Ordering::Relaxed);
        let offsets = checkpoints.offsets()?;
        if seen.last().is_none_or(|seen| seen.1 != offsets) {
            seen.push((Instant::now(), offsets));
        }
        if last {
            return Ok(seen);
        }
        thread::sleep(LOOK);
    }
}
