//! Commands that wait until they are due.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use jiff::{SignedDuration, Timestamp};
use millrace_tests::{
    Deployment, Services, commands, eventually,
    http::{Request, post},
    kafka::{Draft, Producer},
    services::{command_at, new_id, new_key},
    wait::same,
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

/// Waits until the service says that so many commands and deadlines of a type wait.
#[track_caller]
fn waits(services: &Services, aggregate_type: &str, expected: f64) {
    let name = format!("millrace_scheduled{{type=\"{aggregate_type}\"}}");
    eventually(&name, || match services.command.metric(&name) {
        count if count == expected => Ok(()),
        count => Err(format!("{count}")),
    });
}

/// The deposits of an account: command id, and when it happened.
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
    // Until then everything is to be sent, also by a machine that hangs for some seconds.
    let (soon, far) = (in_seconds(12), "2199-01-01T00:00:00Z");
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
    let seven = eventually("deposits that were due", || {
        let all = deposits(&services, &id);
        if all.len() == 7 { Ok(all) } else { Err(format!("{all:?}")) }
    });
    let due: Timestamp = soon.parse().expect("a time");
    // Microseconds are what events tell.
    assert!(seven.iter().all(|(_, time)| time.as_microsecond() >= due.as_microsecond()), "{seven:?}, due {due}");
    eventually("outcome of what waits", || {
        let outcome = services.ask(&format!("/v1/bank-accounts/{id}/commands/far")).try_send()?;
        let waits = outcome.status == 200 && outcome.json()["outcome"] == "scheduled";
        if waits { Ok(()) } else { Err(format!("{outcome:?}")) }
    });
    let lists = |services: &Services, expected: Value| {
        eventually("list of what waits", || {
            let listed = services.ask(&format!("/v1/bank-accounts/{id}/scheduled")).try_send()?.json();
            same(&listed, &json!({"items": expected, "complete": true}))
        });
    };
    let item = |command_id: &str, minor: i64| {
        json!({
            "command_id": command_id, "not_before": "2199-01-01T00:00:00.000000Z",
            "type": "Deposit", "data": {"amount_minor": minor, "reference": null, "channel": null},
        })
    };
    lists(&services, json!([item("far", 20), item("never", 30)]));
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
    lists(&services, json!([]));
    assert_eq!(services.view_is_the_fold_of_the_log(&id)["balance_minor"], 36);
    assert_eq!(deposit(&services, &id, 50, "last", far).send().status, 202);
    deployment.check_log();
    services.command.kill();
    services.command.start_again();
    waits(&services, "bank-account", 1.0);
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
    cancel(&services, "no%20id", "x").send().problem(400, "malformed-request");
}

#[test]
fn g02_g11_a_standing_order_pays_when_it_is_due_and_no_more_once_it_is_cancelled() {
    let services = Services::start(Deployment::new());
    let (from, to) = (services.open("Ada"), services.open("Grace"));
    services.deposit(&from, 100);
    let place = |id: &str, every: &str, first_at: &str| {
        let body = json!({
            "from": from, "to": to, "amount_minor": 40, "currency": "EUR", "reference": "rent", "every": every,
            "first_at": first_at,
        });
        millrace_tests::http::post(&format!("{}/v1/standing-orders/{id}/place", services.command.url())).json(&body)
    };
    place("late", "day", "2020-01-01T00:00:00Z").send().problem(422, "first-in-the-past");
    // It is to be placed by then, also by a machine that hangs for some seconds.
    let (soon, later) = (in_seconds(8), in_seconds(3600));
    for (id, first_at) in [("rent", &soon), ("gym", &later)] {
        let placed = place(id, "month", first_at).send();
        assert_eq!(placed.status, 201, "{placed:?}");
    }
    let cancelled = millrace_tests::http::post(&format!("{}/v1/standing-orders/gym/cancel", services.command.url()));
    assert_eq!(cancelled.json(&json!({})).send().status, 200);
    let view = eventually("order that was executed", || {
        let view = services.ask("/v1/standing-orders/rent").try_send()?.json();
        if view["executed"] == 1 { Ok(view) } else { Err(format!("{view}")) }
    });
    let next: Timestamp = view["next_at"].as_str().expect("a time").parse().expect("a time");
    assert!(next > Timestamp::now() + SignedDuration::from_hours(24 * 27), "{view}");
    let transfer = eventually("its transfer", || {
        let path = format!("/v1/transfers/{}?until=final&wait_ms=1000", view["last_transfer"].as_str().expect("an id"));
        let transfer = services.ask(&path).try_send()?.json();
        if transfer["status"] == "completed" { Ok(transfer) } else { Err(format!("{transfer}")) }
    });
    assert_eq!((&transfer["amount_minor"], &transfer["reference"]), (&json!(40), &json!("rent")), "{transfer}");
    assert_eq!(services.view_is_the_fold_of_the_log(&to)["balance_minor"], 40);
    eventually("order that was cancelled", || {
        let gym = services.ask("/v1/standing-orders/gym").try_send()?.json();
        same(&(&gym["status"], &gym["executed"], &gym["next_at"]), &(&json!("cancelled"), &json!(0), &Value::Null))
    });
    // Nobody can take its deadline from an order. The next one of the rent is all that waits.
    let deadline =
        format!("{}/v1/standing-orders/rent/scheduled/standing-order%2Frent%2Fexecute", services.command.url());
    Request::new("DELETE", &deadline).send().problem(404, "not-scheduled");
    waits(&services, "standing-order", 1.0);
    services.deployment.check_log();
    services.deployment.verify_all();
}

#[test]
fn g01_g02_what_waits_is_accounted_for_while_it_comes_and_goes() {
    let services = Services::start(Deployment::new());
    let over = AtomicBool::new(false);
    let user = |id: &str, command: &str, body: Value| {
        post(&format!("{}/v1/users/{id}/{command}", services.command.url())).json(&body).key(&new_key())
    };
    let far = "2199-01-01T00:00:00Z";
    let soon = || (Timestamp::now() + SignedDuration::from_millis(300)).to_string();
    thread::scope(|scope| {
        let coming = scope.spawn(|| {
            let account = services.open("Ada");
            for number in (0..).take_while(|_| !over.load(Relaxed)) {
                let (id, name) = (new_id(), json!({"given_name": "Ada", "family_name": "King"}));
                let key = |kind: &str| format!("{kind}-{number}");
                let email = format!("{id}@example.org");
                let mut told = vec![
                    deposit(&services, &account, 1, &key("soon"), &soon()),
                    deposit(&services, &account, 1, &key("again"), far),
                    deposit(&services, &account, 1, &key("cancelled"), far),
                    user(&id, "register", json!({"given_name": "A", "family_name": "K", "email": email})),
                    user(&id, "change-name", name.clone()).header("Millrace-Not-Before", soon()),
                    user(&id, "change-name", name).header("Millrace-Not-Before", far),
                    cancel(&services, &account, &key("cancelled")),
                    command_at(&services.command, &account, "deposit", &json!({"amount_minor": 1})).key(&key("again")),
                ];
                if number % 2 == 0 {
                    told.push(user(&id, "erase", json!({})));
                }
                for request in told {
                    let answer = request.send();
                    assert!([200, 201, 202].contains(&answer.status), "{answer:?}");
                }
            }
        });
        let checked = catch_unwind(AssertUnwindSafe(|| (0..6).for_each(|_| services.deployment.check_log())));
        // Nobody would end otherwise.
        over.store(true, Relaxed);
        checked.unwrap_or_else(|panic| resume_unwind(panic));
        coming.join().expect("commands are let in");
    });
    services.deployment.check_log();
}
