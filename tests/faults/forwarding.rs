//! An instance that is frozen while it forwards a command into the partition of another one.

use std::time::{Duration, Instant};

use millrace_tests::{
    commands, eventually_within,
    fail_points::Action,
    kafka::{Draft, Producer},
    ledger,
    services::open_at,
};
use serde_json::json;

use crate::{
    deployment,
    zombies::{both_own, tell},
};

/// Its open transaction lies in front of everybody's later commands there, until its time is up.
#[test]
fn g01_g02_partitions_of_others_recover_from_a_frozen_instance_that_was_forwarding() {
    let deployment = deployment();
    let (mut first, points) = deployment.command_service_with_fail_points("c1");
    let second = deployment.command_service("c2");
    let owners = deployment.wait_for_owners("partitions of both", both_own);
    let of = |instance: &str| {
        let (partition, _) = owners.iter().find(|(_, owner)| *owner == instance).expect("each owns one");
        *partition
    };
    let (from, to) = (of("c1"), of("c2"));
    let ids = [deployment.id_in(from), deployment.id_in(to)];
    for id in &ids {
        open_at(&second, id, "Ada");
    }
    let (topic, producer) = (deployment.topic("commands"), Producer::new("murmur2_random"));
    points.arm("commit", Action::Stop);
    producer.send(&topic, &Draft::new(&ids[1], commands::deposit(5)).header("ce_id", "misrouted").to(from));
    points.wait_reached("commit");
    first.wait_frozen();
    let frozen_at = Instant::now();
    let mut told = vec![tell(&second, &ids[1], "deposit", json!({"amount_minor": 1}), "behind")];
    // Time-out of the transaction, the broker's interval, and a moment of a busy machine.
    assert!(frozen_at.elapsed() < Duration::from_secs(3 + 1 + 10), "it took {:?}", frozen_at.elapsed());
    // The command itself is forwarded by whoever takes its partition over.
    eventually_within(Duration::from_secs(30), "forwarded command", || {
        let outcomes = deployment.outcomes();
        let decided = outcomes.iter().any(|(_, outcome)| outcome["command_id"] == "misrouted");
        if decided { Ok(()) } else { Err("it has no outcome".to_owned()) }
    });
    first.thaw();
    for (service, key) in [(&first, "last-1"), (&second, "last-2")] {
        for id in &ids {
            told.push(tell(service, id, "deposit", json!({"amount_minor": 1}), key));
        }
    }
    let log = ledger::check(&deployment, &told, &second, usize::MAX);
    assert_eq!(log.accounts[&ids[1]].version, 1 + 1 + 1 + 2);
    let forwarded = deployment
        .read("commands")
        .into_iter()
        .filter(|command| command.partition == to && command.header("ce_id").as_deref() == Some("misrouted"));
    assert_eq!(forwarded.count(), 1, "forwarded once");
}
