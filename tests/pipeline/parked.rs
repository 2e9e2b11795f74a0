//! What can't be applied waits, and an operator sees it, mends it, or does without it.

use millrace_tests::{
    Deployment, Services, eventually,
    http::Answer,
    kafka::{Draft, Producer},
    services::open_at,
    wait::same,
};
use serde_json::{Value, json};

/// A record that no release will be able to read, in an aggregate's place.
fn garbage(deployment: &Deployment, id: &str) {
    let draft = Draft::new(id, b"garbage".to_vec()).to(deployment.partition_of(id));
    Producer::new("murmur2_random").send(&deployment.topic("events"), &draft);
}

/// What `parked list` says about an aggregate in `bank-accounts`.
#[track_caller]
fn listed(deployment: &Deployment, id: &str) -> Option<Value> {
    listed_in(deployment, "bank-accounts", id)
}

#[track_caller]
fn listed_in(deployment: &Deployment, projection: &str, id: &str) -> Option<Value> {
    let list = deployment.run_projector_tool(&["parked", "list", "--json"]);
    assert_eq!(list.code, Some(0), "{list:?}");
    list.json_lines().into_iter().find(|one| one["projection"] == projection && one["id"] == id)
}

#[track_caller]
fn wait_for_parked(deployment: &Deployment, id: &str, count: u64) -> Value {
    eventually(&format!("{count} events of {id} that wait"), || {
        let parked = listed(deployment, id).ok_or("nothing waits")?;
        same(&parked["count"], &json!(count)).map(|()| parked)
    })
}

