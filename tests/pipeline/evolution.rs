//! Schemas live for years: what earlier releases wrote is read, and what a later one writes stops nobody else.

use std::collections::{BTreeMap, BTreeSet};

use apache_avro::types::Value as Avro;
use millrace_tests::{
    Deployment, Services, Stack,
    avro::{Registry, encode},
    eventually,
    http::{Request, get, post},
    kafka::{self, Draft, Producer},
    process::{binary, command, free_port, run},
    services::{new_id, new_key, open_at},
    wait::same,
};
use serde_json::{Value, json};

const ACCOUNT: &str = "bank-account";

/// A schema of an event, and its id in the registry.
fn schema(deployment: &Deployment, kind: &str, record: &str, fields: &Value) -> (u32, Value) {
    let schema = json!({"type": "record", "name": record, "namespace": namespace(kind), "fields": fields});
    // Under a subject of its own: ids are what readers go by.
    (Registry::shared().register(&format!("{}-{record}-of-another-release", deployment.prefix), &schema), schema)
}

fn namespace(kind: &str) -> String {
    format!("millrace.{}.events", kind.replace('-', "_"))
}

/// An event as a release of Millrace writes it.
fn event(deployment: &Deployment, kind: &str, id: &str, sequence: u64, record: &str, value: Vec<u8>) -> Draft {
    let now = jiff::Timestamp::now();
    let draft = Draft { timestamp_ms: Some(now.as_millisecond()), ..Draft::new(id, value) };
    draft
        .to(deployment.partition_of(id))
        .header("content-type", "application/avro")
        .header("ce_specversion", "1.0")
        .header("ce_id", format!("{kind}/{id}/{sequence}"))
        .header("ce_source", format!("/millrace/{kind}"))
        .header("ce_type", format!("{}.{record}", namespace(kind)))
        .header("ce_subject", id)
        .header("ce_time", format!("{now:.6}"))
        .header("ce_sequence", sequence.to_string())
        .header("ce_commandid", new_key())
}

fn optional(text: &str) -> Avro {
    Avro::Union(1, Box::new(Avro::String(text.into())))
}

fn reference() -> Value {
    json!({"name": "reference", "type": ["null", "string"], "default": null})
}

