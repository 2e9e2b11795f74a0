//! A take-over that makes no progress.

use std::{fs, time::Duration};

use millrace_tests::{
    eventually,
    kafka::OpenTransaction,
    ledger,
    services::{Service, command_at},
};
use serde_json::json;

use crate::{
    deployment,
    zombies::{FROZEN_LIMIT, accounts, tell},
};

/// A stranger's transaction that nobody ends hides committed records of one partition, so that it can't be restored.
#[test]
fn g01_g15_a_take_over_without_progress_says_so_and_tries_again_while_other_partitions_are_served() {
    let deployment = deployment().with("MILLRACE_RESTORE_STALL_MS", "1000").with("MILLRACE_OUTCOME_TIMEOUT_MS", "4000");
    let mut service = deployment.command_service("c1");
    let mut told = Vec::new();
    let ids = accounts(&deployment, &service, &mut told);
    let (stalled, others) = ids.split_first().expect("there are accounts");
    let hanging = OpenTransaction::begin(&deployment.topic("events"), deployment.partition_of(stalled));
    // Committed behind it.
    told.push(tell(&service, stalled, "withdraw", json!({"amount_minor": 60}), "behind"));
    service.terminate();
    service.launch();
    for id in others {
        told.push(tell(&service, id, "withdraw", json!({"amount_minor": 60}), "meanwhile"));
    }
    eventually("service that gives up its restore, and begins again, twice", || match attempts(&service) {
        0..2 => Err(service.tail()),
        _ => Ok(()),
    });
    let ready = service.ready();
    assert!(ready.as_ref().is_err_and(|reason| reason.contains("1 of 3 partitions are being restored")), "{ready:?}");
    // It can't be decided without what is hidden: the account has 40 left.
    let asked = command_at(&service, stalled, "withdraw", &json!({"amount_minor": 60})).key("hidden");
    let answer = asked.clone().within(Duration::from_secs(20)).send();
    answer.problem(503, "unavailable");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    hanging.abort();
    service.wait_ready();
    let answer = asked.within(FROZEN_LIMIT).send_until_definite(FROZEN_LIMIT);
    answer.problem(422, "insufficient-funds");
    told.push(tell(&service, stalled, "withdraw", json!({"amount_minor": 40}), "after"));
    let log = ledger::check(&deployment, &told, &service, usize::MAX);
    assert_eq!(log.accounts[stalled].version, 4);
}

/// How often a restore was given up, as the log says.
fn attempts(service: &Service) -> usize {
    let log = fs::read_to_string(&service.log).expect("the service has a log");
    log.lines().filter(|line| line.contains("restore failed") && line.contains("no progress for 1s")).count()
}