#[track_caller]
fn ask(services: &Services, id: &str, and: &str) -> Answer {
    let answer = services.ask(&format!("/v1/bank-accounts/{id}{and}")).send();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

#[test]
fn g07_g13_what_waits_is_listed_shown_and_replayed_in_order() {
    let services = Services::start(Deployment::new());
    let deployment = &services.deployment;
    let (id, other) = (deployment.id_in(1), deployment.id_in(1));
    let mut redis = deployment.redis();
    let view = deployment.view_key(1, &format!("view:{id}"));
    open_at(&services.command, &id, "Ada");
    open_at(&services.command, &other, "Basil");
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    let older: String = redis.run("GET", &[&view]);
    let token = services.deposit(&id, 2).token();
    services.view_after(&id, &token);
    let right: String = redis.run("GET", &[&view]);

    // Somebody has put an older view into Redis: what comes next does not follow on it.
    let () = redis.run("SET", &[&view, &older]);
    for amount in [3, 4, 5] {
        services.deposit(&id, amount);
    }
    let token = services.deposit(&other, 7).token();
    assert_eq!(services.view_after(&other, &token)["balance_minor"], 7, "the others go on");
    let parked = wait_for_parked(deployment, &id, 3);
    let reason = "sequence 4 follows on 2: events are missing";
    let expected = json!({
        "projection": "bank-accounts", "partition": 1, "id": id, "offset": parked["offset"], "count": 3, "reason": reason,
    });
    assert_eq!(parked, expected);
    let table = deployment.run_projector_tool(&["parked", "list"]);
    assert!(table.output.lines().any(|line| line.contains(&id) && line.ends_with(reason)), "{table:?}");
    assert_eq!(ask(&services, &id, "").must("millrace-parked"), "true");
    let shown = deployment.run_projector_tool(&["parked", "show", "bank-accounts", "--id", &id, "--json"]);
    let sequences: Vec<_> = shown.json_lines().iter().map(|line| line["sequence"].as_u64()).collect();
    assert_eq!((shown.code, sequences), (Some(0), vec![Some(4), Some(5), Some(6)]), "{shown:?}");

    // As long as nothing is mended they go on waiting.
    let replay = deployment.run_projector_tool(&["parked", "replay", "bank-accounts", "--all"]);
    assert_eq!(replay.code, Some(1), "{replay:?}");
    assert!(
        replay.output.contains(&format!("{id}: 0 applied, 3 wait")) && replay.output.contains(reason),
        "{replay:?}"
    );
    assert_eq!(listed(deployment, &id), Some(expected));
    // And the projector, which has its partition back, counts on.
    services.deposit(&id, 6);
    wait_for_parked(deployment, &id, 4);

    let () = redis.run("SET", &[&view, &right]);
    // In as many rounds as a long backlog takes; the last of them finds nothing more.
    let replay = ["parked", "replay", "bank-accounts", "--id", &id, "--at-a-time", "2"];
    let replay = deployment.run_projector_tool(&replay);
    assert_eq!((replay.code, replay.output), (Some(0), format!("{id}: 4 applied, nothing waits any more\n")));
    assert_eq!(listed(deployment, &id), None);
    assert_eq!(ask(&services, &id, "").header("millrace-parked"), None);
    let token = services.deposit(&id, 8).token();
    assert_eq!(services.view_after(&id, &token)["balance_minor"], 29);
    let token = services.deposit(&other, 1).token();
    services.view_after(&other, &token);
    for id in [&id, &other] {
        services.view_is_the_fold_of_the_log(id);
    }
    let history = ask(&services, &id, "/history").json();
    let sequences: Vec<_> = history["items"].as_array().expect("items").iter().map(|item| &item["sequence"]).collect();
    assert_eq!(json!(sequences), json!([1, 2, 3, 4, 5, 6, 7, 8]));
    deployment.verify_all();
    // Subscribers are told of each, in order; Redis itself refuses an id that does not rise.
    let changes: Vec<(String, Vec<String>)> = redis.run("XRANGE", &[&deployment.view_key(1, "changes"), "-", "+"]);
    let told: Vec<&str> =
        changes.iter().filter(|(_, fields)| fields[1] == id).map(|(_, fields)| &fields[3][..]).collect();
    assert_eq!(told, ["1", "2", "3", "4", "5", "6", "7", "8"], "{changes:?}");
    let gone = deployment.run_projector_tool(&["parked", "replay", "bank-accounts", "--id", &id]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.errors.contains("is not parked"), "{gone:?}");
}

#[test]
fn g13_one_can_do_without_what_waits_and_too_many_stop_the_partition() {
    let services = Services::start(Deployment::new().with("MILLRACE_PARKED_MAX", "1"));
    let deployment = services.deployment.clone();
    let [first, second, third] = [0; 3].map(|partition| deployment.id_in(partition));
    for id in [&first, &second, &third] {
        open_at(&services.command, id, "Ada");
    }
    garbage(&deployment, &first);
    let expected = services.deposit(&second, 1).token();
    services.view_after(&second, &expected);
    let parked = wait_for_parked(&deployment, &first, 1);
    let shown = deployment.run_projector_tool(&["parked", "show", "bank-accounts", "--id", &first]);
    assert!(shown.output.contains("header"), "it says why: {shown:?}");

    let discard = |id: &str| deployment.run_projector_tool(&["parked", "discard", "bank-accounts", "--id", id]);
    assert_eq!(discard(&second).code, Some(1), "it is not parked");
    // The other projection of these events has parked it as well, by itself.
    let discard_owned = |id: &str| {
        eventually("parked account of an owner", || {
            listed_in(&deployment, "owners", id).map(drop).ok_or_else(|| "nothing waits".to_owned())
        });
        let done = deployment.run_projector_tool(&["parked", "discard", "owners", "--id", id]);
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    discard_owned(&first);
    let done = discard(&first);
    assert_eq!(done.code, Some(0), "{done:?}");
    // Everybody is told, for good; and it is in nobody's way.
    let mut discarded = parked.clone();
    discarded["discarded"] = json!(true);
    assert_eq!(listed(&deployment, &first), Some(discarded));
    assert_eq!(ask(&services, &first, "").must("millrace-parked"), "true");
    garbage(&deployment, &second);
    wait_for_parked(&deployment, &second, 1);
    garbage(&deployment, &first);
    let parked = wait_for_parked(&deployment, &first, 2);
    assert_eq!(parked["discarded"], true, "its projector knows of it");
    services.projector.ready().expect("one may be parked");
    let replay = deployment.run_projector_tool(&["parked", "replay", "bank-accounts", "--all"]);
    assert!(replay.output.contains(&second) && !replay.output.contains(&first), "{replay:?}");

    let again = deployment.run_projector_tool(&["parked", "replay", "bank-accounts", "--id", &first]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert_eq!(listed(&deployment, &first), Some(parked), "it stays given up");

    garbage(&deployment, &third);
    eventually("partition that stops", || match services.projector.ready() {
        Err(reason) if reason.contains("more than 1 aggregates") && reason.contains("header") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(listed(&deployment, &third).is_none());
    // Others go on; and so does this one, by itself, once there is room.
    let elsewhere = deployment.id_in(1);
    open_at(&services.command, &elsewhere, "Basil");
    let token = services.deposit(&elsewhere, 5).token();
    assert_eq!(services.view_after(&elsewhere, &token)["balance_minor"], 5);
    assert_eq!(discard(&second).code, Some(0));
    discard_owned(&second);
    wait_for_parked(&deployment, &third, 1);
    // What waits is no difference, nor is what was given up: the log has no more of them up to there.
    deployment.verify_all();
}
