//! One thread hangs while the others go on: what no signal does.

use std::{fs, thread};

use jiff::Timestamp;
use millrace_tests::{
    eventually,
    fail_points::Action,
    ledger::{self, Log, Told},
    services::command_at,
    side_by_side,
};
use serde_json::json;

use crate::{
    deployment,
    zombies::{FROZEN_LIMIT, accounts, both_own, tell, wait_until_it_restores},
};

/// The group hears of a hanging consumer nothing but heartbeats, which come from another thread; its writer is alive,
/// has work, and believes that the partitions are its own, for nothing told it otherwise: only the broker stops it.
#[test]
fn g01_g02_g03_an_instance_whose_consumer_hangs_is_replaced_and_its_writer_refused() {
    let deployment = deployment().with("MILLRACE_OUTCOME_TIMEOUT_MS", "60000");
    let (first, points) = deployment.command_service_with_fail_points("c1");
    let mut told = Vec::new();
    let ids = accounts(&deployment, &first, &mut told);
    thread::scope(|scope| {
        points.arm("begin", Action::Stall);
        let body = json!({"amount_minor": 60});
        let request = command_at(&first, &ids[0], "withdraw", &body).key("victim").within(FROZEN_LIMIT);
        let victim = scope.spawn(move || request.send());
        points.wait_reached("begin");
        points.arm("poll", Action::Stall);
        points.wait_reached("poll");
        let hung_at = Timestamp::now();
        let second = deployment.command_service("c2");
        deployment.wait_for_owner("c2");
        let took = Timestamp::now().duration_since(hung_at);
        assert!(
            took.as_secs() <= 2 + 5 + 10,
            "an owner that hangs is replaced 5 s later than a silent one (session time-out and 10 s), not {took:?}"
        );
        for id in &ids {
            if id == &ids[0] {
                told.push(tell(&second, id, "withdraw", json!({"amount_minor": 60}), "victim"));
            }
            told.push(tell(&second, id, "withdraw", json!({"amount_minor": 40}), "successor"));
        }
        let count = |result: &str| first.metric(&format!("millrace_transactions_total{{result=\"{result}\"}}"));
        let committed = count("committed");
        points.release("begin");
        eventually("transaction that is refused", || match count("aborted") + count("unknown") {
            refused if refused > 0.0 => Ok(()),
            _ => Err("there is none".to_owned()),
        });
        let (before, now) = (committed, count("committed"));
        assert!(now <= before, "{before} and then {now}: the writer of an instance that was replaced has committed");
        points.release("poll");
        let answer = victim.join().expect("the victim is told");
        assert_eq!(answer.status, 200, "{answer:?}");
        let path = format!("{}/withdraw", ids[0]);
        told.push(Told { id: ids[0].clone(), key: "victim".into(), path, body: body.into(), answer });
        for (service, key) in [(&first, "last-1"), (&second, "last-2")] {
            for id in &ids {
                told.push(tell(service, id, "deposit", json!({"amount_minor": 1}), key));
            }
        }
        ledger::check(&deployment, &told, &second, usize::MAX);
    });
}

/// The consumer follows a rebalance while all writers hang: it waits for them, but not for ever.
#[test]
fn g01_g02_g03_a_writer_that_hangs_through_a_rebalance_has_lost_what_was_taken_away() {
    side_by_side(&["begin", "produced", "offsets", "commit", "committed"], |&point: &&str| {
        // The longest that there is: that the successor waits for the open transactions is to be seen on a busy machine.
        let deployment = deployment().with("MILLRACE_OUTCOME_TIMEOUT_MS", "60000");
        let deployment = deployment.with("MILLRACE_TRANSACTION_TIMEOUT_MS", "15000");
        // A writer for each partition.
        let deployment = deployment.with("MILLRACE_WRITERS", "3");
        let (first, points) = deployment.command_service_with_fail_points("c1");
        let mut told = Vec::new();
        let ids = accounts(&deployment, &first, &mut told);
        let body = json!({"amount_minor": 60});
        thread::scope(|scope| {
            let victims: Vec<_> = ids
                .iter()
                .map(|id| {
                    points.arm(point, Action::Stall);
                    let request = command_at(&first, id, "withdraw", &body).key("victim").within(FROZEN_LIMIT);
                    let victim = scope.spawn(move || request.send());
                    points.wait_reached(point);
                    victim
                })
                .collect();
            let stalled_at = Timestamp::now();
            let second = deployment.command_service("c2");
            let owners = deployment.wait_for_owners("partition that goes to the second", both_own);
            let moved = |id: &&String| owners[&deployment.partition_of(id)] == "c2";
            // Without an open transaction in its way the second one works on; else it waits for the first one's.
            let waits = matches!(point, "produced" | "offsets" | "commit");
            if waits {
                wait_until_it_restores(&second);
            } else {
                for id in ids.iter().filter(moved) {
                    told.push(tell(&second, id, "withdraw", json!({"amount_minor": 60}), "victim"));
                    told.push(tell(&second, id, "withdraw", json!({"amount_minor": 40}), "successor"));
                }
                let log = fs::read_to_string(&second.log).expect("the service has a log");
                assert!(!log.contains("open transaction"), "it waited, though nothing was open: {log}");
            }
            points.release(point);
            for (id, victim) in ids.iter().zip(victims) {
                let answer = victim.join().expect("the victim is told");
                assert_eq!(answer.status, 200, "{answer:?}");
                let path = format!("{id}/withdraw");
                told.push(Told { id: id.clone(), key: "victim".into(), path, body: body.clone().into(), answer });
            }
            for (service, key) in [(&first, "last-1"), (&second, "last-2")] {
                for id in &ids {
                    told.push(tell(service, id, "deposit", json!({"amount_minor": 1}), key));
                }
            }
            let log = ledger::check(&deployment, &told, &second, usize::MAX);
            for id in ids.iter().filter(moved) {
                let late = decided_at(&log, id, "victim") > stalled_at;
                let fenced_already = matches!(point, "offsets" | "commit" | "committed");
                assert_eq!(late, !fenced_already, "who decided the victim of {id}?");
            }
        });
    });
}

fn decided_at(log: &Log, id: &str, key: &str) -> Timestamp {
    log.originals[&(id.to_owned(), key.to_owned())].at
}
