//! The past of an aggregate with a long history: what is kept is told right, and what is not is told to be gone.

use jiff::Timestamp;
use millrace_tests::{
    Deployment, Services,
    account::{Event, fold},
    commands,
    http::Answer,
    kafka::{Draft, Producer},
    services::open_at,
    wait::same,
};
use serde_json::{Value, json};

/// Asks for the whole past of an account of which `kept` events are kept.
#[track_caller]
fn the_past_is_right(services: &Services, id: &str, kept: usize) {
    let events = services.deployment.events(id);
    let (last, since) = (events.len(), events.len() - kept);
    let ask = |and: &str| services.ask(&format!("/v1/bank-accounts/{id}{and}")).send();
    let state = |version: usize| fold(id, &events[..version]).expect("it was opened");
    let kept_since = json!({"version": since, "time": events[since - 1].time});
    let gone = |answer: Answer| assert_eq!(answer.problem(410, "history-trimmed")["kept_since"], kept_since);
    for version in 1..=last {
        let answer = ask(&format!("?at_version={version}"));
        if version < since {
            gone(answer);
        } else {
            assert_eq!((answer.status, answer.json()), (200, state(version)), "version {version}");
        }
    }
    ask("?at_version=0").problem(404, "not-found");
    ask(&format!("?at_version={}", last + 1)).problem(404, "not-found");

    let time = |event: &Event| event.time.parse::<Timestamp>().expect("RFC 3339");
    for event in &events {
        let answer = ask(&format!("?as_of={}", event.time));
        if time(event) < time(&events[since - 1]) {
            gone(answer);
        } else {
            let then = events.iter().rposition(|of| time(of) <= time(event)).expect("itself") + 1;
            assert_eq!((answer.status, answer.json()), (200, state(then)), "as of {}", event.time);
        }
    }
    let before = time(&events[0]) - jiff::Span::new().microseconds(1);
    ask(&format!("?as_of={before:.6}")).problem(404, "not-found");

    gone(ask("/history"));
    gone(ask(&format!("/history?after_sequence={}", since - 1)));
    let (mut items, mut next) =
        (Vec::new(), json!(format!("/v1/bank-accounts/{id}/history?after_sequence={since}&limit=7")));
    while let Value::String(path) = next {
        let page = services.ask(&path).send().json();
        items.extend(page["items"].as_array().expect("items").clone());
        next = page["next"].clone();
    }
    let told: Vec<_> = items.iter().map(|item| (item["sequence"].clone(), item["state"].clone())).collect();
    let expected: Vec<_> = (since + 1..=last).map(|version| (json!(version), state(version))).collect();
    assert_eq!(told, expected);
}

#[track_caller]
fn kept(services: &Services, id: &str) -> usize {
    let partition = services.deployment.partition_of(id);
    services.deployment.redis().run("LLEN", &[&services.deployment.view_key(partition, &format!("history:{id}"))])
}

#[test]
fn g16_a_long_history_is_trimmed_and_what_is_kept_stays_right() {
    let mut services = Services::start(Deployment::new().with("MILLRACE_HISTORY_MAX_ENTRIES", "20"));
    let (topic, partitions) = (services.deployment.topic("commands"), services.deployment.partitions);
    let ids: Vec<_> = (0..partitions).map(|partition| services.deployment.id_in(partition)).collect();
    let [slow, fast, short] = &ids[..] else { panic!("there are three partitions") };
    for id in &ids {
        open_at(&services.command, id, "Ada");
    }
    for amount in 1..=45 {
        services.deposit(slow, amount);
    }
    let token = services.withdraw(slow, 7).token();
    services.view_after(slow, &token);
    // Of 47 events the 46th was the last at which that was due; one more is kept, unless both came in one batch.
    let of_slow = kept(&services, slow);
    assert!((20..=21).contains(&of_slow), "{of_slow}");
    the_past_is_right(&services, slow, of_slow);

    // More in one batch than are kept, with another limit on top.
    services.projector.terminate();
    let producer = Producer::new("murmur2_random");
    for amount in 1..=99 {
        producer.send(&topic, &Draft::new(fast, commands::deposit(amount)));
    }
    millrace_tests::eventually("events of all commands", || same(&services.deployment.events(fast).len(), &100));
    services.projector.start_again();
    services.view_is_the_fold_of_the_log(fast);
    assert_eq!(kept(&services, fast), 20);
    the_past_is_right(&services, fast, 20);
    services.view_is_the_fold_of_the_log(slow);
    let token = services.deposit(short, 1).token();
    services.view_after(short, &token);
    let whole = services.ask(&format!("/v1/bank-accounts/{short}/history")).send().json();
    assert_eq!(whole["items"].as_array().map(Vec::len), Some(2), "a short one is whole");

    // A trimmed history is verified, too, and mended: a base that says the wrong thing, and one beyond all events.
    let deployment = &services.deployment;
    deployment.verify_all();
    let verified = deployment.run_verify(&[]);
    let again = verified.errors.lines().find(|line| line.contains("looked at again"));
    assert!(again.is_some_and(|line| line.ends_with(" 0")), "it is read once: {}", verified.errors);
    for (id, field, value) in [(slow, "balance_minor", 1), (fast, "version", 9_999)] {
        let key = deployment.view_key(deployment.partition_of(id), &format!("base:{id}"));
        let base: String = deployment.redis().run("GET", &[&key]);
        let mut base: Value = serde_json::from_str(&base).expect("it is JSON");
        base["view"][field] = json!(value);
        deployment.redis().run::<()>("SET", &[&key, &base.to_string()]);
    }
    let repaired = deployment.run_verify(&["--repair"]);
    assert_eq!(repaired.code, Some(0), "{}\n{}", repaired.output, repaired.errors);
    for (id, kind, field) in [(slow, "different", Some("view")), (fast, "extra", None)] {
        let place = (Some(id.clone()), kind.to_owned(), format!("base:{id}"), field.map(str::to_owned));
        assert!(repaired.differences().contains(&place), "{}", repaired.output);
    }
    deployment.verify_all();
    assert_eq!((kept(&services, slow), kept(&services, fast)), (of_slow, 100));
    the_past_is_right(&services, slow, of_slow);
}
