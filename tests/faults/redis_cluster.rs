//! A Redis Cluster whose slots move and whose nodes die under load: afterwards the views equal the log.

use millrace_tests::{
    LONG,
    http::get,
    redis_cluster::RedisCluster,
    services::{command_at, new_id, open_at},
};
use serde_json::json;

use crate::{
    deployment,
    views::{load, offsets, wait_for_progress},
};

#[test]
fn g07_a_cluster_whose_slots_move_and_whose_masters_die_spoils_nothing() {
    let mut cluster = RedisCluster::start();
    let deployment = deployment().with("MILLRACE_REDIS_URL", cluster.urls()).with("MILLRACE_REDIS_CLUSTER", "true");
    let command = deployment.command_service("c1");
    let _projectors = ["p1", "p2"].map(|name| deployment.projector_service(name));
    let query = deployment.query_service();
    query.wait_for_views();
    let load = load(&command);
    load.wait_for_more(100);
    wait_for_progress(&deployment);
    for round in 0..if *LONG { 10 } else { 1 } {
        let moving = round % deployment.partitions;
        let key = deployment.view_key(moving, "meta");
        let to = cluster.another_master(cluster.owner(&key));
        cluster.begin_move(&key, to);
        let before = offsets(&deployment);
        load.wait_for_more(100);
        cluster.end_move(&key, to);
        wait_for_progress(&deployment);
        assert!(before.iter().all(Option::is_some), "{before:?}");
        deployment.verify();

        let key = deployment.view_key((round + 1) % deployment.partitions, "meta");
        let killed = cluster.owner(&key);
        cluster.kill(killed);
        load.wait_for_more(100);
        cluster.wait_taken_over(&key, killed);
        wait_for_progress(&deployment);
        cluster.start_again(killed);
        deployment.verify();
    }
    load.stop();
    deployment.verify_all();

    // What a caller did is seen at once, and pages and totals come from all partitions, wherever they lie.
    let id = new_id();
    open_at(&command, &id, "Ada");
    let paid = command_at(&command, &id, "deposit", &json!({"amount_minor": 7})).send();
    assert_eq!(paid.status, 200, "{paid:?}");
    let token = paid.json()["token"].as_str().expect("a token is a text").to_owned();
    let ask = |path: &str| {
        let answer = get(&format!("{}/v1/bank-accounts{path}", query.url())).send();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.header("millrace-stale"), None, "{path}: {answer:?}");
        answer.json()
    };
    assert_eq!(ask(&format!("/{id}?after={token}&wait_ms=30000"))["balance_minor"], 7);
    let listed = ask("?limit=200")["items"].as_array().map_or(0, Vec::len);
    assert_eq!(ask(&format!("/stats?after={token}&wait_ms=30000"))["accounts"]["open"], listed);
    assert!(listed > 3, "{listed} accounts");
}
