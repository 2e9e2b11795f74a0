//! A partition that can't be written, since its only replica is on a broker that hangs.

use std::{thread, time::Duration};

use millrace_tests::{
    Deployment,
    brokers::{Broker, Brokers},
    kafka,
    ledger::{self, Told},
    services::{Service, command_at, open_at},
};
use serde_json::json;

use crate::note;

/// Until a broker is missed (9 s), transactions that wait for it are given up, and others coordinate.
const LIMIT: Duration = Duration::from_secs(60);

/// A deployment whose events have one replica, each partition on another broker.
pub struct Alone {
    deployment: Deployment,
    service: Service,
    victim: String,
    siblings: Vec<String>,
}

impl Alone {
    /// With accounts in all partitions, of which one is on `broker` only. When that coordinates the consumer group as
    /// well, all partitions are taken over anew; else they go on.
    #[track_caller]
    pub fn start(brokers: &Brokers, broker: Broker, taken_over: bool) -> Self {
        // A writer for each partition: a transaction that wrote to a partition without a leader does not end, not even by
        // an abort, until there is a leader again, and meanwhile its coordinator refuses the writer's next one.
        let fresh = || Deployment::new().with("MILLRACE_WRITERS", "3").with("MILLRACE_TRANSACTION_TIMEOUT_MS", "3000");
        let fits = |deployment: &Deployment| (brokers.group_coordinator(&deployment.group()) == broker) == taken_over;
        let deployment = (0..200).map(|_| fresh()).find(fits).expect("names spread over the coordinators");
        // What command-service insists on, or warns of, and one replica.
        let settings = [
            ("min.insync.replicas", "1"),
            ("retention.ms", "-1"),
            ("message.timestamp.after.max.ms", "9223372036854775807"),
        ];
        kafka::create(&deployment.topic("events"), &[&[1], &[2], &[3]], &settings);
        let service = deployment.command_service("alone");
        let mut ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
        for id in &ids {
            open_at(&service, id, "Ada");
        }
        let victim = ids.remove(broker.index());
        Self { deployment, service, victim, siblings: ids }
    }

    fn ask(&self, id: &str, key: &str) -> Told {
        let (path, body) = (format!("{id}/deposit"), json!({"amount_minor": 7}));
        let answer = command_at(&self.service, id, "deposit", &body).key(key).send_until_definite(LIMIT);
        assert_eq!(answer.status, 200, "{answer:?}");
        Told { id: id.to_owned(), key: key.to_owned(), path, body: body.into(), answer }
    }
}

/// While the broker hangs, the other partitions are served; when it has been woken, its own are.
#[track_caller]
pub fn check<const N: usize>(all: [Alone; N], wake: impl FnOnce()) {
    let told: Vec<Vec<Told>> = thread::scope(|scope| {
        let victims = all.each_ref().map(|alone| scope.spawn(|| alone.ask(&alone.victim, "victim")));
        let others = all.each_ref().map(|alone| {
            // More than once: what waits is tried again meanwhile.
            let keys = ["first", "second", "third"];
            let asked = keys.into_iter().flat_map(|key| alone.siblings.iter().map(move |id| (id, key)));
            scope.spawn(|| asked.map(|(id, key)| alone.ask(id, key)).collect::<Vec<_>>())
        });
        let others = others.map(|told| told.join().expect("they are told"));
        note("the others are served");
        assert!(!victims.iter().any(|victim| victim.is_finished()), "an event was written to a broker that hangs");
        wake();
        let victims = victims.map(|victim| victim.join().expect("it is told"));
        others.into_iter().zip(victims).map(|(others, victim)| others.into_iter().chain([victim]).collect()).collect()
    });
    note("the partition is served again");
    for (alone, told) in all.iter().zip(told) {
        let dead = alone.deployment.read("dead-letters");
        assert!(dead.is_empty(), "a broker's error makes no dead letter: {dead:?}");
        ledger::check(&alone.deployment, &told, &alone.service, usize::MAX);
    }
}
