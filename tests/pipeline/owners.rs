//! The projection `owners`: by another key than the aggregate, beside the one of accounts, and independent of it.

use millrace_tests::{
    Deployment, Services, eventually,
    http::Answer,
    kafka::{Draft, Producer},
};
use serde_json::{Value, json};

fn owner_after(services: &Services, owner: &str, token: &str) -> Answer {
    services.ask(&format!("/v1/owners/{owner}?after={token}&wait_ms=20000&stale=error")).send()
}

#[track_caller]
fn owns(services: &Services, owner: &str, token: &str, open: i64, closed: i64, balance: i64) {
    let answer = owner_after(services, owner, token);
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = json!({
        "owner": owner, "accounts": {"open": open, "closed": closed}, "currencies": {"EUR": {"balance_minor": balance}},
    });
    assert_eq!(answer.json(), expected);
}

/// What `/v1/projections` says of a projection.
fn shown(services: &Services, name: &str) -> Value {
    let all = services.ask("/v1/projections").send().json();
    let all = all["projections"].as_array().expect("a list");
    all.iter().find(|projection| projection["name"] == name).expect("it is listed").clone()
}

#[test]
fn g08_an_owners_accounts_are_added_up_over_all_partitions() {
    let services = Services::shared();
    let owner = millrace_tests::services::new_id();
    let ids: Vec<String> = (0..services.deployment.partitions)
        .map(|partition| {
            let id = services.deployment.id_in(partition);
            millrace_tests::services::open_at(&services.command, &id, &owner);
            id
        })
        .collect();
    let mut token = String::new();
    for (id, amount) in ids.iter().zip([10, 200, 3_000]) {
        token = services.deposit(id, amount).token();
        owner_after(&services, &owner, &token);
    }
    owns(&services, &owner, &token, 3, 0, 3_210);
    let token = services.withdraw(&ids[0], 10).token();
    owns(&services, &owner, &token, 3, 0, 3_200);
    let token = services.accepted(&ids[0], "close", &json!({})).token();
    owns(&services, &owner, &token, 2, 1, 3_200);
    services.ask("/v1/owners/nobody-of-that-name").send().problem(404, "not-found");
    services.ask(&format!("/v1/owners/{}", "x".repeat(201))).send().problem(400, "malformed-request");
}

