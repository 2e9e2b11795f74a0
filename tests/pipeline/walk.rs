//! The shortest way through everything: open, pay in, take out, look.

use millrace_tests::{Services, account, avro::Registry, services::new_id};
use serde_json::{Value, json};

#[test]
fn open_deposit_withdraw_and_rebuild_the_balance_from_the_log_alone() {
    let services = Services::shared();
    let id = new_id();

    let opened = services
        .command(&id, "open", &json!({"owner": "Ada Ångström", "currency": "EUR"}))
        .key("first")
        .header("Millrace-Correlation-Id", "a-story")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .send();
    assert_eq!(opened.status, 201, "{opened:?}");
    let location = opened.must("location").to_owned();
    assert!(location.ends_with(&format!("/v1/bank-accounts/{id}")), "{location}");
    is_accepted(&opened.json(), &id, "first", 1, "AccountOpened");
    assert_eq!(opened.must("etag"), "\"1\"");
    assert_eq!(opened.must("content-type"), "application/json");
    assert_eq!(opened.header("idempotency-replayed"), None);

    let deposited = services
        .command(&id, "deposit", &json!({"amount_minor": 10000, "reference": "salary", "channel": "online"}))
        .key("second")
        .send();
    assert_eq!(deposited.status, 200, "{deposited:?}");
    assert_eq!(deposited.header("location"), None, "{deposited:?}");
    assert_eq!(deposited.must("etag"), "\"2\"");
    is_accepted(&deposited.json(), &id, "second", 2, "MoneyDeposited");

    let withdrawn = services.command(&id, "withdraw", &json!({"amount_minor": 5000})).send();
    assert_eq!(withdrawn.status, 200, "{withdrawn:?}");
    assert_eq!(withdrawn.must("etag"), "\"3\"");
    let made = withdrawn.json()["command_id"].as_str().expect("a command id is made here").to_owned();
    is_accepted(&withdrawn.json(), &id, &made, 3, "MoneyWithdrawn");

    // The log.
    let events = services.deployment.events(&id);
    assert_eq!(
        events.iter().map(|event| (event.kind.as_str(), event.fields.clone())).collect::<Vec<_>>(),
        [
            ("AccountOpened", json!({"owner": "Ada Ångström", "currency": "EUR"})),
            ("MoneyDeposited", json!({"amount_minor": 10000, "reference": "salary", "channel": "online"})),
            ("MoneyWithdrawn", json!({"amount_minor": 5000, "reference": null})),
        ]
    );
    let command_ids = ["first", "second", &made];
    for (event, command_id) in events.iter().zip(command_ids) {
        let mut expected = vec![
            ("content-type", "application/avro".to_owned()),
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", format!("bank-account/{id}/{}", event.sequence)),
            ("ce_source", "/millrace/bank-account".to_owned()),
            ("ce_type", format!("millrace.bank_account.events.{}", event.kind)),
            ("ce_subject", id.clone()),
            ("ce_time", event.time.clone()),
            ("ce_sequence", event.sequence.to_string()),
            ("ce_commandid", command_id.to_owned()),
        ];
        if event.sequence == 1 {
            expected.push(("ce_correlationid", "a-story".to_owned()));
        }
        let mut expected: Vec<_> = expected.into_iter().map(|(name, value)| (name.to_owned(), Some(value))).collect();
        let mut actual: Vec<_> =
            event.record.headers.iter().map(|(n, _)| (n.clone(), event.record.header(n))).collect();
        expected.sort();
        actual.sort();
        let traceparent = actual.iter().position(|(name, _)| name == "traceparent").map(|at| actual.remove(at));
        assert_eq!(actual, expected);
        if event.sequence == 1 {
            let (_, trace) = traceparent.expect("a sampled trace goes on");
            assert!(trace.unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        }
        let time: jiff::Timestamp = event.time.parse().expect("times are RFC 3339");
        assert_eq!(event.time, format!("{time:.6}"), "microseconds in UTC");
        assert_eq!(event.record.partition, services.deployment.partition_of(&id), "the partition of Java's murmur2");
    }

    // The balance, from the log alone.
    let folded = account::fold(&id, &events).expect("it was opened");
    assert_eq!(folded["balance_minor"], 5000);

    // And from the read side.
    let token = withdrawn.token();
    let view = services.view_after(&id, &token);
    assert_eq!(view, folded);
    assert_eq!(view["version"], 3);
    let answer = services.ask(&format!("/v1/bank-accounts/{id}")).send();
    assert_eq!((answer.status, answer.must("etag")), (200, "\"3\""));

    let closed_too_early = services.command(&id, "close", &json!({})).send();
    closed_too_early.problem(422, "balance-not-zero");
    services.withdraw(&id, 5000);
    let closed = services.command(&id, "close", &json!({})).send();
    assert_eq!(closed.status, 200, "{closed:?}");
    let view = services.view_after(&id, &closed.token());
    assert_eq!((&view["status"], &view["balance_minor"], &view["version"]), (&json!("closed"), &json!(0), &json!(5)));
    assert_eq!(Some(view), account::fold(&id, &services.deployment.events(&id)));
}

fn is_accepted(body: &Value, id: &str, command_id: &str, version: u64, event: &str) {
    let mut body = body.clone();
    let token = body.as_object_mut().expect("an object").remove("token").expect("a token");
    assert!(token.as_str().is_some_and(|token| !token.is_empty()));
    assert_eq!(
        body,
        json!({
            "command_id": command_id,
            "outcome": "accepted",
            "aggregate": {"type": "bank-account", "id": id, "version": version},
            "events": [{"sequence": version, "type": event}],
        })
    );
}

#[test]
fn an_id_is_made_for_an_account_opened_without_one() {
    let services = Services::shared();
    let url = format!("{}/v1/bank-accounts", services.command.url());
    let open = || millrace_tests::http::post(&url).json(&json!({"owner": "Basil", "currency": "CHF"}));
    let id_of = |answer: &millrace_tests::http::Answer| {
        let id = answer.json()["aggregate"]["id"].as_str().expect("an id").to_owned();
        assert!(answer.must("location").ends_with(&format!("/v1/bank-accounts/{id}")));
        id.parse::<uuid::Uuid>().expect("a UUID")
    };

    let key = millrace_tests::services::new_key();
    let keyed = open().key(&key).send();
    assert_eq!(keyed.status, 201, "{keyed:?}");
    assert_eq!(id_of(&keyed).get_version_num(), 5);
    let again = open().key(&key).send();
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{again:?}");
    assert_eq!(again.json(), keyed.json());
    assert_eq!(again.must("location"), keyed.must("location"));

    let (one, two) = (open().send(), open().send());
    assert_eq!((id_of(&one).get_version_num(), id_of(&two).get_version_num()), (7, 7));
    assert_ne!(id_of(&one), id_of(&two));
}

#[test]
fn event_subjects_are_named_and_guarded_as_promised() {
    let services = Services::shared();
    let id = services.open("Chidi");
    services.deposit(&id, 1);
    services.withdraw(&id, 1);
    services.accepted(&id, "close", &json!({}));
    let registry = Registry::shared();
    for record in ["AccountOpened", "MoneyDeposited", "MoneyWithdrawn", "AccountClosed"] {
        let topic = services.deployment.topic("events");
        let subject = format!("{topic}-millrace.bank_account.events.{record}");
        let latest = registry.ask(&format!("/subjects/{subject}/versions/latest"));
        let schema: Value = serde_json::from_str(latest["schema"].as_str().expect("a schema")).expect("JSON");
        assert_eq!((&schema["name"], &schema["namespace"]), (&json!(record), &json!("millrace.bank_account.events")));
        let config = registry.ask(&format!("/config/{subject}"));
        assert_eq!(config["compatibilityLevel"], "FULL_TRANSITIVE", "{subject}");
    }
    let global = registry.ask("/config");
    assert_eq!(global["compatibilityLevel"], "NONE", "the global level is none of our business");
}
