//! `deadlines`: an instance in which many commands wait for their time starts again, until it accepts a command for
//! each partition. Raw: one that has nothing to know.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Group, Settings, restart::Restarting};
use crate::{
    load::{Bank, Bulk},
    progress,
    report::{Figure, rounded},
};

const START: &str = "deadlines.start";
const MEMORY: &str = "deadlines.memory";

pub const GROUP: Group = Group {
    figures: &[
        (START, "start with a million scheduled commands → accepts for every partition; raw: with nothing to know"),
        (MEMORY, "peak of command-service meanwhile, scheduling included; raw: with nothing to know"),
    ],
    run,
};

/// No bench takes so long.
const NOT_BEFORE: &str = "2100-01-01T00:00:00Z";
/// Accounts that they are for.
const ACCOUNTS: usize = 100_000;

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let count = if settings.quick { 5_000 } else { 1_000_000 };
    let mut empty = Restarting::start(settings, "empty", 0)?;
    let mut waiting = Restarting::start(settings, "waiting", 0)?;
    progress(format_args!("deadlines: scheduling {count} commands"));
    let commands = waiting.deployment.topic("commands");
    let mut bank = Bank::uniform(0, settings.accounts().min(ACCOUNTS), waiting.deployment.partitions);
    bank.deposit_later(&Bulk::new(&commands)?, count, NOT_BEFORE)?;
    waiting.wait_handled(count)?;
    let mut starts = Vec::new();
    for round in 1..=settings.rounds {
        let raw = empty.restart()?;
        let ours = waiting.restart()?;
        progress(format_args!(
            "deadlines: round {round} of {}: {:.1} s, raw {:.1} s",
            settings.rounds, ours.all, raw.all
        ));
        let more = json!({"first": rounded(ours.first), "raw_first": rounded(raw.first)});
        starts.push((ours.all, raw.all, more));
    }
    let scheduled = waiting.service.metric("millrace_scheduled{type=\"bank-account\"}");
    ensure!(scheduled as usize == count, "{scheduled} of {count} commands wait");
    let memory = vec![(waiting.peak(), empty.peak(), json!({}))];
    let settings = json!({
        "scheduled": count, "accounts": bank.accounts(), "partitions": waiting.deployment.partitions,
    });
    for restarting in [empty, waiting] {
        restarting.end()?;
    }
    let figures = [Figure::new(START, "s", starts, settings.clone()), Figure::new(MEMORY, "MB", memory, settings)];
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}
