//! Where a projection goes on: from its checkpoint in Redis, or not at all.

use std::{fs, path::Path, time::Duration};

use millrace_tests::{
    Deployment, Services, eventually, eventually_within, kafka,
    redis::Redis,
    services::{Service, open_at},
};
use serde_json::Value;

/// librdkafka says of a topic that is gone only after 30 s that it is (topic.metadata.propagation.max.ms), unless a fetch
/// was refused first: seen once.
const STOP_LIMIT: Duration = Duration::from_secs(75);

#[track_caller]
fn wait_stopped(projector: &Service, why: &str) {
    eventually_within(STOP_LIMIT, "projection that stops", || match projector.ready() {
        Err(reason) if reason.contains(why) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    projector.wait_logged("no longer projected");
}

#[track_caller]
fn checkpoint(deployment: &Deployment, partition: i32) -> Option<i64> {
    deployment.redis().run("HGET", &[&deployment.view_key(partition, "meta"), "offset"])
}

#[test]
fn g07_a_topic_that_was_made_anew_stops_the_projection() {
    let mut services = Services::start(Deployment::new());
    let deployment = services.deployment.clone();
    let (id, later) = (deployment.id_in(0), deployment.id_in(0));
    open_at(&services.command, &id, "Ada");
    let token = services.deposit(&id, 1).token();
    let view = services.view_after(&id, &token);
    // While the projector runs.
    services.command.terminate();
    kafka::delete_topic(&deployment.topic("events"));
    services.command.start_again();
    open_at(&services.command, &later, "Basil");
    // Beyond its checkpoint, which an offset alone would go on from.
    for _ in 0..10 {
        services.deposit(&later, 1);
    }
    let why = "it was deleted and made again";
    wait_stopped(&services.projector, why);
    services.projector.terminate();
    services.projector.launch();
    wait_stopped(&services.projector, why);
    let ask = |id: &str| services.ask(&format!("/v1/bank-accounts/{id}")).send();
    assert_eq!(ask(&id).json(), view, "what is there stays");
    ask(&later).problem(404, "not-found");
}

#[test]
fn g07_a_log_that_lost_its_end_stops_the_projection() {
    let mut services = Services::start(Deployment::new());
    let deployment = services.deployment.clone();
    let (lost, other) = (deployment.id_in(0), deployment.id_in(1));
    for id in [&lost, &other] {
        open_at(&services.command, id, "Ada");
        let token = services.deposit(id, 1).token();
        services.view_after(id, &token);
    }
    services.projector.terminate();
    // As if Redis had seen more than is left in the log.
    let beyond = kafka::end(&deployment.topic("events"), 0) + 5;
    let _: i64 =
        deployment.redis().run("HSET", &[&deployment.view_key(0, "meta"), "offset", beyond.to_string().as_str()]);
    services.projector.launch();
    wait_stopped(&services.projector, "the log has lost records");
    services.deposit(&lost, 1);
    let token = services.deposit(&other, 1).token();
    assert_eq!(services.view_after(&other, &token)["balance_minor"], 2, "the others go on");
    assert_eq!(checkpoint(&deployment, 0), Some(beyond), "it is not moved");
    let view = services.ask(&format!("/v1/bank-accounts/{lost}")).send().json();
    assert_eq!(view["version"], 2, "{view}");
}

/// Everything that Redis has of a partition's change feed.
#[track_caller]
fn changes(deployment: &Deployment, partition: i32) -> Vec<(String, Vec<String>)> {
    deployment.redis().run("XRANGE", &[&deployment.view_key(partition, "changes"), "-", "+"])
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the scratch folder is writable");
    for entry in fs::read_dir(from).expect("the folder is there").flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

#[test]
fn g07_an_older_redis_is_brought_up_to_date_by_itself() {
    let mut redis = Redis::start();
    let services = Services::start(Deployment::new().with("MILLRACE_REDIS_URL", redis.url.clone()));
    let deployment = services.deployment.clone();
    let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    let deposits = |count| {
        for id in &ids {
            let tokens: Vec<_> = (0..count).map(|_| services.deposit(id, 1).token()).collect();
            services.view_after(id, tokens.last().expect("there are some"));
        }
    };
    ids.iter().for_each(|id| open_at(&services.command, id, "Ada"));
    deposits(5);
    redis.kill();
    let (dir, older) = (redis.dir.clone(), redis.dir.with_extension("older"));
    copy(&dir, &older);
    redis.start_again();
    eventually("ready projector", || services.projector.ready());
    services.query.wait_for_views();
    deposits(7);
    let before: Vec<_> = (0..deployment.partitions).map(|partition| changes(&deployment, partition)).collect();

    redis.kill();
    fs::remove_dir_all(&dir).expect("it is ours");
    copy(&older, &dir);
    redis.start_again();
    for id in &ids {
        assert_eq!(services.view_is_the_fold_of_the_log(id)["version"], 13);
        let history = services.ask(&format!("/v1/bank-accounts/{id}/history")).send().json();
        let sequences: Vec<_> =
            history["items"].as_array().expect("items").iter().filter_map(|item| item["sequence"].as_u64()).collect();
        assert_eq!(sequences, (1..=13).collect::<Vec<_>>(), "{id}");
    }
    let stats: Value = services.ask("/v1/bank-accounts/stats").send().json();
    assert_eq!(stats["currencies"]["EUR"]["events"], 13 * ids.len(), "{stats}");
    // Who subscribed before goes on with the id that was told then.
    let after: Vec<_> = (0..deployment.partitions).map(|partition| changes(&deployment, partition)).collect();
    assert_eq!(after, before);
    deposits(1);
    eventually("projector without trouble", || services.projector.ready());
    deployment.verify_all();
}
