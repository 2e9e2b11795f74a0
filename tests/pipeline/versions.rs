//! A command may name the version that it expects.

use millrace_tests::{
    Services, commands,
    kafka::{Draft, Producer},
    services::{new_id, new_key},
};
use serde_json::{Value, json};

#[test]
fn g06_another_version_is_refused_with_the_actual_one_and_no_effect() {
    let services = Services::shared();
    let id = new_id();
    let open = json!({"owner": "Ada", "currency": "EUR"});
    let deposit = json!({"amount_minor": 100});

    // It must not exist yet.
    let opened = services.command(&id, "open", &open).header("If-Match", "\"0\"").send();
    assert_eq!(opened.status, 201, "{opened:?}");
    // Judged before the rules: not `account-already-open`.
    let problem = services.command(&id, "open", &open).header("If-Match", "\"0\"").send();
    let problem = problem.problem(412, "version-conflict");
    assert_eq!(problem["actual_version"], 1);
    assert_eq!(problem["aggregate"], json!({"type": "bank-account", "id": id, "version": 1}));

    let second = services.command(&id, "deposit", &deposit).header("If-Match", opened.must("etag")).send();
    assert_eq!((second.status, second.must("etag")), (200, "\"2\""), "{second:?}");
    for wrong in ["\"0\"", "\"1\"", "\"3\"", "\"18446744073709551615\""] {
        let problem = services.command(&id, "deposit", &deposit).header("If-Match", wrong).send();
        assert_eq!(problem.problem(412, "version-conflict")["actual_version"], 2, "{wrong}");
    }
    let overdraft = services.command(&id, "withdraw", &json!({"amount_minor": 101})).header("If-Match", "\"2\"").send();
    overdraft.problem(422, "insufficient-funds");

    let missing = services.command(&new_id(), "deposit", &deposit).header("If-Match", "\"1\"").send();
    assert_eq!(missing.problem(412, "version-conflict")["actual_version"], 0);
    assert_eq!(services.deployment.events(&id).len(), 2);
}

#[test]
fn g06_commands_from_the_topic_may_expect_a_version() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let id = services.open("Basil");
    let producer = Producer::new("murmur2_random");
    let send = |version: &str| {
        let key = new_key();
        let draft = Draft::new(&id, commands::deposit(5)).header("ce_id", &key).header("ce_expectedversion", version);
        producer.send(&deployment.topic("commands"), &draft);
        deployment.outcome(&key).1
    };
    let accepted = send("1");
    assert_eq!((&accepted["outcome"], &accepted["version"]), (&json!("accepted"), &json!(2)), "{accepted}");
    let rejected = send("1");
    assert_eq!((&rejected["outcome"], &rejected["reason"]), (&json!("rejected"), &json!("version-conflict")));
    let detail: Value = serde_json::from_str(rejected["detail"].as_str().expect("figures")).expect("JSON");
    assert_eq!(detail["actual_version"], 2);
    assert_eq!((&rejected["version"], &rejected["events"]), (&json!(2), &json!([])));
    assert_eq!(deployment.events(&id).len(), 2);
}