#[test]
fn g12_what_earlier_releases_wrote_folds_everywhere() {
    let deployment = Deployment::new();
    let mut first = deployment.command_service("c1");
    let id = deployment.id_in(1);
    open_at(&first, &id, "Ada");
    first.terminate();
    let deposited =
        schema(&deployment, ACCOUNT, "MoneyDeposited", &json!([{"name": "amount_minor", "type": "long"}, reference()]));
    let changed =
        schema(&deployment, ACCOUNT, "BalanceChanged", &json!([{"name": "by_minor", "type": "long"}, reference()]));
    let value = |(schema_id, schema): &(u32, Value), field, minor| {
        encode(*schema_id, schema, vec![(field, Avro::Long(minor)), ("reference", optional("old"))])
    };
    let (producer, topic) = (Producer::new("murmur2_random"), deployment.topic("events"));
    for draft in [
        event(&deployment, ACCOUNT, &id, 2, "MoneyDeposited", value(&deposited, "amount_minor", 100)),
        event(&deployment, ACCOUNT, &id, 3, "BalanceChanged", value(&changed, "by_minor", 50)),
        event(&deployment, ACCOUNT, &id, 4, "BalanceChanged", value(&changed, "by_minor", -30)),
    ] {
        producer.send(&topic, &draft);
    }
    drop(first);

    let services = Services::start(deployment);
    let deployment = &services.deployment;
    // Decisions rest on them.
    let overdraft = services.command(&id, "withdraw", &json!({"amount_minor": 121})).send();
    assert_eq!(overdraft.problem(422, "insufficient-funds")["balance_minor"], 120);
    let paid = services.accepted(&id, "deposit", &json!({"amount_minor": 5, "channel": "card"}));
    assert_eq!(paid.must("etag"), "\"5\"");

    // So do views and what is told of the past.
    assert_eq!(services.view_after(&id, &paid.token())["balance_minor"], 125);
    services.view_is_the_fold_of_the_log(&id);
    let told = json!([
        ["AccountOpened", {"owner": "Ada", "currency": "EUR"}],
        ["MoneyDeposited", {"amount_minor": 100, "reference": "old", "channel": null}],
        ["MoneyDeposited", {"amount_minor": 50, "reference": "old", "channel": null}],
        ["MoneyWithdrawn", {"amount_minor": 30, "reference": "old"}],
        ["MoneyDeposited", {"amount_minor": 5, "reference": null, "channel": "card"}],
    ]);
    let answer = services.ask(&format!("/v1/bank-accounts/{id}/history")).send();
    let items = answer.json()["items"].as_array().cloned().unwrap_or_else(|| panic!("{answer:?}"));
    assert_eq!(Value::from_iter(items.iter().map(|item| json!([item["type"], item["data"]]))), told);
    let then = services.ask(&format!("/v1/bank-accounts/{id}?at_version=3")).send().json();
    assert_eq!(then["balance_minor"], 150);
    let replayed = deployment.run_tool(&["replay", "--aggregate", "bank-account", "--id", &id, "--json"]);
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    let lines = replayed.json_lines();
    assert_eq!(Value::from_iter(lines.iter().map(|line| json!([line["event"], line["data"]]))), told);
    let balances: Vec<_> = lines.iter().map(|line| &line["state"]["balance_minor"]).collect();
    assert_eq!(balances, [0, 100, 150, 120, 125]);
    let exported = deployment.run_tool(&["export", "--id", &id]).json_lines();
    assert_eq!(Value::from_iter(exported.iter().map(|line| json!([line["event"], line["data"]]))), told);

    // The records are as an earlier release has written them; only their outcomes were not planted.
    let checked = deployment.run_log_check(&[]);
    let about_outcomes = |line: &str| line.starts_with("event-without-outcome") || line.starts_with("outcome-version");
    let others: Vec<_> = checked.output.lines().filter(|line| line.contains(&id) && !about_outcomes(line)).collect();
    assert_eq!(others, [""; 0], "{checked:?}");
    deployment.verify_all();
}

