//! `--demo`: a steady trickle of deposits and withdrawals, so that there is something to see.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::layout::Layout;
use crate::probe::http_client;

const OWNERS: [&str; 12] =
    ["Ada", "Basil", "Chidi", "Dalia", "Emre", "Freya", "Goran", "Hana", "Iris", "Jonas", "Kamala", "Lucia"];
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(2);

/// Starts the trickle; it goes on until this process ends, whatever the services answer.
pub fn start(layout: &Layout) {
    let ports: Vec<_> = (0..layout.instances).filter_map(|i| layout.command_service(i).http).collect();
    thread::spawn(move || {
        let client = Client { agent: http_client(Duration::from_secs(15)), run: now_ms() };
        let mut random = Random(client.run | 1);
        for number in 0_u64.. {
            let port = ports[random.below(ports.len())];
            let step = step(number, &mut random);
            let pause = match client.send(port, number, &step) {
                Ok(()) => PAUSE,
                Err(_) => PAUSE_AFTER_ERROR,
            };
            thread::sleep(pause);
        }
    });
}

/// One command: its path, and its body.
struct Step {
    path: String,
    body: Value,
}

/// First every account is opened, then money moves; more comes in than goes out.
fn step(number: u64, random: &mut Random) -> Step {
    let opened = usize::try_from(number).ok().filter(|n| *n < OWNERS.len());
    let owner = OWNERS[opened.unwrap_or_else(|| random.below(OWNERS.len()))];
    let amount = 100 * (1 + random.below(500));
    let account = |owner: &str| format!("demo-{}", owner.to_lowercase());
    let to_account = |command, body| Step { path: format!("bank-accounts/{}/{command}", account(owner)), body };
    if opened.is_some() {
        return to_account("open", json!({"owner": owner, "currency": "EUR"}));
    }
    match random.below(6) {
        0..=2 => to_account("deposit", json!({"amount_minor": amount, "reference": "demo: salary"})),
        3..=4 => to_account("withdraw", json!({"amount_minor": amount / 2, "reference": "demo: groceries"})),
        _ => {
            let to = account(OWNERS[random.below(OWNERS.len())]);
            let body = json!({
                "from": account(owner), "to": to, "amount_minor": amount / 2, "currency": "EUR", "reference": "demo: rent",
            });
            Step { path: "transfers".into(), body }
        }
    }
}

struct Client {
    agent: ureq::Agent,
    /// Makes this run's keys differ from those of the one before.
    run: u64,
}

impl Client {
    /// Sends one command. That a rule refuses it (it is open already, too little money) is fine.
    fn send(&self, port: u16, number: u64, step: &Step) -> Result<()> {
        let url = format!("http://127.0.0.1:{port}/v1/{}", step.path);
        let response = self
            .agent
            .post(url)
            .header("Content-Type", "application/json")
            .header("Idempotency-Key", format!("demo-{}-{number}", self.run))
            .send(step.body.to_string())?;
        let status = response.status();
        ensure!(status.is_success() || status == 422, "answered {status}");
        Ok(())
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| u64::try_from(since.as_millis()).unwrap_or(1))
}

/// Marsaglia's xorshift: good enough to look lively.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_account_is_opened_before_money_moves() {
        let mut random = Random(7);
        let steps: Vec<_> = (0..100).map(|number| step(number, &mut random)).collect();
        let (opening, moving) = steps.split_at(OWNERS.len());
        let opened: Vec<&str> = opening.iter().map(|step| step.path.strip_suffix("open").unwrap()).collect();
        for step in moving {
            let account = step.body["from"].as_str().map(|id| format!("bank-accounts/{id}/"));
            let path = account.as_ref().unwrap_or(&step.path);
            assert!(opened.iter().any(|account| path.starts_with(account)), "{path}");
            assert!(step.body["amount_minor"].as_i64() >= Some(50));
        }
        for part in ["/deposit", "/withdraw", "transfers"] {
            assert!(moving.iter().any(|step| step.path.ends_with(part)), "{part}");
        }
    }
}
