//! One command id that comes in several times at once, by every way there is, also while its partition moves.

use std::thread;

use millrace_tests::{
    Deployment, commands,
    fail_points::{Action, FailPoints},
    http::Answer,
    kafka::{Draft, Producer},
    ledger::{self, Told},
    services::{Service, command_at, new_id, open_at},
    side_by_side,
};
use serde_json::{Value, json};

use crate::{
    deployment,
    zombies::{FROZEN_LIMIT, both_own, tell},
};

fn committed(service: &Service) -> f64 {
    service.metric("millrace_transactions_total{result=\"committed\"}")
}

/// Makes the writer wait behind a first batch, so that what comes meanwhile is the next one.
fn hold_writer(service: &Service, points: &FailPoints, id: &str) {
    points.arm("committed", Action::Stall);
    let held = command_at(service, id, "deposit", &json!({"amount_minor": 1})).header("Prefer", "respond-async").send();
    assert_eq!(held.status, 202, "{held:?}");
    points.wait_reached("committed");
}

#[test]
fn g02_g05_one_id_many_times_in_one_batch_by_both_ways_in_and_at_two_instances() {
    // One partition, so that the second instance owns none, and follows.
    let mut deployment = deployment().with("MILLRACE_PARTITIONS", "1").with("MILLRACE_WRITERS", "1");
    deployment.partitions = 1;
    let (first, points) = deployment.command_service_with_fail_points("c1");
    let second = deployment.command_service("c2");
    deployment.wait_for_owner("c1");
    let id = new_id();
    open_at(&first, &id, "Ada");
    hold_writer(&first, &points, &id);
    let before = committed(&first);
    let (topic, producer) = (deployment.topic("commands"), Producer::new("murmur2_random"));
    let body = json!({"amount_minor": 7});
    let (answers, reused) = thread::scope(|scope| {
        let ask = |service: &Service, body: &Value| {
            let request = command_at(service, &id, "deposit", body).key("many").within(FROZEN_LIMIT);
            scope.spawn(move || request.send())
        };
        let asked: Vec<_> = [&first, &second, &first, &second].map(|service| ask(service, &body)).into();
        for _ in 0..2 {
            producer.send(&topic, &Draft::new(&id, commands::deposit(7)).header("ce_id", "many"));
        }
        // All seven are in the topic, whose end lies behind the opening and the first deposit.
        wait_for_commands(&deployment, 2 + 6);
        // The same id with another body, behind them.
        let reused = ask(&second, &json!({"amount_minor": 8}));
        wait_for_commands(&deployment, 2 + 7);
        points.release("committed");
        let answers: Vec<Answer> = asked.into_iter().map(|asked| asked.join().expect("it is told")).collect();
        (answers, reused.join().expect("it is told"))
    });
    for answer in &answers {
        assert_eq!((answer.status, answer.must("etag")), (200, "\"3\""), "{answer:?}");
        assert_eq!(answer.json(), answers[0].json());
    }
    let first_ones = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_none()).count();
    assert!(first_ones <= 1, "each says that it was the first: {answers:?}");
    reused.problem(422, "idempotency-key-reused");
    assert!(committed(&first) - before <= 3.0, "they were not decided together");
    let path = format!("{id}/deposit");
    let told: Vec<_> = answers
        .into_iter()
        .map(|answer| Told {
            id: id.clone(),
            key: "many".into(),
            path: path.clone(),
            body: body.clone().into(),
            answer,
        })
        .collect();
    let log = ledger::check(&deployment, &told, &second, usize::MAX);
    assert_eq!(log.accounts[&id].version, 3);
}

fn wait_for_commands(deployment: &Deployment, count: usize) {
    millrace_tests::eventually(&format!("{count} commands in the topic"), || {
        let found = deployment.read("commands").len();
        millrace_tests::wait::same(&found, &count)
    });
}

#[test]
fn g02_g05_g06_one_id_and_an_expected_version_across_a_take_over() {
    side_by_side(&["begin", "produced", "commit", "committed"], |&point: &&str| {
        let deployment = deployment();
        let (mut first, points) = deployment.command_service_with_fail_points("c1");
        let second = deployment.command_service("c2");
        let id = deployment
            .wait_for_owners("partition of the first", both_own)
            .into_iter()
            .find_map(|(partition, owner)| (owner == "c1").then(|| deployment.id_in(partition)))
            .expect("the first owns one");
        open_at(&second, &id, "Ada");
        points.arm(point, Action::Stall);
        let body = json!({"amount_minor": 7});
        let request = |service: &Service| {
            let request = command_at(service, &id, "deposit", &body).header("If-Match", "\"1\"");
            request.key("victim").within(FROZEN_LIMIT)
        };
        thread::scope(|scope| {
            // Both are asked at once; the first will die over it, the second, which follows it, take its place.
            let dying = request(&first);
            let dying = scope.spawn(move || dying.try_send());
            points.wait_reached(point);
            let asked = request(&second);
            let asked = scope.spawn(move || asked.send_until_definite(FROZEN_LIMIT));
            wait_for_commands_with(&deployment, "victim", 2);
            first.kill();
            let _ = dying.join().expect("it does not panic");
            let answer: Answer = asked.join().expect("it is told");
            assert_eq!((answer.status, answer.must("etag")), (200, "\"2\""), "{answer:?}");
            let conflict = command_at(&second, &id, "deposit", &body).header("If-Match", "\"1\"").send();
            assert_eq!(conflict.problem(412, "version-conflict")["actual_version"], 2);
            let path = format!("{id}/deposit");
            let mut told = vec![Told { id: id.clone(), key: "victim".into(), path, body: body.clone().into(), answer }];
            told.push(tell(&second, &id, "withdraw", json!({"amount_minor": 7}), "later"));
            let log = ledger::check(&deployment, &told, &second, usize::MAX);
            assert_eq!(log.accounts[&id].version, 3);
        });
    });
}

fn wait_for_commands_with(deployment: &Deployment, key: &str, count: usize) {
    millrace_tests::eventually(&format!("{count} commands {key} in the topic"), || {
        let commands = deployment.read("commands");
        let found = commands.iter().filter(|command| command.header("ce_id").as_deref() == Some(key)).count();
        millrace_tests::wait::same(&found, &count)
    });
}
