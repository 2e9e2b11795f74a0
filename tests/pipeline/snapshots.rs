//! Snapshots: a restart needs them and the events behind the checkpoint, and no others.

use std::fs;

use millrace_tests::{
    Deployment,
    avro::Registry,
    eventually,
    kafka::{self, Record},
    services::{Service, command_at, open_at},
};
use serde_json::{Value, json};

const ACCOUNTS: usize = 40;

/// A service that makes a checkpoint every few events, and accounts of one partition.
fn start() -> (Deployment, Service, Vec<String>) {
    let deployment = Deployment::new().with("MILLRACE_SNAPSHOT_EVENTS", "30").with("MILLRACE_SNAPSHOT_INTERVAL", "2s");
    let service = deployment.command_service("one");
    let ids: Vec<_> = (0..ACCOUNTS).map(|_| deployment.id_in(1)).collect();
    for id in &ids {
        open_at(&service, id, "Ada");
    }
    (deployment, service, ids)
}

#[track_caller]
fn deposit(service: &Service, id: &str) -> i64 {
    let answer = command_at(service, id, "deposit", &json!({"amount_minor": 100})).send();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["aggregate"]["version"].as_i64().expect("a version")
}

fn checkpoints(deployment: &Deployment) -> Vec<(Record, Value)> {
    let is_checkpoint = |record: &Record| record.key.as_deref() == Some(b"checkpoint/1");
    let found = kafka::read(&deployment.topic("snapshots"), Some(1)).into_iter().filter(is_checkpoint);
    found
        .map(|record| {
            let datum = Registry::shared().decode(record.value.as_deref().expect("checkpoints have values"));
            assert_eq!(datum.record, "millrace.Checkpoint");
            (record, datum.fields)
        })
        .collect()
}

/// Waits for a checkpoint that covers every event there is.
#[track_caller]
fn covering(deployment: &Deployment) -> (Record, Value) {
    let last = kafka::read(&deployment.topic("events"), Some(1)).pop().expect("there are events");
    eventually("a checkpoint behind the last event", || {
        let newest = checkpoints(deployment).pop().ok_or("there is none")?;
        if newest.1["offset"].as_i64() > Some(last.offset) { Ok(newest) } else { Err(format!("{newest:?}")) }
    })
}

#[test]
fn g03_a_restart_reads_snapshots_and_only_the_events_behind_the_checkpoint() {
    let (deployment, mut service, ids) = start();
    for id in &ids {
        assert_eq!(deposit(&service, id), 2);
    }
    let (_, checkpoint) = covering(&deployment);
    assert_eq!(checkpoint["aggregates"], ACCOUNTS);
    // Behind it, and in no snapshot yet.
    assert_eq!(deposit(&service, &ids[0]), 3);
    service.kill();
    fs::remove_dir_all(deployment.data_dir()).expect("there are local stores");
    // The older events are gone, so nobody can have read them.
    let offset = checkpoint["offset"].as_i64().expect("an offset");
    kafka::delete_before(&deployment.topic("events"), 1, offset);
    service.start_again();
    assert_eq!(deposit(&service, &ids[0]), 4);
    for id in &ids[1..] {
        let answer = command_at(&service, id, "withdraw", &json!({"amount_minor": 101})).send();
        let problem = answer.json();
        assert_eq!((answer.status, &problem["balance_minor"]), (422, &json!(100)), "{answer:?}");
    }
    // Idle, the rest is covered by time.
    covering(&deployment);
}

#[test]
fn g03_without_all_snapshots_a_restart_reads_all_events() {
    let (deployment, mut service, ids) = start();
    let first = command_at(&service, &ids[0], "deposit", &json!({"amount_minor": 100})).key("repeated").send();
    assert_eq!(first.status, 200, "{first:?}");
    let (checkpoint, _) = covering(&deployment);
    service.kill();
    fs::remove_dir_all(deployment.data_dir()).expect("there are local stores");
    // All but the checkpoint itself. Brokers delete no records of a topic that is compacted only.
    let topic = deployment.topic("snapshots");
    kafka::alter_topic(&topic, &[("cleanup.policy", "compact,delete")]);
    kafka::delete_before(&topic, 1, checkpoint.offset);
    kafka::alter_topic(&topic, &[("cleanup.policy", "compact")]);
    service.start_again();
    // What is made of the snapshots has nothing to do with the answers.
    let again = command_at(&service, &ids[0], "deposit", &json!({"amount_minor": 100})).key("repeated").send();
    assert_eq!((again.header("idempotency-replayed"), &again.body), (Some("true"), &first.body));
    assert_eq!(deposit(&service, &ids[0]), 3);
    for id in &ids[1..] {
        assert_eq!(deposit(&service, id), 2);
    }
    let log = fs::read_to_string(&service.log).expect("a log");
    assert!(log.contains("snapshots are not used") && log.contains("some are missing"), "{}", service.tail());
    deployment.check_log();
}
