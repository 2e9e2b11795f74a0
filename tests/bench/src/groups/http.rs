//! `http`: a deposit over HTTP at a steady rate, open loop, from the moment when it was meant to be sent until it is
//! accepted. Raw: the same way of a command without HTTP and domain, in one process.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use millrace_tests::{Stack, eventually_within};
use serde_json::json;
use tokio::{runtime::Runtime, task::JoinSet};

use super::{Group, Settings};
use crate::{
    arrivals::{self, LEAD_IN, quantile},
    kafka,
    load::{ZIPF, account},
    progress,
    raw::{Mode, Pace, RawClient, Task, writers},
    report::Figure,
    scene::Scene,
};

const P50: &str = "http.p50";
const P99: &str = "http.p99";

pub const GROUP: Group = Group {
    figures: &[
        (P50, "POST deposit → accepted at 500/s, open loop; raw: produce → consume → transaction → commit"),
        (P99, "the same, 99 % are faster"),
    ],
    run,
};

const PER_SECOND: f64 = 500.0;
const SESSION_TIMEOUT_MS: u64 = 10_000;

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let counted = Duration::from_secs(if settings.quick { 2 } else { 20 });
    let mut sides = Sides::start(settings)?;
    if !settings.quick {
        progress(format_args!("http: warming up"));
        sides.round(counted, 0)?;
    }
    let mut rounds = Vec::new();
    for round in 1..=settings.rounds {
        let (ours, raw) = sides.round(counted, round)?;
        progress(format_args!(
            "http: round {round} of {}: p50 {:.1} ms, raw {:.1} ms; p99 {:.1} ms, raw {:.1} ms",
            settings.rounds,
            quantile(&ours, 0.5),
            quantile(&raw, 0.5),
            quantile(&ours, 0.99),
            quantile(&raw, 0.99)
        ));
        rounds.push((ours, raw));
    }
    sides.scene.end()?;
    let settings = json!({
        "per_second": PER_SECOND,
        "seconds": counted.as_secs(),
        "arrivals": "poisson; latency from the intended time of sending",
        "accounts": settings.accounts(),
        "zipf": ZIPF,
        "partitions": 12,
        "writers": writers(),
    });
    let figure = |name, share| {
        let of = |(ours, raw): &(Vec<f64>, Vec<f64>)| (quantile(ours, share), quantile(raw, share), json!({}));
        Figure::new(name, "ms", rounds.iter().map(of).collect(), settings.clone())
    };
    let figures = [figure(P50, 0.5), figure(P99, 0.99)];
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}

/// A service with open accounts, and who calls it.
struct Sides {
    scene: Scene,
    client: reqwest::Client,
    runtime: Runtime,
}

impl Sides {
    fn start(settings: &Settings) -> Result<Self> {
        let scene = Scene::start(settings, None, 0)?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { scene, client, runtime })
    }

    /// Latencies of both in milliseconds, sorted; who begins changes.
    fn round(&mut self, counted: Duration, number: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        if number.is_multiple_of(2) {
            let ours = self.ours(counted, number)?;
            Ok((ours, self.raw(counted, number)?))
        } else {
            let raw = self.raw(counted, number)?;
            Ok((self.ours(counted, number)?, raw))
        }
    }

    fn ours(&mut self, counted: Duration, number: usize) -> Result<Vec<f64>> {
        let schedule = arrivals::schedule(PER_SECOND, counted, number as u64);
        let latencies: Arc<Mutex<Result<Vec<f64>, String>>> = Arc::new(Mutex::new(Ok(Vec::new())));
        let mut requests = JoinSet::new();
        let begin = Instant::now();
        arrivals::run(begin, &schedule, |at| {
            let (bank, due) = (&mut self.scene.bank, schedule[at]);
            let url = format!("{}/v1/bank-accounts/{}/deposit", self.scene.service.url(), account(bank.pick()));
            let request = self.client.post(url).header("Idempotency-Key", bank.command_id().to_string());
            let request = request.json(&json!({"amount_minor": 100 + at, "reference": format!("invoice {at:06}")}));
            let latencies = latencies.clone();
            let send = async move {
                let answer = match request.send().await {
                    Ok(answer) if answer.status() == 200 => answer.bytes().await.map(drop).map_err(|e| e.to_string()),
                    Ok(answer) => Err(format!("answered {}", answer.status())),
                    Err(error) => Err(error.to_string()),
                };
                let took = begin.elapsed().saturating_sub(due);
                let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
                match (answer, latencies.as_mut()) {
                    (Ok(()), Ok(millis)) if due >= LEAD_IN => millis.push(took.as_secs_f64() * 1e3),
                    (Err(error), Ok(_)) => *latencies = Err(error),
                    _ => {}
                }
            };
            requests.spawn_on(send, self.runtime.handle());
        });
        self.runtime.block_on(requests.join_all());
        let latencies =
            std::mem::replace(&mut *latencies.lock().unwrap_or_else(PoisonError::into_inner), Ok(Vec::new()));
        match latencies {
            Ok(mut millis) => {
                millis.sort_by(f64::total_cmp);
                Ok(millis)
            }
            Err(error) => bail!("a deposit was not accepted: {error}"),
        }
    }

    fn raw(&self, counted: Duration, number: usize) -> Result<Vec<f64>> {
        let commands = format!("{}.raw-http-{number}.commands", self.scene.deployment.prefix);
        kafka::create(&[&commands], self.scene.deployment.partitions)?;
        let out = Stack::shared().dir.join(format!("{commands}.latencies"));
        let task = Task {
            commands: &commands,
            mode: Mode::Transactions,
            session_timeout_ms: SESSION_TIMEOUT_MS,
            sample: &self.scene.sample,
            pace: Some(Pace { per_second: PER_SECOND, counted, seed: number as u64, out: out.clone() }),
        };
        let mut running = RawClient::start(&self.scene.deployment, &format!("raw-http-{number}"), task)?;
        let limit = counted + Duration::from_secs(90);
        let status =
            eventually_within(limit, "end of the raw client", || running.process.status().ok_or("it runs".to_owned()));
        ensure!(status.success(), "the raw client failed: {}", millrace_tests::process::tail(&running.log, 5));
        let text = fs::read(&out).with_context(|| format!("reading {}", out.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }
}
