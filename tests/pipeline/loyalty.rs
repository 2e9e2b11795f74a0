//! The example of a domain of one's own, `tests/loyalty-points`, served by programs of its own.

use millrace_tests::{
    Deployment, eventually,
    http::{get, post},
    kafka, side_by_side,
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
