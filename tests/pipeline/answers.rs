//! How long, and how many, answers are remembered: limits, and settings that change between two starts.

use millrace_tests::{
    Deployment, eventually,
    services::{Service, command_at, open_at},
};
use serde_json::json;

/// What a client is told, and whether it had been told before.
fn deposit(service: &Service, id: &str, key: &str) -> (u16, bool) {
    let answer = command_at(service, id, "deposit", &json!({"amount_minor": 5})).key(key).send();
    (answer.status, answer.header("idempotency-replayed") == Some("true"))
}

const FIRST: (u16, bool) = (200, false);
const AGAIN: (u16, bool) = (200, true);

/// A deployment whose partitions may remember some ten answers each, and an account.
fn limited() -> (Deployment, String) {
    // For three partitions of five types.
    let deployment = Deployment::new().with("MILLRACE_ANSWERS_BYTES", "25000").with("MILLRACE_STORE_INTERVAL_MS", "50");
    let id = deployment.id_in(1);
    (deployment, id)
}

#[test]
fn g05_g16_at_the_limit_of_answers_commands_wait_and_say_why() {
    let (deployment, id) = limited();
    let deployment = deployment.with("MILLRACE_IDEMPOTENCY_WINDOW", "20s").with("MILLRACE_OUTCOME_TIMEOUT_MS", "5000");
    let service = deployment.command_service("one");
    open_at(&service, &id, "Ada");
    assert_eq!(deposit(&service, &id, "first"), FIRST);
    let refused = (0..500).find_map(|number| {
        let deposit = command_at(&service, &id, "deposit", &json!({"amount_minor": 5}));
        let answer = deposit.key(&format!("deposit-{number}")).send();
        // 504: it waits in the topic, and is decided when there is room.
        (!matches!(answer.status, 200 | 504)).then_some(answer)
    });
    let refused = refused.expect("the limit is reached");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let detail = refused.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains("answers"), "{detail}");
    assert_eq!(service.metric("millrace_partitions_full"), 1.0);
    let log = std::fs::read_to_string(&service.log).expect("a log");
    assert!(log.contains("MILLRACE_ANSWERS_BYTES"), "{}", service.tail());
    // The others are not concerned.
    open_at(&service, &deployment.id_in(0), "Basil");
    // Nobody had to be told twice, and when answers expire it goes on.
    eventually("room for another answer", || match deposit(&service, &id, "later") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("metric that says so", || match service.metric("millrace_partitions_full") {
        0.0 => Ok(()),
        full => Err(format!("{full}")),
    });
    deployment.check_log();
}

#[test]
fn g05_g16_where_it_is_wished_for_the_oldest_answers_are_forgotten_instead() {
    let (deployment, id) = limited();
    let deployment = deployment.with("MILLRACE_ANSWERS_FORGET", "true");
    let service = deployment.command_service("one");
    open_at(&service, &id, "Ada");
    assert_eq!(deposit(&service, &id, "first"), FIRST);
    for number in 0..200 {
        assert_eq!(deposit(&service, &id, &format!("deposit-{number}")), FIRST);
    }
    assert_eq!(deposit(&service, &id, "deposit-199"), AGAIN);
    // The window is shorter now, as was asked for.
    assert_eq!(deposit(&service, &id, "first"), FIRST);
}

#[test]
fn g05_windows_and_snapshot_settings_may_change_between_two_starts() {
    let deployment = Deployment::new().with("MILLRACE_STORE_INTERVAL_MS", "50");
    let id = deployment.id_in(2);
    let started = |window: &str, snapshots: &str| {
        let changed = deployment.clone().with("MILLRACE_IDEMPOTENCY_WINDOW", window);
        changed.with("MILLRACE_SNAPSHOT_EVENTS", snapshots).command_service("one")
    };
    let mut service = started("1h", "2");
    open_at(&service, &id, "Ada");
    assert_eq!(deposit(&service, &id, "first"), FIRST);
    service.terminate();
    service = started("1s", "100000");
    assert_eq!(deposit(&service, &id, "second"), FIRST);
    eventually("an answer that is forgotten", || match deposit(&service, &id, "second") {
        FIRST => Ok(()),
        other => Err(format!("{other:?}")),
    });
    service.terminate();
    // Longer again: the log still has them all, also those that a store of before had let go of.
    service = started("2h", "1");
    for key in ["first", "second"] {
        assert_eq!(deposit(&service, &id, key), AGAIN, "{key}");
    }
    let answer = command_at(&service, &id, "withdraw", &json!({"amount_minor": 1_000_000})).send();
    assert_eq!(answer.json()["balance_minor"], 15, "{answer:?}");
    service.terminate();
    deployment.with("MILLRACE_IDEMPOTENCY_WINDOW", "1s").check_log();
}
