//! Commands that wait until they are due.

use jiff::{SignedDuration, Timestamp};
use millrace_tests::{
    Deployment, Services, commands, eventually,
    http::Request,
    kafka::{Draft, Producer},
    services::{command_at, new_key},
};
use serde_json::{Value, json};

fn in_seconds(seconds: i64) -> String {
    (Timestamp::now() + SignedDuration::from_secs(seconds)).to_string()
}

fn deposit(services: &Services, id: &str, minor: i64, key: &str, due: &str) -> Request {
    let body = json!({"amount_minor": minor});
    command_at(&services.command, id, "deposit", &body).key(key).header("Millrace-Not-Before", due)
}

fn cancel(services: &Services, id: &str, command_id: &str) -> Request {
    Request::new("DELETE", &format!("{}/v1/bank-accounts/{id}/scheduled/{command_id}", services.command.url()))
}

/// The deposits of an account: command id, and whether it happened when it was due at the earliest.
fn deposits(services: &Services, id: &str) -> Vec<(String, Timestamp)> {
    let events = services.deployment.events(id).into_iter().filter(|event| event.kind == "MoneyDeposited");
    let time = |text: String| text.parse().expect("a time");
    events.map(|event| (event.command_id.clone(), time(event.record.header("ce_time").expect("a time")))).collect()
}

#[test]
fn g01_g02_what_is_scheduled_outlives_a_kill_and_is_decided_once_and_never_early() {
    let deployment = Deployment::new();
    let mut services = Services::start(deployment.clone());
    let id = services.open("Ada");
    let (soon, far) = (in_seconds(3), "2199-01-01T00:00:00Z");
    let answer = deposit(&services, &id, 10, "soon", &soon).send();
    assert_eq!((answer.status, answer.json()["outcome"].as_str()), (202, Some("scheduled")), "{answer:?}");
    assert!(answer.must("location").ends_with(&format!("/v1/bank-accounts/{id}/commands/soon")), "{answer:?}");
    assert_eq!(deposit(&services, &id, 10, "soon", &soon).send().status, 202, "the same again");
    deposit(&services, &id, 11, "soon", &soon).send().problem(422, "idempotency-key-reused");
    assert_eq!(deposit(&services, &id, 20, "far", far).send().status, 202);
    assert_eq!(deposit(&services, &id, 30, "never", far).send().status, 202);
    // From the topic, in whatever partition.
    let producer = Producer::new("consistent_random");
    for number in 0..6 {
        let draft = Draft::new(&id, commands::deposit(1)).header("ce_id", format!("topic-{number}"));
        producer.send(&deployment.topic("commands"), &draft.header("ce_notbefore", &soon));
    }
    assert_eq!(deployment.outcome("topic-5").1["reason"], "scheduled");
    assert_eq!(deposits(&services, &id), []);
    services.command.kill();
    services.command.start_again();
    let waits = |services: &Services| {
        let outcome = services.ask(&format!("/v1/bank-accounts/{id}/commands/far")).send();
        assert_eq!((outcome.status, &outcome.json()["outcome"]), (200, &json!("scheduled")), "{outcome:?}");
    };
    let seven = eventually("deposits that were due", || {
        let all = deposits(&services, &id);
        if all.len() == 7 { Ok(all) } else { Err(format!("{all:?}")) }
    });
    let due: Timestamp = soon.parse().expect("a time");
    // Microseconds are what events tell.
    assert!(seven.iter().all(|(_, time)| time.as_microsecond() >= due.as_microsecond()), "{seven:?}, due {due}");
    waits(&services);
    let listed = services.ask(&format!("/v1/bank-accounts/{id}/scheduled")).send().json();
    let item = |command_id: &str, minor: i64| {
        json!({
            "command_id": command_id, "not_before": "2199-01-01T00:00:00.000000Z",
            "type": "Deposit", "data": {"amount_minor": minor, "reference": null, "channel": null},
        })
    };
    assert_eq!(listed["items"], json!([item("far", 20), item("never", 30)]));
    assert_eq!(services.view_is_the_fold_of_the_log(&id)["balance_minor"], 16);

    // What is cancelled never happens, and says so whenever it is asked about.
    let cancelled = cancel(&services, &id, "never").send();
    assert_eq!((cancelled.status, cancelled.json()["events"].clone()), (200, json!([])), "{cancelled:?}");
    cancel(&services, &id, "never").send().problem(404, "not-scheduled");
    deposit(&services, &id, 30, "never", far).send().problem(422, "cancelled");
    let stored = eventually("outcome of what was cancelled", || {
        let stored = services.ask(&format!("/v1/bank-accounts/{id}/commands/never")).try_send()?.json();
        if stored["outcome"] == "rejected" { Ok(stored) } else { Err(format!("{stored}")) }
    });
    assert!(stored["type"].as_str().is_some_and(|name| name.ends_with("/cancelled")), "{stored}");
    // Sent again without a time, it is decided at once, and is no longer waited for.
    let now = command_at(&services.command, &id, "deposit", &json!({"amount_minor": 20})).key("far").send();
    assert_eq!((now.status, now.header("idempotency-replayed")), (200, None), "{now:?}");
    cancel(&services, &id, "far").send().problem(404, "not-scheduled");
    let listed = services.ask(&format!("/v1/bank-accounts/{id}/scheduled")).send().json();
    assert_eq!(listed, json!({"items": []}));
    assert_eq!(services.view_is_the_fold_of_the_log(&id)["balance_minor"], 36);
    deployment.check_log();
    services.command.kill();
    services.command.start_again();
    assert_eq!(services.command.metric("millrace_scheduled{type=\"bank-account\"}"), 0.0);
}

#[test]
fn g13_times_that_are_none_are_refused() {
    let services = Services::shared();
    let id = services.open("Ada");
    for bad in ["tomorrow", "2027-01-31", "-1"] {
        let problem = deposit(&services, &id, 1, &new_key(), bad).send().problem(400, "malformed-request");
        assert_eq!(problem["errors"][0]["pointer"], Value::from("Millrace-Not-Before"), "{problem}");
    }
    let producer = Producer::new("murmur2_random");
    for (header, value) in [("ce_notbefore", "soon"), ("ce_cancels", "x")] {
        let draft = Draft::new(&id, commands::deposit(1)).header(header, value);
        let place = producer.send(&services.deployment.topic("commands"), &draft);
        eventually("dead letter", || {
            let origin = |letter: &millrace_tests::kafka::Record| letter.header("millrace_origin");
            let letters = services.deployment.read("dead-letters");
            let letter =
                letters.iter().find(|letter| origin(letter).is_some_and(|at| at.ends_with(&place.to_string())));
            letter.map(|_| ()).ok_or_else(|| format!("{letters:?}"))
        });
    }
    // A time that has passed makes nobody wait.
    assert_eq!(deposit(&services, &id, 1, &new_key(), "2001-01-01T00:00:00Z").send().status, 200);
    cancel(&services, &id, "no%20id").send().problem(400, "malformed-request");
    cancel(&services, "no id", "x").try_send().map(|answer| assert_eq!(answer.status, 400)).ok();
}
