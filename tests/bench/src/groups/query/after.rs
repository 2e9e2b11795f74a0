//! `visible.after`: a command at a steady rate, open loop, and at once a query with its token: from the moment when it was
//! accepted until the answer that shows it. Raw: the steps between, one by one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use millrace_tests::services::{new_id, open_at};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{Round, Settings};
use crate::{
    arrivals::{self, LEAD_IN, quantile},
    progress,
    raw::steps::{Stepper, Steps},
    report::rounded,
    served::Served,
};

/// Commands, few enough that nobody waits for another.
pub const PER_SECOND: f64 = 50.0;
/// Their accounts.
const ACCOUNTS: usize = 48;

type Step = fn(&Steps) -> Duration;

/// Who asks.
pub struct Visible {
    ids: Vec<String>,
    client: reqwest::Client,
    runtime: Runtime,
    raw: Stepper,
}

impl Visible {
    /// Opens accounts.
    pub fn start(served: &Served) -> Result<Self> {
        let ids: Vec<String> = (0..ACCOUNTS).map(|_| new_id()).collect();
        ids.iter().for_each(|id| open_at(&served.command, id, "Ada"));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(40)).build()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let raw = Stepper::start(&served.deployment, &served.sample, &served.view)?;
        Ok(Self { ids, client, runtime, raw })
    }

    /// 99 % are faster.
    pub fn round(&mut self, served: &Served, settings: &Settings, round: usize) -> Result<Round> {
        let counted = Duration::from_secs(if settings.quick { 1 } else { 20 });
        let (ours, raw) = if round.is_multiple_of(2) {
            let raw = self.steps(counted, round)?;
            (self.ours(served, counted, round)?, raw)
        } else {
            (self.ours(served, counted, round)?, self.steps(counted, round)?)
        };
        let of = |step: Step, share: f64| {
            let mut millis: Vec<f64> = raw.iter().map(|steps| step(steps).as_secs_f64() * 1e3).collect();
            millis.sort_by(f64::total_cmp);
            quantile(&millis, share)
        };
        let limit: Step = |steps| steps.commit + 3 * (steps.fetch + steps.script);
        let parts: [(&str, Step); 3] =
            [("commit", |steps| steps.commit), ("fetch", |steps| steps.fetch), ("script", |steps| steps.script)];
        let mut more = json!({"p50": rounded(quantile(&ours, 0.5)), "raw_p50": rounded(of(limit, 0.5))});
        for (name, step) in parts {
            more[name] = json!({"p50": rounded(of(step, 0.5)), "p99": rounded(of(step, 0.99))});
        }
        let (p99, raw) = (quantile(&ours, 0.99), of(limit, 0.99));
        progress(format_args!(
            "visible.after: round {round} of {}: p99 {p99:.1} ms, commit + 3 × (fetch + script) {raw:.1} ms; {more}",
            settings.rounds
        ));
        Ok((p99, raw, more))
    }

    /// In milliseconds, sorted.
    fn ours(&self, served: &Served, counted: Duration, round: usize) -> Result<Vec<f64>> {
        let schedule = arrivals::schedule(PER_SECOND, counted, round as u64);
        let latencies: Arc<Mutex<Vec<Result<f64>>>> = Arc::default();
        let mut requests = JoinSet::new();
        arrivals::run(Instant::now(), &schedule, |at| {
            let path = format!("/v1/bank-accounts/{}", self.ids[at % self.ids.len()]);
            let deposit = format!("{}{path}/deposit", served.command.url());
            let view = format!("{}{path}?stale=error&wait_ms=30000&after=", served.query.url());
            let (client, latencies, counts) = (self.client.clone(), latencies.clone(), schedule[at] >= LEAD_IN);
            let ask = async move {
                let latency = seen(&client, &deposit, &view).await;
                if counts || latency.is_err() {
                    latencies.lock().unwrap_or_else(PoisonError::into_inner).push(latency);
                }
            };
            requests.spawn_on(ask, self.runtime.handle());
        });
        self.runtime.block_on(requests.join_all());
        let latencies = std::mem::take(&mut *latencies.lock().unwrap_or_else(PoisonError::into_inner));
        let mut millis = latencies.into_iter().collect::<Result<Vec<f64>>>()?;
        ensure!(!millis.is_empty(), "nothing was counted");
        millis.sort_by(f64::total_cmp);
        Ok(millis)
    }

    fn steps(&mut self, counted: Duration, round: usize) -> Result<Vec<Steps>> {
        let schedule = arrivals::schedule(PER_SECOND, counted, round as u64);
        let mut steps = Vec::new();
        let mut failed = None;
        arrivals::run(Instant::now(), &schedule, |at| match self.raw.step() {
            Ok(step) if schedule[at] >= LEAD_IN => steps.push(step),
            Ok(_) => {}
            Err(error) => failed = Some(error),
        });
        failed.map_or(Ok(steps), Err)
    }
}

/// From accepted to seen, in milliseconds.
async fn seen(client: &reqwest::Client, deposit: &str, view: &str) -> Result<f64> {
    let answer = client.post(deposit).json(&json!({"amount_minor": 1})).send().await?;
    let (status, accepted): (_, Value) = (answer.status(), answer.json().await?);
    let begin = Instant::now();
    let token =
        accepted["token"].as_str().with_context(|| format!("a deposit was answered by {status}: {accepted}"))?;
    let answer = client.get(format!("{view}{token}")).send().await?;
    if answer.status() != 200 {
        bail!("a view was answered by {}", answer.status());
    }
    let view: Value = answer.json().await?;
    let took = begin.elapsed();
    ensure!(view["version"].as_u64() >= accepted["aggregate"]["version"].as_u64(), "{view} is older than {accepted}");
    Ok(took.as_secs_f64() * 1e3)
}