#[test]
fn g12_g14_names_of_one_field_are_split_and_forgotten_like_any_other() {
    const USER: &str = "user";
    let id = new_id();
    // What an earlier release has encrypted, another deployment encrypts: under the same key, which then lies in both.
    let elsewhere = Deployment::new();
    let service = elsewhere.command_service("c1");
    let names = json!({"given_name": "Augusta  Ada King", "family_name": " Grace Hopper ", "email": "ada@example.org"});
    let registered = post(&format!("{}/v1/users/{id}/register", service.url())).json(&names).send();
    assert_eq!(registered.status, 201, "{registered:?}");
    let only = |suffix: &str| {
        let all = kafka::read(&elsewhere.topic_of(USER, suffix), None);
        let mut of_id = all.into_iter().filter(|record| record.key.as_deref() == Some(id.as_bytes()));
        of_id.next().and_then(|record| record.value).unwrap_or_else(|| panic!("{suffix} has nothing of {id}"))
    };
    let (key, mut sealed) = (only("keys"), BTreeMap::new());
    Registry::shared().rewrite(&only("events"), |name, value| drop(sealed.insert(name.to_owned(), value.clone())));
    drop(service);

    // Whose partition has handled a command: a log without any answers is none that we wrote.
    let deployment = Deployment::new();
    let mut first = deployment.command_service("c1");
    let neighbour = deployment.id_in(deployment.partition_of(&id));
    let erased = post(&format!("{}/v1/users/{neighbour}/erase", first.url())).json(&json!({})).send();
    assert_eq!(erased.status, 422, "{erased:?}");
    first.terminate();
    let bytes = |name: &str| json!({"name": name, "type": "bytes"});
    let fields = json!([bytes("name"), bytes("email"), bytes("address")]);
    let enrolled = schema(&deployment, USER, "UserEnrolled", &fields);
    let renamed = schema(&deployment, USER, "UserRenamed", &json!([bytes("name")]));
    let value = |(schema_id, schema): &(u32, Value), fields: &[(&'static str, &str)]| {
        encode(*schema_id, schema, fields.iter().map(|(field, from)| (*field, sealed[*from].clone())).collect())
    };
    let enrolment = [("name", "given_name"), ("email", "email"), ("address", "address")];
    let producer = Producer::new("murmur2_random");
    producer.send(&deployment.topic_of(USER, "keys"), &Draft::new(&id, key));
    for draft in [
        event(&deployment, USER, &id, 1, "UserEnrolled", value(&enrolled, &enrolment)),
        event(&deployment, USER, &id, 2, "UserRenamed", value(&renamed, &[("name", "family_name")])),
    ] {
        producer.send(&deployment.topic_of(USER, "events"), &draft);
    }
    drop(first);

    let services = Services::start(deployment);
    let view = |at: &str| services.ask(&format!("/v1/users/{id}?wait_ms=30000&{at}")).send().json();
    let name = |view: &Value| json!([view["given_name"], view["family_name"], view["email"]]);
    let change = |command: &str, body: &Value| {
        let answer = post(&format!("{}/v1/users/{id}/{command}", services.command.url())).json(body).send();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.token()
    };
    let token = change("change-name", &json!({"given_name": "Ada", "family_name": "Byron"}));
    assert_eq!(name(&view(&format!("after={token}"))), json!(["Ada", "Byron", "ada@example.org"]));
    assert_eq!(name(&view("at_version=1")), json!(["Augusta  Ada", "King", "ada@example.org"]));
    assert_eq!(name(&view("at_version=2")), json!(["Grace", "Hopper", "ada@example.org"]));
    let history = || {
        let items = services.ask(&format!("/v1/users/{id}/history")).send().json()["items"].clone();
        let told = |item: &Value| json!([item["type"], item["data"]["given_name"], item["data"]["family_name"]]);
        Value::from_iter(items.as_array().expect("a list").iter().map(told))
    };
    let (enrolled, renamed) =
        (json!(["UserRegistered", "Augusta  Ada", "King"]), json!(["NameChanged", "Grace", "Hopper"]));
    assert_eq!(history(), json!([enrolled, renamed, ["NameChanged", "Ada", "Byron"]]));
    services.deployment.verify_all();

    let token = change("erase", &json!({}));
    assert_eq!(name(&view(&format!("after={token}"))), json!([null, null, null]));
    let nameless = |kind: &str| json!([kind, null, null]);
    let erased = ["UserRegistered", "NameChanged", "NameChanged", "UserErased"].map(nameless);
    assert_eq!(history(), json!(erased));
    services.deployment.verify_all();
}

#[test]
fn g12_g13_events_of_a_later_release_stop_their_accounts_and_nothing_else() {
    let services = Services::start(Deployment::new().with("MILLRACE_DATA_DIR", "none"));
    let (deployment, mut command) = (services.deployment.clone(), services.command);
    let [frozen, coloured, other] = [0; 3].map(|_| deployment.id_in(2));
    for id in [&frozen, &coloured, &other] {
        open_at(&command, id, "Ada");
    }
    command.terminate();
    let unknown = schema(&deployment, ACCOUNT, "AccountFrozen", &json!([{"name": "why", "type": "string"}]));
    let unknown = encode(unknown.0, &unknown.1, vec![("why", Avro::String("a court".into()))]);
    let colour = json!({"name": "colour", "type": "string", "default": "none"});
    let newer = json!([{"name": "amount_minor", "type": "long"}, reference(), colour]);
    let newer = schema(&deployment, ACCOUNT, "MoneyDeposited", &newer);
    let fields =
        vec![("amount_minor", Avro::Long(7)), ("reference", optional("x")), ("colour", Avro::String("red".into()))];
    let newer = encode(newer.0, &newer.1, fields);
    let (producer, topic) = (Producer::new("murmur2_random"), deployment.topic("events"));
    producer.send(&topic, &event(&deployment, ACCOUNT, &frozen, 2, "AccountFrozen", unknown));
    producer.send(&topic, &event(&deployment, ACCOUNT, &coloured, 2, "MoneyDeposited", newer));
    command.start_again();

    let deposit = |id: &str| millrace_tests::services::command_at(&command, id, "deposit", &json!({"amount_minor": 1}));
    for (id, says) in [
        (&frozen, "millrace.bank_account.events.AccountFrozen is no record that this release knows"),
        (&coloured, "millrace.bank_account.events.MoneyDeposited in a version that this release does not know"),
    ] {
        let problem = deposit(id).send().problem(503, "unavailable");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{problem}");
    }
    let paid = deposit(&other).send();
    assert_eq!(paid.status, 200, "{paid:?}");

    // Views take a later version by Avro's rules, and what can't be understood at all waits.
    let ask = |path: &str| get(&format!("{}{path}", services.query.url())).send();
    let answer = ask(&format!("/v1/bank-accounts/{other}?after={}&wait_ms=30000", paid.token()));
    assert_eq!(answer.json()["balance_minor"], 1, "{answer:?}");
    eventually("view with the later version", || {
        same(&ask(&format!("/v1/bank-accounts/{coloured}")).json()["balance_minor"], &json!(7))
    });
    let parked = ask(&format!("/v1/bank-accounts/{frozen}"));
    assert_eq!((parked.must("millrace-parked"), &parked.json()["version"]), ("true", &json!(1)));
    let listed = deployment.run_projector_tool(&["parked", "list", "--json"]).json_lines();
    let reasons: BTreeSet<_> = listed.iter().map(|line| (line["id"].as_str(), line["reason"].as_str())).collect();
    let reason = "millrace.bank_account.events.AccountFrozen is no record that this release knows";
    assert_eq!(reasons, [(Some(frozen.as_str()), Some(reason))].into());
    services.projector.ready().expect("one account is parked, nothing else");
}

#[test]
fn g12_a_registry_that_holds_what_does_not_fit_is_refused_at_start() {
    /// What command-service says at its end.
    fn refused(deployment: &Deployment) -> String {
        let mut program = command(binary("command-service"));
        let address = || format!("127.0.0.1:{}", free_port());
        program.env("MILLRACE_HTTP_ADDR", address()).env("MILLRACE_OPS_ADDR", address());
        program.env("MILLRACE_INSTANCE_ID", "refused").env("MILLRACE_DATA_DIR", "none").envs(&deployment.env);
        let output = run(program, std::time::Duration::from_secs(60));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        text
    }
    let registry = Registry::shared();
    let subject =
        |deployment: &Deployment| format!("{}-millrace.bank_account.events.MoneyDeposited", deployment.topic("events"));
    let amount = |fits: &str| {
        json!({
            "type": "record", "name": "MoneyDeposited", "namespace": "millrace.bank_account.events",
            "fields": [{"name": "amount_minor", "type": fits}, reference()],
        })
    };
    // Somebody else's schema was there first.
    let fresh = Deployment::new();
    registry.register(&subject(&fresh), &amount("string"));
    let said = refused(&fresh);
    for part in
        [&subject(&fresh), "our version 1 against version 1", "field \"amount_minor\" was changed from", "\"long\""]
    {
        assert!(said.contains(part) || said.contains(&part.replace('"', "\\\"")), "{part} is not in {said}");
    }

    // Ours were there first, and then somebody had the registry take anything.
    let used = Deployment::new();
    used.command_service("c1").terminate();
    let config = format!("{}/config/{}", Stack::shared().registry, subject(&used));
    let answer = Request::new("PUT", &config).json(&json!({"compatibility": "NONE"})).send();
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut more = amount("long");
    more["fields"].as_array_mut().expect("fields").push(json!({"name": "fee", "type": "long"}));
    registry.register(&subject(&used), &more);
    let said = refused(&used);
    for part in ["our version 1 against version 3", "field \"fee\""] {
        assert!(said.contains(part) || said.contains(&part.replace('"', "\\\"")), "{part} is not in {said}");
    }
}
