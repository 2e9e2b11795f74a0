//! Projectors that are killed, ended, frozen and replaced, and a Redis that is killed, full or cuts its connections,
//! all under load: afterwards, and meanwhile, the views equal the log.

use std::{thread, time::Duration};

use millrace_tests::{
    Deployment, LONG, eventually_within,
    kafka::{Draft, Producer},
    load::Load,
    redis::Redis,
    services::Service,
};
use uuid::Uuid;

use crate::deployment;

/// Partitions that are silent are served by somebody else by then.
const TAKE_OVER: Duration = Duration::from_secs(120);

/// A number that nobody foresees, below a limit.
fn random(below: u64) -> u64 {
    u64::try_from(Uuid::now_v7().as_u128() % u128::from(below)).expect("it is below the limit")
}

/// Where the projection is in each partition.
pub fn offsets(deployment: &Deployment) -> Vec<Option<i64>> {
    let mut redis = deployment.redis();
    let of = |partition| redis.run("HGET", &[deployment.view_key(partition, "meta"), "offset".to_owned()]);
    (0..deployment.partitions).map(of).collect()
}

/// Waits until every partition is further than it is now; there must be load.
#[track_caller]
pub fn wait_for_progress(deployment: &Deployment) {
    let before = offsets(deployment);
    eventually_within(TAKE_OVER, "progress of all partitions", || {
        let now = offsets(deployment);
        let all = now.iter().zip(&before).all(|(now, before)| now > before);
        if all { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
    });
}

pub fn load(service: &Service) -> Load {
    // So many accounts that every partition has some.
    Load::start(vec![service.url()], 4, 24)
}

#[test]
fn g07_projectors_are_killed_and_replaced_at_random_instants() {
    let deployment = deployment();
    let command = deployment.command_service("c1");
    let mut projectors: Vec<_> = (1..=3).map(|number| deployment.projector_service(&format!("p{number}"))).collect();
    let load = load(&command);
    let producer = Producer::new("murmur2_random");
    for kill in 0..if *LONG { 50 } else { 5 } {
        load.wait_for_more(30);
        // What can't be read waits, and is verified as what it is.
        let partition = i32::try_from(kill).expect("few") % deployment.partitions;
        let poison = Draft::new(&deployment.id_in(partition), b"garbage".to_vec()).to(partition);
        producer.send(&deployment.topic("events"), &poison);
        // A random instant within a few batches, not a wait for anything.
        thread::sleep(Duration::from_micros(random(100_000)));
        let projector = &mut projectors[kill % 3];
        // Some end in order, so that partitions also move while nobody has died.
        if kill % 3 == 2 {
            projector.terminate();
        } else {
            projector.kill();
        }
        deployment.verify();
        projector.launch();
    }
    wait_for_progress(&deployment);
    load.stop();
    deployment.verify_all();
}

#[test]
fn g07_projectors_that_sleep_through_their_session_and_wake_spoil_nothing() {
    let deployment = deployment();
    let command = deployment.command_service("c1");
    let mut projectors = ["p1", "p2"].map(|name| deployment.projector_service(name));
    let load = load(&command);
    for round in 0..if *LONG { 20 } else { 2 } {
        load.wait_for_more(30);
        projectors[round % 2].freeze();
        // The other one has all partitions, and has written to each.
        wait_for_progress(&deployment);
        projectors[round % 2].thaw();
        load.wait_for_more(30);
        deployment.verify();
    }
    wait_for_progress(&deployment);
    load.stop();
    deployment.verify_all();
}

#[test]
fn g07_a_redis_that_dies_cuts_connections_or_is_full_spoils_nothing() {
    let mut redis = Redis::start();
    let deployment = deployment().with("MILLRACE_REDIS_URL", &redis.url);
    let command = deployment.command_service("c1");
    let _projectors = ["p1", "p2"].map(|name| deployment.projector_service(name));
    let load = load(&command);
    for _ in 0..if *LONG { 20 } else { 2 } {
        load.wait_for_more(30);
        redis.kill();
        load.wait_for_more(30);
        redis.start_again();
        wait_for_progress(&deployment);
        for _ in 0..5 {
            load.wait_for_more(5);
            redis.client().run::<i64>("CLIENT", &["KILL", "TYPE", "normal", "SKIPME", "yes"]);
        }
        wait_for_progress(&deployment);
        let mut client = redis.client();
        client.run::<()>("CONFIG", &["SET", "maxmemory", "1"]);
        load.wait_for_more(30);
        client.run::<()>("CONFIG", &["SET", "maxmemory", "0"]);
        wait_for_progress(&deployment);
        deployment.verify();
    }
    load.stop();
    deployment.verify_all();
}
