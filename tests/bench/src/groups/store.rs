//! `store`: what the local stores cost: the same commands to two services, one of which keeps everything in memory. Each
//! is frozen (SIGSTOP) while the other works.

use anyhow::Result;
use serde_json::json;

use super::{Group, Settings};
use crate::{
    load::{Bank, Bulk, ZIPF},
    progress,
    report::Figure,
    scene::Scene,
    side::Drained,
};

const FAMOUS: &str = "store.zipf";
const UNIFORM: &str = "store.uniform";

pub const GROUP: Group = Group {
    figures: &[
        (FAMOUS, "commands/s with local stores, some accounts famous; raw: all states in memory"),
        (UNIFORM, "the same, all accounts used alike"),
    ],
    run,
};

/// Nobody may lose the group while it is frozen.
const SESSION_TIMEOUT_MS: u64 = 300_000;

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let (commands, accounts) =
        if settings.quick { (10_000, 5_000) } else { (1_000_000, settings.accounts.unwrap_or(1_000_000)) };
    let mut figures = Vec::new();
    for &name in wanted {
        let bank = |seed| match name {
            FAMOUS => Bank::new(seed, accounts, Scene::PARTITIONS),
            _ => Bank::uniform(seed, accounts, Scene::PARTITIONS),
        };
        progress(format_args!("{name}: opening {accounts} accounts, twice"));
        let mut stored = Scene::with(settings, Some(SESSION_TIMEOUT_MS), bank(0), &[])?;
        stored.ours.freeze()?;
        let mut in_memory = Scene::with(settings, Some(SESSION_TIMEOUT_MS), bank(0), &[("MILLRACE_DATA_DIR", "none")])?;
        in_memory.ours.freeze()?;
        let mut rounds = Vec::new();
        for round in 1..=settings.rounds {
            let mut drained = [None, None];
            for turn in 0..2 {
                let at = (round + turn) % 2;
                let scene = if at == 0 { &mut stored } else { &mut in_memory };
                drained[at] = Some(drain(scene, commands)?);
            }
            let [Some(with), Some(without)] = drained else { continue };
            progress(format_args!(
                "{name}: round {round} of {}: {:.0}/s with stores, {:.0}/s in memory",
                settings.rounds, with.per_second, without.per_second
            ));
            let cpu = json!({"cpu_s_per_million": with.cpu_seconds, "raw_cpu_s_per_million": without.cpu_seconds});
            rounds.push((with.per_second, without.per_second, cpu));
        }
        let zipf = if name == FAMOUS { ZIPF } else { 0.0 };
        let shown = json!({"commands": commands, "accounts": accounts, "zipf": zipf, "partitions": Scene::PARTITIONS});
        figures.push(Figure::new(name, "commands/s", rounds, shown));
        stored.end()?;
        in_memory.end()?;
    }
    Ok(figures)
}

fn drain(scene: &mut Scene, commands: usize) -> Result<Drained> {
    scene.bank.deposit(&Bulk::new(&scene.deployment.topic("commands"))?, commands)?;
    scene.sent += commands as u64;
    scene.ours.drain(scene.sent)
}
