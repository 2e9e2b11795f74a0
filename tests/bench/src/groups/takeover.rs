//! `takeover`: kill -9 of one of two instances under load, until the other accepts a command for each partition. Raw:
//! the time in which Kafka gives the partitions of a killed plain consumer to another one of its group.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use millrace_tests::{
    Deployment, Stack, eventually_within,
    http::get,
    services::{Service, command_at, new_key, open_at},
};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use serde_json::{Value, json};

use super::{Group, Settings};
use crate::{
    arrivals, kafka,
    load::{Bank, Bulk},
    member::Pair,
    progress,
    report::{Figure, median, rounded},
};

const SECONDS: &str = "takeover.seconds";

pub const GROUP: Group = Group {
    figures: &[(SECONDS, "kill -9 → the other instance accepts for every partition; raw: Kafka's own detection")],
    run,
};

/// Something is under way at every moment, and mostly a transaction is open at the kill.
const PER_SECOND: f64 = 500.0;
const LIMIT: Duration = Duration::from_secs(120);

fn run(settings: &Settings, _: &[&'static str]) -> Result<Vec<Figure>> {
    // The default, but where only the bench itself is tried.
    let session_timeout_ms = if settings.quick { 2_000 } else { 10_000 };
    // Of two types the survivor would be given all partitions of one, and the victim those of the other.
    let mut deployment = Deployment::with_defaults().with("MILLRACE_ONLY_TYPE", "bank-account");
    deployment.bin_dir.clone_from(&settings.bin_dir);
    if settings.quick {
        deployment = deployment.with("MILLRACE_SESSION_TIMEOUT_MS", session_timeout_ms.to_string());
    }
    let mut victim = deployment.command_service("victim");
    let survivor = deployment.command_service("survivor");
    let mut pair = Pair::start(&deployment, session_timeout_ms)?;
    let accounts: Vec<String> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    for account in &accounts {
        open_at(&survivor, account, "Ada Lovelace");
    }
    let load = Load::start(&deployment, settings.accounts())?;
    let mut rounds = Vec::new();
    for round in 1..=settings.rounds {
        halves(&victim, &survivor, deployment.partitions);
        pair.start_victim(accounts.len());
        let taken = take_over(&deployment, &mut victim, &survivor, &mut pair, &accounts)?;
        progress(format_args!(
            "takeover: round {round} of {}: {:.1} s, {:.1} s after its detection; raw {:.1} s",
            settings.rounds,
            taken.ours,
            taken.ours - taken.detected,
            taken.raw
        ));
        rounds.push(taken);
        if round < settings.rounds {
            victim.start_again();
        }
    }
    load.end()?;
    let after_detection = median(rounds.iter().map(|round| round.ours - round.detected));
    let of = |round: &Taken| -> (f64, f64, Value) {
        let after_detection = rounded(round.ours - round.detected);
        (round.ours, round.raw, json!({"detected": rounded(round.detected), "after_detection": after_detection}))
    };
    let mut figure = Figure::new(SECONDS, "s", rounds.iter().map(of).collect(), Value::Null);
    figure.settings = json!({
        "session_timeout_ms": session_timeout_ms,
        "partitions": deployment.partitions,
        "load_per_second": PER_SECOND,
        "difference_seconds": rounded(figure.ours - figure.raw),
        "after_detection_seconds": rounded(after_detection),
        "detected": "when the broker no longer counted the killed instance in, in the very same kill",
    });
    drop((victim, survivor));
    kafka::delete(&format!("{}.", deployment.prefix))?;
    Ok(vec![figure])
}

/// One round, in seconds since the kill.
struct Taken {
    ours: f64,
    detected: f64,
    raw: f64,
}

fn take_over(
    deployment: &Deployment,
    victim: &mut Service,
    survivor: &Service,
    pair: &mut Pair,
    accounts: &[String],
) -> Result<Taken> {
    let group = &format!("{}.command", deployment.prefix);
    thread::scope(|scope| {
        let begin = Instant::now();
        pair.kill()?;
        victim.kill();
        let detected = scope.spawn(move || members_left(group, begin));
        // The same key in every attempt, as clients are told.
        let accepted: Vec<_> =
            accounts.iter().map(|account| scope.spawn(move || accepted_at(survivor, account))).collect();
        let mut last = begin;
        for accepted in accepted {
            last = last.max(accepted.join().map_err(|_| anyhow!("a partition is not served again"))?);
        }
        let raw = pair.all_at_survivor(accounts.len());
        let detected = detected.join().map_err(|_| anyhow!("the group can't be asked"))??;
        let seconds = |at: Instant| (at - begin).as_secs_f64();
        Ok(Taken { ours: seconds(last), detected: seconds(detected), raw: seconds(raw) })
    })
}

/// When a command to an account was accepted.
pub(super) fn accepted_at(service: &Service, account: &str) -> Instant {
    let request = command_at(service, account, "deposit", &json!({"amount_minor": 100})).key(&new_key());
    let answer = request.send_until_definite(LIMIT);
    assert_eq!(answer.status, 200, "{answer:?}");
    Instant::now()
}

/// When the broker counted one member less than two.
fn members_left(group: &str, since: Instant) -> Result<Instant> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &Stack::shared().kafka).create()?;
    loop {
        let list = consumer.fetch_group_list(Some(group), LIMIT)?;
        if list.groups().first().is_some_and(|group| group.members().len() < 2) {
            return Ok(Instant::now());
        }
        ensure!(since.elapsed() < LIMIT, "the broker does not notice");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until each instance serves half of the partitions.
fn halves(one: &Service, other: &Service, partitions: i32) {
    eventually_within(LIMIT, "half of the partitions at each instance", || {
        let serving = [serving(one)?, serving(other)?];
        let half = f64::from(partitions / 2);
        if serving == [half, half] { Ok(()) } else { Err(format!("they serve {serving:?}")) }
    });
}

fn serving(service: &Service) -> Result<f64, String> {
    let metrics = get(&format!("{}/metrics", service.ops_url())).try_send()?.text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("millrace_partitions_serving "));
    line.and_then(|value| value.parse().ok()).ok_or_else(|| "the instance does not say what it serves".to_owned())
}

/// Deposits at a steady rate, until it is told to end.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Load {
    fn start(deployment: &Deployment, accounts: usize) -> Result<Self> {
        let (commands, partitions) = (deployment.topic("commands"), deployment.partitions);
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let mut bank = Bank::new(0, accounts, partitions);
        bank.open_all(&Bulk::new(&commands)?)?;
        let thread = thread::Builder::new().name("load".into()).spawn(move || {
            let to = Bulk::new(&commands)?;
            while !told.load(Ordering::Relaxed) {
                let second = arrivals::schedule(PER_SECOND, Duration::ZERO, bank.pick() as u64);
                let mut failed = Ok(());
                arrivals::run(Instant::now(), &second, |_| {
                    if let Err(error) = bank.deposit_one(&to) {
                        failed = Err(error);
                    }
                });
                failed?;
            }
            to.finish()
        })?;
        Ok(Self { stop, thread })
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load has failed"))?
    }
}
