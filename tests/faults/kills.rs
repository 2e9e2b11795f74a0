//! kill -9 of command-service, at random and at chosen instants, under load.

use std::{thread, time::Duration};

use millrace_tests::{
    LONG,
    fail_points::Action,
    http::Answer,
    ledger::{self, Log, Told},
    load::{Load, TopicLoad},
    services::{Service, command_at, open_at},
    side_by_side,
};
use serde_json::json;
use uuid::Uuid;

use crate::deployment;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn g01_g02_g03_g05_instances_are_killed_at_random_instants() {
    let kills = if *LONG { 50 } else { 5 };
    side_by_side(&[1, 2], |&instances: &usize| {
        let deployment = deployment();
        let mut services: Vec<_> =
            (1..=instances).map(|number| deployment.command_service(&format!("c{number}"))).collect();
        let load = Load::start(services.iter().map(Service::url).collect(), 6, 12);
        let topic = TopicLoad::start(&deployment, 6);
        for kill in 0..kills {
            load.wait_for_more(20);
            // Up to 65 ms, within which there are a few transactions: a random instant, not a wait for anything.
            let [.., high, low] = Uuid::now_v7().into_bytes();
            thread::sleep(Duration::from_micros(u64::from(u16::from_be_bytes([high, low]))));
            let service = &mut services[kill % instances];
            service.kill();
            service.launch();
        }
        load.wait_for_more(50);
        for service in &mut services {
            service.wait_ready();
        }
        let (told, _) = load.stop();
        topic.stop(&deployment);
        ledger::check(&deployment, &told, &services[0], 100);
    });
}

/// Who goes on after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The same instance, started again.
    Restarted,
    /// Another instance.
    Another,
}

#[test]
fn g01_g02_g05_an_instance_is_killed_at_every_step_of_a_transaction() {
    use Then::*;
    let mut cases = Vec::new();
    for point in ["begin", "produced", "flushed", "offsets", "commit", "committed"] {
        cases.push((point, Restarted));
        if *LONG || matches!(point, "produced" | "commit" | "committed") {
            cases.push((point, Another));
        }
    }
    side_by_side(&cases, |&(point, then)| {
        let deployment = deployment();
        let (mut first, points) = deployment.command_service_with_fail_points("c1");
        let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
        let mut told = Vec::new();
        for id in &ids {
            open_at(&first, id, "Ada");
        }
        points.arm(point, Action::Kill);
        let body = json!({"amount_minor": 60});
        let victim = |service: &Service| command_at(service, &ids[0], "deposit", &body).key("victim");
        let unanswered = victim(&first).try_send();
        assert!(unanswered.is_err(), "it was killed before it could answer: {unanswered:?}");
        first.wait_ended();
        let service = match then {
            Restarted => {
                first.start_again();
                first
            }
            Another => deployment.command_service("c2"),
        };
        // Decided already, by the one that was killed or by the one that read it in the topic: this is a repeat.
        let answer: Answer = victim(&service).send_until_definite(LIMIT);
        assert_eq!((answer.status, answer.must("etag")), (200, "\"2\""), "{answer:?}");
        assert_eq!(answer.header("idempotency-replayed"), Some("true"), "{answer:?}");
        let path = format!("{}/deposit", ids[0]);
        told.push(Told { id: ids[0].clone(), key: "victim".into(), path, body: body.clone().into(), answer });
        for id in &ids {
            let body = json!({"amount_minor": 40});
            let answer = command_at(&service, id, "deposit", &body).key("later").send_until_definite(LIMIT);
            told.push(Told {
                id: id.clone(),
                key: "later".into(),
                path: format!("{id}/deposit"),
                body: body.into(),
                answer,
            });
        }
        let log: Log = ledger::check(&deployment, &told, &service, usize::MAX);
        assert_eq!(log.originals.len(), 2 * ids.len() + 1);
    });
}
