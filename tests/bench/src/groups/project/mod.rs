//! `project`, `visible` and `verify`: events in the log → views in Redis, and the proof that they are the same. Raw: a
//! client that reads the same events and sends as many bytes by the same script, with no fold between.
//!
//! Ours is a second version of the projection, brought up from nothing beside one that is up to date, so that nothing
//! else is projected meanwhile: by projector-service as it goes on for ever ([`STEADY`]), or by its `rebuild`.

mod visible;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use millrace_shared::{
    codec::{Codec, Foreign},
    domain::bank_account::Event,
    registry::Registry,
};
use millrace_tests::{
    Stack,
    process::{Process, binary, command, tail},
};
use serde_json::{Value, json};

use super::{Group, Settings};
use crate::{
    kafka,
    load::ZIPF,
    progress,
    report::{Figure, rounded},
    scene::Scene,
    side::Drained,
    views::{RawViews, Views, redis_bytes},
};

const STEADY: &str = "project.steady";
const REBUILD: &str = "project.rebuild";
const MEMORY: &str = "project.memory";
const VISIBLE: &str = "visible.p99";
const VERIFY: &str = "verify.rate";

pub const GROUP: Group = Group {
    figures: &[
        (STEADY, "events in the log → views; raw: as many bytes by the same script, 512 events a call"),
        (REBUILD, "the same by `rebuild`; raw: as project.steady"),
        (MEMORY, "peak of the rebuild; raw: of the raw client"),
        (VISIBLE, "event committed → view, 99 % are faster, at 0.4 of the raw rate; raw: fetch and script alone"),
        (VERIFY, "events that `verify` folds and compares; raw: the log read and decoded"),
    ],
    run,
};

/// Events for each account, on average.
const EVENTS: usize = 20;
/// Looking at a rebuild's memory.
const SAMPLING: Duration = Duration::from_millis(200);

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let accounts = settings.accounts.filter(|_| !settings.quick).unwrap_or_else(|| settings.accounts());
    let wants = |names: &[&str]| names.iter().any(|name| wanted.contains(name));
    let events = accounts * if settings.quick { 3 } else { EVENTS };
    let mut views = Views::start(settings, accounts, events)?;
    let (mut steady, mut rebuilt, mut verified) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = Vec::new();
    for round in 1..=settings.rounds {
        let (ours, raw) = if round % 2 == 0 {
            let raw = raw(&views)?;
            (ours(&mut views)?, raw)
        } else {
            (ours(&mut views)?, raw(&views)?)
        };
        progress(format_args!(
            "project: round {round} of {}: {:.0} events/s, raw {:.0}/s",
            settings.rounds, ours.per_second, raw.drained.per_second
        ));
        let per_second = raw.drained.per_second;
        if wants(&[REBUILD, MEMORY]) {
            let rebuild = Rebuilt::run(&views)?;
            progress(format_args!("project: rebuilt at {:.0} events/s, {:.0} MB", rebuild.per_second, rebuild.peak));
            rebuilt.push((rebuild, per_second, raw.peak, ours.per_second));
        }
        if wants(&[VERIFY]) {
            let (ours, raw) = (verify(&views)?, read_and_decode(&views)?);
            progress(format_args!("verify: {ours:.0} events/s, raw {raw:.0}/s"));
            verified.push((ours, raw, json!({})));
        }
        if wants(&[VISIBLE]) {
            seen.push(visible::round(&mut views, settings, per_second, round)?);
        }
        let cpu = json!({"cpu_s_per_million": rounded(ours.cpu_seconds), "raw_cpu_s_per_million": rounded(raw.drained.cpu_seconds)});
        steady.push((ours.per_second, per_second, cpu));
    }
    let shown = json!({
        "accounts": accounts, "events": events, "zipf": ZIPF, "partitions": Scene::PARTITIONS,
        "batch_events": crate::views::BATCH_EVENTS,
    });
    let mut stored = shown.clone();
    if let (Some((rebuild, ..)), Some(stored)) = (rebuilt.first(), stored.as_object_mut()) {
        stored.extend(rebuild.stored(&views, accounts)?);
    }
    views.stop()?;
    let rebuild = rebuilt.iter().map(|(rebuild, raw, _, steady)| {
        (rebuild.per_second, *raw, json!({"of_steady": rounded(rebuild.per_second / steady)}))
    });
    let memory = rebuilt.iter().map(|(rebuild, _, raw, _)| (rebuild.peak, *raw, json!({})));
    let figures = [
        Figure::new(STEADY, "events/s", steady, shown.clone()),
        Figure::new(REBUILD, "events/s", rebuild.collect(), shown.clone()),
        Figure::new(MEMORY, "MB", memory.collect(), stored),
        Figure::new(VISIBLE, "ms", seen, shown.clone()),
        Figure::new(VERIFY, "events/s", verified, shown),
    ];
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}

