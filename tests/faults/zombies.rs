//! Instances that are frozen past their session time-out, and wake when another one has taken their partitions over.

use std::{collections::BTreeMap, thread, time::Duration};

use jiff::Timestamp;
use millrace_tests::{
    Deployment, eventually,
    fail_points::Action,
    http::Answer,
    ledger::{self, Told},
    services::{Service, command_at},
    side_by_side,
};
use serde_json::{Value, json};

/// Longest wait for an answer of an instance that is frozen meanwhile.
pub const FROZEN_LIMIT: Duration = Duration::from_secs(90);

/// How an instance wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// All threads go on at the same instant.
    AtOnce,
    /// The consumer rejoins the group, and is given partitions, before the writer goes on.
    Rejoined,
}

/// Who decides the command that the frozen instance had under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DecidedBy {
    /// The frozen instance, before it was frozen.
    First,
    /// Its successor.
    Second,
}

/// Until when it is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The successor owns the partitions, and waits for the open transaction.
    SuccessorWaits,
    /// The successor has worked on the same aggregates.
    SuccessorHasWorked,
}

/// Where it is frozen, as the fail points name it; `None`: idle.
type Case = (Option<&'static str>, Wake, Until, DecidedBy);

#[test]
fn g01_g02_g03_g04_a_frozen_instance_that_wakes_writes_nothing_and_answers_nothing_wrong() {
    use {DecidedBy::*, Until::*, Wake::*};
    let cases: [Case; 15] = [
        (None, AtOnce, SuccessorHasWorked, Second),
        // Nothing is written yet, so the successor waits for nothing, and only the fence stops the zombie.
        (Some("begin"), AtOnce, SuccessorHasWorked, Second),
        (Some("begin"), Rejoined, SuccessorHasWorked, Second),
        // Written, not fenced yet.
        (Some("produced"), AtOnce, SuccessorHasWorked, Second),
        (Some("produced"), Rejoined, SuccessorHasWorked, Second),
        (Some("produced"), AtOnce, SuccessorWaits, Second),
        // The offsets are sent: it may commit for as long as the successor waits, and not a moment longer.
        (Some("offsets"), AtOnce, SuccessorHasWorked, Second),
        (Some("offsets"), Rejoined, SuccessorHasWorked, Second),
        (Some("offsets"), AtOnce, SuccessorWaits, First),
        (Some("commit"), AtOnce, SuccessorHasWorked, Second),
        (Some("commit"), Rejoined, SuccessorHasWorked, Second),
        (Some("commit"), AtOnce, SuccessorWaits, First),
        (Some("commit"), Rejoined, SuccessorWaits, First),
        // Committed, and nobody knows.
        (Some("committed"), AtOnce, SuccessorHasWorked, First),
        (Some("committed"), Rejoined, SuccessorHasWorked, First),
    ];
    side_by_side(&cases, freeze);
}

/// One account in each partition, a hundred on each.
pub fn accounts(deployment: &Deployment, service: &Service, told: &mut Vec<Told>) -> Vec<String> {
    let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    for id in &ids {
        told.push(tell(service, id, "open", json!({"owner": "Ada", "currency": "EUR"}), "open"));
        told.push(tell(service, id, "deposit", json!({"amount_minor": 100}), "deposit"));
    }
    ids
}

/// Asks until there is a definite answer.
pub fn tell(service: &Service, id: &str, command: &str, body: Value, key: &str) -> Told {
    let answer = command_at(service, id, command, &body).key(key).send_until_definite(FROZEN_LIMIT);
    Told { id: id.to_owned(), key: key.to_owned(), path: format!("{id}/{command}"), body: body.into(), answer }
}

fn freeze(&(point, wake, until, decided_by): &Case) {
    // Who waits for a frozen instance is to be told by it, once it wakes.
    let deployment = crate::deployment().with("MILLRACE_OUTCOME_TIMEOUT_MS", "60000");
    // Time to see that the successor waits; else the shortest that a busy machine keeps.
    let timeout = if until == Until::SuccessorWaits { "15000" } else { "3000" };
    let deployment = deployment.with("MILLRACE_TRANSACTION_TIMEOUT_MS", timeout);
    let ((mut first, points), second) = thread::scope(|scope| {
        let first = scope.spawn(|| deployment.command_service_with_fail_points("c1"));
        let second = deployment.command_service("c2");
        (first.join().expect("the first is ready"), second)
    });
    let owners = deployment.wait_for_owners("partitions of both", both_own);
    let mut told = Vec::new();
    let mut ids = accounts(&deployment, &first, &mut told);
    ids.sort_by_key(|id| owners[&deployment.partition_of(id)] != "c1");

    thread::scope(|scope| {
        // Twice this would overdraw the account.
        let body = json!({"amount_minor": 60});
        let request = command_at(&first, &ids[0], "withdraw", &body).key("victim").within(FROZEN_LIMIT);
        let ask = move || request.send();
        let victim = match point {
            Some(point) => {
                let end = || deployment.end_of("events", deployment.partition_of(&ids[0]));
                let before = end();
                points.arm(point, Action::Stall);
                let victim = scope.spawn(ask);
                points.wait_reached(point);
                if point != "begin" {
                    // Given to the client is not yet with the broker.
                    eventually("event with the broker", || if end() > before { Ok(()) } else { Err(String::new()) });
                }
                first.freeze();
                victim
            }
            None => {
                first.freeze();
                // The kernel takes the connection.
                scope.spawn(ask)
            }
        };
        let frozen_at = Timestamp::now();
        deployment.wait_for_owner("c2");
        match until {
            Until::SuccessorHasWorked => {
                for id in &ids {
                    if id == &ids[0] && point.is_some() {
                        // It finds the victim's command in the topic.
                        told.push(tell(&second, id, "withdraw", json!({"amount_minor": 60}), "victim"));
                    }
                    told.push(tell(&second, id, "withdraw", json!({"amount_minor": 40}), "successor"));
                }
            }
            Until::SuccessorWaits => wait_until_it_restores(&second),
        }
        if let Some(point) = point.filter(|_| wake == Wake::AtOnce) {
            points.release(point);
        }
        first.thaw();
        if let Some(point) = point.filter(|_| wake == Wake::Rejoined) {
            deployment.wait_for_owners("partitions of both", both_own);
            points.release(point);
        }
        let woken_at = Timestamp::now();
        // At once, while it may still think that all is as it was.
        for id in &ids {
            told.push(tell(&first, id, "deposit", json!({"amount_minor": 1}), "woken"));
        }
        let answer: Answer = victim.join().expect("the victim is told");
        let body = json!({"amount_minor": 60});
        let victim = Told {
            id: ids[0].clone(),
            key: "victim".into(),
            path: format!("{}/withdraw", ids[0]),
            body: body.into(),
            answer,
        };
        // Nobody else has an outcome for it, and it waited long enough to learn of it.
        assert_eq!(victim.answer.status, 200, "{:?}", victim.answer);
        told.push(victim);
        for (service, key) in [(&first, "last-1"), (&second, "last-2")] {
            for id in &ids {
                told.push(tell(service, id, "deposit", json!({"amount_minor": 1}), key));
            }
        }
        let log = ledger::check(&deployment, &told, &second, usize::MAX);
        assert_eq!(log.originals.len(), ids.len() * if until == Until::SuccessorWaits { 5 } else { 6 } + 1);
        let outcome = &log.originals[&(ids[0].clone(), "victim".to_owned())];
        let at = outcome.at;
        match decided_by {
            DecidedBy::First => assert!(at < frozen_at, "{at} is not before {frozen_at}: {outcome:?}"),
            DecidedBy::Second => assert!(at > frozen_at, "{at} is not after {frozen_at}: {outcome:?}"),
        }
        assert!(point.is_none() || until == Until::SuccessorWaits || at < woken_at, "{at}: {outcome:?}");
    });
}

/// Whether both instances own partitions.
pub fn both_own(owners: &BTreeMap<i32, String>) -> bool {
    ["c1", "c2"].iter().all(|name| owners.values().any(|owner| owner == name))
}

/// Waits until an instance has partitions that it can't serve yet.
#[track_caller]
pub fn wait_until_it_restores(service: &Service) {
    eventually("instance that restores", || match service.ready() {
        Err(reason) if reason.contains("restored") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
