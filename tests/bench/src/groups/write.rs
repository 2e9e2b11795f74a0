//! `write`: commands in the topic → events and outcomes committed, saturated.
//!
//! Both sides read the same topic, so they get the very same bytes; each is frozen (SIGSTOP) while the backlog is
//! produced and while the other works, so neither has a start-up or a competitor in its figure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Group, Settings};
use crate::{
    kafka::{self, Progress},
    load::{Bulk, ZIPF},
    progress,
    raw::{Mode, RawClient, Task, writers},
    report::Figure,
    scene::Scene,
    side::{Drained, Side},
};

const THROUGHPUT: &str = "write.throughput";
const CPU: &str = "write.cpu";
const EXACTLY_ONCE: &str = "write.exactly-once";

pub const GROUP: Group = Group {
    figures: &[
        (THROUGHPUT, "commands in the topic → events and outcomes committed; raw: the same writes by librdkafka"),
        (CPU, "client CPU time per million commands, from the same rounds"),
        (EXACTLY_ONCE, "throughput; raw: without transactions, at least once (with them: raw_transactions)"),
    ],
    run,
};

/// A cold broker is 2 to 4 times slower.
const WARM_UP: Duration = Duration::from_secs(35);
/// Nobody may lose the group while it is frozen.
const SESSION_TIMEOUT_MS: u64 = 120_000;

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let commands = if settings.quick { 50_000 } else { 1_000_000 };
    let plain = wanted.contains(&EXACTLY_ONCE);
    if !settings.quick {
        progress(format_args!("write: warming up for {} s", WARM_UP.as_secs()));
        let mut sides = Sides::start(settings, plain, 0)?;
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP {
            sides.drain(commands / 5, 0)?;
        }
        sides.end()?;
    }
    let mut rounds = Vec::new();
    for round in 1..=settings.rounds {
        let mut sides = Sides::start(settings, plain, round)?;
        let drained = sides.drain(commands, round)?;
        sides.check()?;
        sides.end()?;
        progress(format_args!(
            "write: round {round} of {}: ours {:.0}/s, raw {:.0}/s",
            settings.rounds, drained.ours.per_second, drained.raw.per_second
        ));
        rounds.push(drained);
    }
    let settings = json!({
        "commands": commands,
        "accounts": settings.accounts(),
        "zipf": ZIPF,
        "partitions": 12,
        "writers": writers(),
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        "throughput": "between 10 % and 80 % of the backlog; whole: from the first moment to the last commit",
    });
    let figure = |name, unit, figures: fn(&Round) -> (f64, f64, Value)| {
        Figure::new(name, unit, rounds.iter().map(figures).collect(), settings.clone())
    };
    let figures = [
        figure(THROUGHPUT, "commands/s", |round| {
            let (ours, raw) = (round.ours, round.raw);
            let more = json!({"ours_whole": ours.whole_per_second.round(), "raw_whole": raw.whole_per_second.round()});
            (ours.per_second, raw.per_second, more)
        }),
        figure(CPU, "CPU s/million", |round| (round.ours.cpu_seconds, round.raw.cpu_seconds, json!({}))),
        figure(EXACTLY_ONCE, "commands/s", |round| {
            let plain = round.plain.map_or(f64::NAN, |plain| plain.per_second);
            (round.ours.per_second, plain, json!({"raw_transactions": round.raw.per_second.round()}))
        }),
    ];
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}

struct Round {
    ours: Drained,
    raw: Drained,
    plain: Option<Drained>,
}

/// Everybody who reads the commands of a bank, all frozen.
struct Sides {
    // Declared first: they end before their topics do.
    clients: Vec<RawClient>,
    raw: Side,
    plain: Option<Side>,
    scene: Scene,
}

impl Sides {
    fn start(settings: &Settings, plain: bool, seed: usize) -> Result<Self> {
        let scene = Scene::start(settings, Some(SESSION_TIMEOUT_MS), seed as u64)?;
        let commands = scene.deployment.topic("commands");
        let mut clients = Vec::new();
        let mut start = |name, mode| -> Result<Side> {
            let (commands, sample, session_timeout_ms) = (commands.as_str(), &scene.sample, SESSION_TIMEOUT_MS);
            let task = Task { commands, mode, session_timeout_ms, sample, pace: None };
            let client = RawClient::start(&scene.deployment, name, task)?;
            let progress = Progress::new(&client.group, commands, scene.deployment.partitions)?;
            let side = Side::new(&client.process, progress);
            side.wait(scene.sent)?;
            clients.push(client);
            Ok(side)
        };
        let raw = start("raw", Mode::Transactions)?;
        let plain = plain.then(|| start("raw-plain", Mode::Plain)).transpose()?;
        for side in [&scene.ours, &raw].into_iter().chain(&plain) {
            side.freeze()?;
        }
        Ok(Self { clients, raw, plain, scene })
    }

    /// Produces a backlog and lets each side work it off, by turns in another order.
    fn drain(&mut self, count: usize, turn: usize) -> Result<Round> {
        let scene = &mut self.scene;
        scene.bank.deposit(&Bulk::new(&scene.deployment.topic("commands"))?, count)?;
        scene.sent += count as u64;
        let (mut ours, mut raw, mut plain) = (None, None, None);
        for at in 0..3 {
            match (turn + at) % 3 {
                0 => ours = Some(scene.ours.drain(scene.sent)?),
                1 => raw = Some(self.raw.drain(scene.sent)?),
                _ => plain = self.plain.as_ref().map(|side| side.drain(scene.sent)).transpose()?,
            }
        }
        Ok(Round { ours: ours.context("ours had its turn")?, raw: raw.context("raw had its turn")?, plain })
    }

    /// Each has written an event for every command: a service that refused them would be fast.
    fn check(&self) -> Result<()> {
        let Scene { deployment, sent, .. } = &self.scene;
        let partitions: Vec<i32> = (0..deployment.partitions).collect();
        let ours = deployment.topic("events");
        for topic in self.clients.iter().map(|client| &client.events).chain([&ours]) {
            let mut count = 0;
            kafka::read(topic, &partitions, |_| count += 1)?;
            ensure!(count == *sent, "{topic} holds {count} events for {sent} commands");
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        drop(self.clients);
        self.scene.end()
    }
}