/// Another version, by the service as it goes on for ever.
fn ours(views: &mut Views) -> Result<Drained> {
    let target = views.end()?;
    views.ours_now()?.freeze()?;
    let number = views.list_another()?;
    let side = views.ours(number)?;
    let drained = side.drain(target)?;
    side.thaw()?;
    views.free()?;
    Ok(drained)
}

struct Raw {
    drained: Drained,
    /// In MB.
    peak: f64,
}

fn raw(views: &Views) -> Result<Raw> {
    let client = RawViews::start(views, &format!("{}-raw", views.deployment.prefix))?;
    let side = client.side()?;
    // It was started a moment ago, and is not to be done before anybody looks.
    side.freeze()?;
    let drained = side.drain(views.end()?)?;
    let peak = peak(client.process.id()).context("the raw client runs")?;
    client.stop()?;
    Ok(Raw { drained, peak })
}

/// A rebuild by the tool.
struct Rebuilt {
    per_second: f64,
    /// In MB.
    peak: f64,
    /// What Redis needs for a version.
    bytes: u64,
}

impl Rebuilt {
    fn run(views: &Views) -> Result<Self> {
        let before = redis_bytes()?;
        let mut rebuild = command(binary("projector-service"));
        rebuild.args(["rebuild", "bank-accounts"]).envs(&views.deployment.env);
        let log = Stack::shared().log(&format!("{}-rebuild", views.deployment.prefix));
        let mut process = Process::start(&rebuild, &log);
        let mut most = 0.0;
        let status = loop {
            if let Some(status) = process.status() {
                break status;
            }
            most = peak(process.id()).unwrap_or_default().max(most);
            thread::sleep(SAMPLING);
        };
        let said = fs::read_to_string(&log)?;
        ensure!(status.success(), "the rebuild failed:\n{}", tail(&log, 10));
        let bytes = redis_bytes()?.saturating_sub(before);
        views.free()?;
        // "2004613 records in 56.7 s, 35384/s"
        let done = said.lines().rfind(|line| line.contains(" records in ")).context("it says how fast it was")?;
        Ok(Self { per_second: rate(done)?, peak: most, bytes })
    }

    /// What views and history cost Redis.
    fn stored(&self, views: &Views, accounts: usize) -> Result<serde_json::Map<String, Value>> {
        let (bytes, entries) = views.history()?;
        let stored = json!({
            "redis_bytes_per_account": self.bytes.saturating_sub(bytes) / accounts as u64,
            "view_bytes": views.sample.view.len(),
            "redis_bytes_per_history_entry": rounded(bytes as f64 / entries as f64),
            "packed_bytes": views.sample.entry.len(),
            "history_entries": entries,
        });
        Ok(stored.as_object().cloned().unwrap_or_default())
    }
}

/// The most memory that a process had so far, in MB; `None` when it has ended.
fn peak(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? * 1024.0 / 1e6)
}

/// The last word of a line, e.g. `35384/s`.
fn rate(line: &str) -> Result<f64> {
    let rate = line.rsplit(' ').next().and_then(|word| word.strip_suffix("/s")?.parse().ok());
    rate.with_context(|| format!("there is no rate in {line:?}"))
}

fn verify(views: &Views) -> Result<f64> {
    let ran = views.deployment.run_projector_tool(&["verify", "bank-accounts"]);
    ensure!(ran.code == Some(0), "the views are not the log's:\n{}{}", ran.output, ran.errors);
    let line = ran.errors.lines().find(|line| line.contains(" events in ")).context("it says how fast it was")?;
    rate(line)
}

/// The log, read and decoded by one thread.
fn read_and_decode(views: &Views) -> Result<f64> {
    let runtime = tokio::runtime::Runtime::new()?;
    let codec = Codec::<Event>::reading(Registry::new(&Stack::shared().registry)?)?;
    let partitions: Vec<i32> = (0..views.deployment.partitions).collect();
    let (begin, mut decoded) = (Instant::now(), 0);
    kafka::read(&views.deployment.topic("events"), &partitions, |record| {
        let value = record.value().unwrap_or_default();
        decoded += u64::from(codec.decode(value, Foreign::Refuse, runtime.handle()).is_ok());
    })?;
    ensure!(decoded == views.deposits.written(), "{decoded} events were read");
    Ok(decoded as f64 / begin.elapsed().as_secs_f64())
}
