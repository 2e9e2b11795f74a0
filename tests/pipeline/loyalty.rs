//! The example of a domain of one's own, `tests/loyalty-points`, served by programs of its own.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use millrace_tests::{
    Deployment,
    avro::Registry,
    eventually, eventually_within,
    http::{get, post},
    kafka,
    services::{Service, new_key},
    side_by_side,
};
use serde_json::json;

#[test]
fn a_domain_of_ones_own_is_served_from_end_to_end() {
    let mut deployment = Deployment::new();
    deployment.programs = "loyalty-";
    let mut commands = deployment.command_service("c1");
    let projector = deployment.projector_service("p1");
    let queries = deployment.query_service();
    let send = |id: &str, command: &str, body| {
        post(&format!("{}/v1/loyalty-points/{id}/{command}", commands.url())).json(&body).send()
    };
    let ask = |path: &str| get(&format!("{}/v1/loyalty-points{path}", queries.url())).send();

    // Members lie in all partitions.
    let members: Vec<String> = (0..12).map(|number| format!("member-{number}")).collect();
    side_by_side(&members, |id| {
        let earned = send(id, "earn", json!({"points": 100, "reason": "order 17"}));
        assert_eq!((earned.status, earned.must("etag")), (201, "\"1\""), "{earned:?}");
        let much = send(id, "redeem", json!({"points": 101, "reward": "mug"})).problem(422, "not-enough-points");
        assert_eq!((&much["points"], &much["requested"]), (&json!(100), &json!(101)));
        let redeemed = send(id, "redeem", json!({"points": 80, "reward": "mug"}));
        assert_eq!(redeemed.status, 200, "{redeemed:?}");
        let expired = send(id, "expire", json!({"points": 50}));
        let after = ask(&format!("/{id}?after={}&wait_ms=30000", expired.token()));
        assert_eq!((after.status, after.header("millrace-stale")), (200, None), "{after:?}");
        let view = after.json();
        assert_eq!(
            (&view["points"], &view["earned"], &view["last_reward"], &view["version"]),
            (&json!(0), &json!(100), &json!("mug"), &json!(3))
        );
        send(id, "expire", json!({"points": 1})).problem(422, "nothing-to-expire");
    });
    send("member-0", "earn", json!({"points": 0})).problem(400, "malformed-request");
    send("member-0", "deposit", json!({"points": 1})).problem(404, "unknown-command");
    assert_eq!(ask("/stats").json(), json!({"members": 12, "earned": 1200, "redeemed": 960, "expired": 240}));

    // After a restart without its store it knows what it knew.
    commands.terminate();
    std::fs::remove_dir_all(deployment.data_dir()).expect("there is a store");
    commands.start_again();
    let earned =
        post(&format!("{}/v1/loyalty-points/member-7/earn", commands.url())).json(&json!({"points": 3})).send();
    assert_eq!(earned.must("etag"), "\"4\"");
    let history = ask(&format!("/member-7/history?after={}&wait_ms=30000", earned.token())).json();
    let told: Vec<_> = history["items"].as_array().expect("items").iter().map(|item| &item["type"]).collect();
    assert_eq!(told, ["PointsEarned", "PointsRedeemed", "PointsExpired", "PointsEarned"]);
    let then = ask("/member-7?at_version=2").json();
    assert_eq!(then["points"], 20);
    let sorted = ask("?sort=-points&limit=1").json();
    assert_eq!(sorted["items"][0]["id"], "member-7");

    // The tools know it, and bank accounts are not served here.
    let checked = deployment.run_tool(&["check-log", "--json"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let verified = deployment.run_projector_tool(&["verify", "loyalty-points"]);
    assert_eq!((verified.code, verified.output.as_str()), (Some(0), ""), "{verified:?}");
    let replayed = deployment.run_tool(&["replay", "--aggregate", "loyalty-points", "--id", "member-7", "--json"]);
    let states: Vec<_> = replayed.json_lines().iter().map(|line| line["state"]["points"].clone()).collect();
    assert_eq!(states, [100, 20, 0, 3], "{replayed:?}");
    let bank = deployment.run_tool(&["replay", "--aggregate", "bank-account", "--id", "acc-42"]);
    assert!(bank.errors.contains("there is loyalty-points"), "{bank:?}");
    for service in [&commands, &queries] {
        let described = get(&format!("{}/openapi.json", service.url())).send().text();
        assert!(
            described.contains("/v1/loyalty-points/{id}") && !described.contains("\"/v1/bank-accounts"),
            "{described}"
        );
    }
    let topic = format!("{}.loyalty-points.events", deployment.prefix);
    assert_eq!(kafka::read(&topic, None).len(), 37);
    eventually("projector that is content", || projector.ready());
}

/// Sends commands to whoever answers until it is over; returns how many points were earned, and in how many commands.
fn earn(urls: &[String], id: &str, over: &AtomicBool) -> (i64, u64) {
    let (mut earned, mut count) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        // Some are large ones, which only the later release says.
        let (points, key) = (if count % 4 == 0 { 100 } else { 1 }, new_key());
        let mut turns = urls.iter().cycle().skip(count as usize % 2);
        eventually_within(Duration::from_secs(60), "answer", || {
            let url = turns.next().expect("a cycle has no end");
            let request =
                post(&format!("{url}/v1/loyalty-points/{id}/earn")).json(&json!({"points": points})).key(&key);
            match request.within(Duration::from_secs(15)).try_send()? {
                answer if matches!(answer.status, 200 | 201) => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        });
        (earned, count) = (earned + points, count + 1);
    }
    (earned, count)
}

#[test]
fn g01_to_g04_g12_a_release_takes_over_from_the_one_before_under_load() {
    let mut later = Deployment::new();
    later.programs = "loyalty-";
    let earlier = later.clone().with("LOYALTY_RELEASE", "earlier");
    let mut old: Vec<_> = ["c1", "c2"].map(|instance| earlier.command_service(instance)).into();
    let mut old_projector = earlier.projector_service("p1");
    let queries = later.query_service();
    let members: Vec<String> = (0..6).map(|number| format!("member-{number}")).collect();
    let versions = || {
        let events = kafka::read(&format!("{}.loyalty-points.events", later.prefix), None);
        let fields =
            events.iter().map(|event| Registry::shared().decode(event.value.as_deref().expect("a value")).fields);
        let large: Vec<_> = fields.map(|fields| fields["large"].as_bool()).collect();
        (large.iter().filter(|large| large.is_none()).count(), large.iter().filter(|large| large.is_some()).count())
    };
    let decides = |service: &Service| {
        eventually("commands that it decides", || {
            let count = service.metric(r#"millrace_commands_total{type="loyalty-points",outcome="accepted"}"#);
            if count > 20.0 { Ok(()) } else { Err(format!("{count} so far")) }
        });
    };
    let over = AtomicBool::new(false);
    let (earned, _running) = thread::scope(|scope| {
        let (urls, over) = ([old[0].url(), old[1].url()], &over);
        let clients: Vec<_> = members
            .iter()
            .map(|id| {
                let urls = urls.clone();
                scope.spawn(move || earn(&urls, id, over))
            })
            .collect();
        old.iter().for_each(decides);
        // Readers first, then one writer after the other, each at its address; both releases are at work meanwhile.
        let mut running = vec![later.projector_service("p2")];
        old_projector.terminate();
        for (number, mut service) in old.drain(..).enumerate() {
            let address = service.url().trim_start_matches("http://").to_owned();
            service.terminate();
            let next = later.clone().with("MILLRACE_HTTP_ADDR", address);
            running.push(next.command_service(&format!("c{}", number + 1)));
            decides(&running[running.len() - 1]);
        }
        over.store(true, Ordering::Relaxed);
        let earned: Vec<_> = clients.into_iter().map(|client| client.join().expect("a client ended well")).collect();
        (earned, running)
    });

    // Each command had its effect once, whoever decided it, and views and history are those of the present release.
    for (id, (points, count)) in members.iter().zip(&earned) {
        eventually(&format!("all points of {id}"), || {
            let view = get(&format!("{}/v1/loyalty-points/{id}", queries.url())).try_send()?.json();
            let found = (view["points"].as_i64(), view["version"].as_u64());
            if found == (Some(*points), Some(*count)) {
                Ok(())
            } else {
                Err(format!("{view}, not {points} in {count}"))
            }
        });
    }
    let (first, second) = versions();
    assert!(first > 20 && second > 20, "{first} events of the earlier release, {second} of the later one");
    assert_eq!((first + second) as u64, earned.iter().map(|(_, count)| count).sum::<u64>());
    let checked = later.run_tool(&["check-log"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let verified = later.run_projector_tool(&["verify", "loyalty-points"]);
    assert_eq!((verified.code, verified.output.as_str()), (Some(0), ""), "{verified:?}");
}
