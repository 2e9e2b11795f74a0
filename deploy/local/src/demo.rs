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

/// One command: to which account, which one, and its body.
struct Step {
    account: String,
    command: &'static str,
    body: Value,
}

/// First every account is opened, then money moves; more comes in than goes out.
fn step(number: u64, random: &mut Random) -> Step {
    let opened = usize::try_from(number).ok().filter(|n| *n < OWNERS.len());
    let owner = OWNERS[opened.unwrap_or_else(|| random.below(OWNERS.len()))];
    let amount = 100 * (1 + random.below(500));
    let (command, body) = if opened.is_some() {
        ("open", json!({"owner": owner, "currency": "EUR"}))
    } else if random.below(5) < 3 {
        ("deposit", json!({"amount_minor": amount, "reference": "demo: salary"}))
    } else {
        ("withdraw", json!({"amount_minor": amount / 2, "reference": "demo: groceries"}))
    };
    Step { account: format!("demo-{}", owner.to_lowercase()), command, body }
}

struct Client {
    agent: ureq::Agent,
    /// Makes this run's keys differ from those of the one before.
    run: u64,
}

impl Client {
    /// Sends one command. That a rule refuses it (it is open already, too little money) is fine.
    fn send(&self, port: u16, number: u64, step: &Step) -> Result<()> {
        let (account, command) = (&step.account, step.command);
        let url = format!("http://127.0.0.1:{port}/v1/bank-accounts/{account}/{command}");
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
        assert!(opening.iter().all(|step| step.command == "open"));
        for step in moving {
            assert!(opening.iter().any(|open| open.account == step.account));
            assert!(step.body["amount_minor"].as_i64() >= Some(50));
        }
        assert!(moving.iter().any(|step| step.command == "deposit"));
        assert!(moving.iter().any(|step| step.command == "withdraw"));
    }
}
