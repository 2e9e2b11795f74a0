//! A command id has one outcome, and everybody who asks again gets it.

use std::thread;

use millrace_tests::{
    Deployment, Services,
    services::{command_at, new_id, new_key, open_at},
};
use serde_json::json;

#[test]
fn g05_a_repeat_gets_the_first_answer_again_and_has_no_effect() {
    let services = Services::shared();
    let id = new_id();
    let open = |body: &str| {
        let url = format!("{}/v1/bank-accounts/{id}/open", services.command.url());
        millrace_tests::http::post(&url).raw("application/json", body).key("open").send()
    };
    let first = open(r#"{"owner": "Ada", "currency": "EUR"}"#);
    assert_eq!((first.status, first.header("idempotency-replayed")), (201, None), "{first:?}");
    services.accepted(&id, "deposit", &json!({"amount_minor": 70}));
    // Spelling doesn't count.
    let again = open(r#" {"currency":"EUR", "owner":"\u0041da"} "#);
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{again:?}");
    assert_eq!(again.json(), first.json());
    assert_eq!((again.header("location"), again.header("etag")), (first.header("location"), first.header("etag")));

    let withdraw =
        |key: &str, amount: i64| services.command(&id, "withdraw", &json!({"amount_minor": amount})).key(key).send();
    let paid = withdraw("pay", 50);
    assert_eq!(paid.status, 200, "{paid:?}");
    let absent_is_null = json!({"amount_minor": 50, "reference": null});
    let again = services.command(&id, "withdraw", &absent_is_null).key("pay").send();
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")), "{again:?}");
    assert_eq!(again.json(), paid.json());

    // A refusal is an answer as well, also when the rule would allow it by now.
    let refused = withdraw("much", 30);
    refused.problem(422, "insufficient-funds");
    services.deposit(&id, 1_000);
    let again = withdraw("much", 30);
    assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
    assert_eq!((again.status, again.json()), (422, refused.json()));

    // And so is a version conflict; `If-Match` doesn't count for what a command is.
    let deposit = || services.command(&id, "deposit", &json!({"amount_minor": 5})).key("conflict");
    let conflict = deposit().header("If-Match", "\"1\"").send();
    conflict.problem(412, "version-conflict");
    for again in [deposit().header("If-Match", "\"1\"").send(), deposit().send()] {
        assert_eq!((again.status, again.header("idempotency-replayed")), (412, Some("true")), "{again:?}");
        assert_eq!(again.json(), conflict.json());
    }
    let kinds: Vec<_> = services.deployment.events(&id).into_iter().map(|event| event.command_id).collect();
    assert_eq!(kinds.len(), 4, "{kinds:?}");
}

#[test]
fn g05_the_same_id_with_another_command_is_refused_and_changes_nothing() {
    let services = Services::shared();
    let id = services.open("Basil");
    let first = services.command(&id, "deposit", &json!({"amount_minor": 10})).key("key").send();
    assert_eq!(first.status, 200, "{first:?}");
    for (command, body) in [
        ("deposit", json!({"amount_minor": 11})),
        ("deposit", json!({"amount_minor": 10, "reference": "x"})),
        ("withdraw", json!({"amount_minor": 10})),
        ("open", json!({"owner": "Basil", "currency": "EUR"})),
    ] {
        let problem = services.command(&id, command, &body).key("key").send().problem(422, "idempotency-key-reused");
        assert_eq!(problem["command_id"], "key");
    }
    // The first answer stays what it was.
    let again = services.command(&id, "deposit", &json!({"amount_minor": 10})).key("key").send();
    assert_eq!((again.status, again.json()), (200, first.json()));
    assert_eq!(services.deployment.events(&id).len(), 2);

    // On another account it is another command.
    let other = services.open("Chidi");
    let elsewhere = services.command(&other, "deposit", &json!({"amount_minor": 11})).key("key").send();
    assert_eq!((elsewhere.status, elsewhere.header("idempotency-replayed")), (200, None), "{elsewhere:?}");
    assert_eq!(services.deployment.events(&other).len(), 2);
}

#[test]
fn g02_concurrent_requests_with_one_key_have_one_effect() {
    let services = Services::shared();
    let id = services.open("Dalia");
    for round in 0..5 {
        let deposit = services.command(&id, "deposit", &json!({"amount_minor": 1})).key(&format!("round-{round}"));
        let sent: Vec<_> =
            (0..4).map(|_| deposit.clone()).map(|request| thread::spawn(move || request.send())).collect();
        let answers: Vec<_> = sent.into_iter().map(|thread| thread.join().expect("an answer")).collect();
        for answer in &answers {
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json(), answers[0].json());
        }
        let firsts = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_none()).count();
        assert_eq!(firsts, 1, "{answers:?}");
    }
    let events = services.deployment.events(&id);
    assert_eq!(events.len(), 6);
    millrace_tests::account::fold(&id, &events);
}

#[test]
fn g05_answers_outlive_a_clean_restart() {
    let deployment = Deployment::new();
    let mut service = deployment.command_service("c1");
    let ids: Vec<_> = (0..3).map(|partition| deployment.id_in(partition)).collect();
    let mut first = Vec::new();
    let send = |service: &_, id: &str| {
        let deposit = command_at(service, id, "deposit", &json!({"amount_minor": 100})).key("deposit").send();
        let refused = command_at(service, id, "withdraw", &json!({"amount_minor": 101})).key("refused").send();
        [deposit, refused]
    };
    for id in &ids {
        open_at(&service, id, "Emre");
        first.push(send(&service, id));
    }
    service.terminate();
    service.start_again();
    for (id, first) in ids.iter().zip(&first) {
        for (again, first) in send(&service, id).iter().zip(first) {
            assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
            assert_eq!((again.status, again.json()), (first.status, first.json()));
        }
        // States came back, too.
        let last = command_at(&service, id, "withdraw", &json!({"amount_minor": 100})).key(&new_key()).send();
        assert_eq!((last.status, last.must("etag")), (200, "\"3\""), "{last:?}");
        let events = deployment.events(id);
        assert_eq!(millrace_tests::account::fold(id, &events).expect("it was opened")["balance_minor"], 0);
    }
}