#[test]
fn g07_a_projection_that_is_parked_stopped_or_rebuilt_holds_up_no_other() {
    let services = Services::start(Deployment::new());
    let deployment = &services.deployment;
    let mut redis = deployment.redis();
    let key =
        |id: &str, kind: &str| format!("{{{}.owners.v1:{}}}:{kind}", deployment.prefix, deployment.partition_of(id));
    let (parked, stopped) = (deployment.id_in(0), deployment.id_in(1));
    for (id, owner) in [(&parked, "Ada"), (&stopped, "Grace")] {
        millrace_tests::services::open_at(&services.command, id, owner);
        let token = services.deposit(id, 5).token();
        owns(&services, owner, &token, 1, 0, 5);
    }

    // What is known of one account is spoiled: its events wait, in this projection alone.
    let right: String = redis.run("HGET", &[key(&parked, "members"), parked.clone()]);
    redis.run::<()>("HSET", &[key(&parked, "members"), parked.clone(), "spoiled".into()]);
    let token = services.deposit(&parked, 1).token();
    let view = services.view_after(&parked, &token);
    assert_eq!(view["balance_minor"], 6);
    eventually("parked account", || match shown(&services, "owners")["parked"].as_array() {
        Some(waiting) if waiting.iter().any(|one| one["id"] == *parked) => Ok(()),
        waiting => Err(format!("{waiting:?}")),
    });
    assert_eq!(shown(&services, "bank-accounts")["parked"], json!([]));
    redis.run::<()>("HSET", &[key(&parked, "members"), parked.clone(), right]);
    let waiting = owner_after_at_once(&services, "Ada", &token);
    assert_eq!((waiting.header("millrace-parked"), waiting.header("millrace-stale")), (Some("true"), Some("true")));
    let ran = deployment.run_projector_tool(&["parked", "replay", "owners", "--id", &parked]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.output, ran.errors);
    owns(&services, "Ada", &token, 1, 0, 6);

    // A partition of it stops altogether.
    redis.run::<()>("HSET", &[key(&stopped, "meta"), "topic_id".into(), "another".into()]);
    let token = services.deposit(&stopped, 1).token();
    assert_eq!(services.view_after(&stopped, &token)["balance_minor"], 6);
    eventually("word of the stop", || match services.projector.ready() {
        Err(reason) if reason.contains("owners.v1") && reason.contains("another") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(owner_after_at_once(&services, "Grace", &token).header("millrace-stale"), Some("true"));

    // It is built anew, from the log alone, and is right again.
    let ran = deployment.run_projector_tool(&["rebuild", "owners"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.output, ran.errors);
    eventually("version 2 of owners", || match shown(&services, "owners")["version"] {
        ref version if *version == 2 => Ok(()),
        ref version => Err(version.to_string()),
    });
    for (id, owner) in [(&parked, "Ada"), (&stopped, "Grace")] {
        let token = services.deposit(id, 1).token();
        owns(&services, owner, &token, 1, 0, 7);
        assert_eq!(services.view_after(id, &token)["balance_minor"], 7);
    }
    assert_eq!(shown(&services, "bank-accounts")["version"], 1, "the other one is as it was");
    let ran = deployment.run_projector_tool(&["rebuild", "owners", "--drop-old"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.output, ran.errors);
    let left: Vec<String> = redis.run("KEYS", &[format!("{{{}.owners.v1:*", deployment.prefix)]);
    assert_eq!(left, [""; 0]);
    eventually("projector without trouble", || services.projector.ready());
}

fn owner_after_at_once(services: &Services, owner: &str, token: &str) -> Answer {
    services.ask(&format!("/v1/owners/{owner}?after={token}&wait_ms=0")).send()
}

#[test]
fn g07_verify_finds_what_is_wrong_with_owners() {
    let services = Services::start(Deployment::new());
    let deployment = &services.deployment;
    let ids: Vec<String> = (0..4).map(|_| deployment.id_in(0)).collect();
    let mut token = String::new();
    for (id, owner) in ids.iter().zip(["Ada", "Ada", "Grace", "Edsger"]) {
        millrace_tests::services::open_at(&services.command, id, owner);
        token = services.deposit(id, 100).token();
    }
    // What can't be read waits, and is no difference.
    let waiting = deployment.id_in(1);
    millrace_tests::services::open_at(&services.command, &waiting, "Barbara");
    let garbage = Draft::new(&waiting, b"garbage".to_vec()).to(1);
    Producer::new("murmur2_random").send(&deployment.topic("events"), &garbage);
    let key = |kind: &str| format!("{{{}.owners.v1:0}}:{kind}", deployment.prefix);
    let mut redis = deployment.redis();
    let parked = format!("{{{}.owners.v1:1}}:parked", deployment.prefix);
    eventually("an account that is parked", || match redis.run::<u64>("HLEN", &[&parked]) {
        1 => Ok(()),
        other => Err(format!("{other} are")),
    });
    assert_eq!(owner_after(&services, "Edsger", &token).status, 200);
    let verify = || deployment.run_projector_tool(&["verify", "owners"]);
    let clean = verify();
    assert_eq!((clean.code, clean.output.as_str()), (Some(0), ""), "{}", clean.errors);

    let mut spoil = |name: &str, words: &[&str]| redis.run::<redis::Value>(name, words);
    // A doubled amount, an event that was skipped, and what was lost or came from nowhere.
    spoil("HSET", &[&key("parts"), "Ada", r#"{"open":2,"closed":0,"balances_minor":{"EUR":300}}"#]);
    spoil("HSET", &[&key("members"), &ids[0], r#"{"sequence":1,"member":{"owner":"Ada","currency":"EUR"}}"#]);
    spoil("HDEL", &[&key("members"), &ids[2]]);
    spoil("HSET", &[&key("parts"), "Nobody", r#"{"open":1,"closed":0,"balances_minor":{}}"#]);
    spoil("DEL", &[&parked]);
    let found = verify();
    assert_eq!(found.code, Some(1), "{}", found.errors);
    let place = |id: Option<&str>, kind: &str, key: &str, field: &str| {
        (id.map(str::to_owned), kind.to_owned(), key.to_owned(), Some(field.to_owned()))
    };
    let expected = [
        place(None, "different", "parts", "Ada"),
        place(Some(&ids[0]), "different", "members", &ids[0]),
        place(Some(&ids[2]), "missing", "members", &ids[2]),
        place(None, "extra", "parts", "Nobody"),
        place(Some(&waiting), "missing", "parked", &waiting),
    ];
    assert_eq!(found.differences(), expected.into_iter().collect(), "{}", found.output);
    assert_eq!(deployment.run_projector_tool(&["verify", "owners", "--repair"]).code, Some(2));
}
