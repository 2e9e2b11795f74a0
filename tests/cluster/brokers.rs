//! kill -9 and SIGSTOP of brokers.

use millrace_tests::{
    Deployment, LONG,
    brokers::{Broker, Brokers},
    eventually,
    load::Load,
};

use crate::{busy_while, note};

/// One command-service under load, while brokers are hurt.
#[track_caller]
fn survives(brokers: &Brokers, hurt: impl FnOnce(&Deployment, &Load)) {
    let deployment = Deployment::new();
    let mut services = [deployment.command_service("one")];
    busy_while(&deployment, &mut services, |load, _| hurt(&deployment, load));
    brokers.wait_in_sync();
    note("in step");
}

/// Whom to hurt.
#[derive(Clone, Copy, Debug)]
enum Role {
    LeaderOf(&'static str),
    TransactionCoordinator,
    GroupCoordinator,
}

impl Role {
    fn broker(self, brokers: &Brokers, deployment: &Deployment) -> Broker {
        match self {
            Self::LeaderOf(topic) => brokers.leader_of(&deployment.topic(topic), 0),
            Self::TransactionCoordinator => brokers.transaction_coordinator(&format!("{}.one.0", deployment.prefix)),
            Self::GroupCoordinator => brokers.group_coordinator(&deployment.group()),
        }
    }
}

/// These roles in a short run, all of them in a long one.
fn roles(short: &[Role]) -> Vec<Role> {
    use Role::*;
    let all =
        [LeaderOf("commands"), LeaderOf("events"), LeaderOf("outcomes"), TransactionCoordinator, GroupCoordinator];
    if *LONG { all.to_vec() } else { short.to_vec() }
}

#[test]
fn g01_g02_g03_a_broker_that_is_frozen_and_wakes_loses_and_doubles_nothing() {
    let brokers = Brokers::take();
    for role in roles(&[Role::TransactionCoordinator]) {
        note(&format!("freezing {role:?}"));
        survives(&brokers, |deployment, load| {
            let broker = role.broker(&brokers, deployment);
            let frozen = broker.freeze();
            eventually("another broker in its place", || match role.broker(&brokers, deployment) {
                now if now == broker => Err(format!("it is still {now:?}")),
                _ => Ok(()),
            });
            load.wait_for_more(50);
            drop(frozen);
        });
    }
}

#[test]
fn g01_g02_g03_brokers_that_are_killed_lose_and_double_nothing() {
    let brokers = Brokers::take();
    for round in 0..if *LONG { 5 } else { 1 } {
        note(&format!("killing all at once, round {round}"));
        survives(&brokers, |_, load| {
            for broker in brokers.all() {
                broker.kill();
            }
            load.wait_for_more(50);
        });
    }
    for role in roles(&[]) {
        note(&format!("killing {role:?}"));
        survives(&brokers, |deployment, load| {
            role.broker(&brokers, deployment).kill();
            load.wait_for_more(50);
        });
    }
}

#[test]
fn g01_g02_g03_brokers_that_are_restarted_one_by_one_lose_and_double_nothing() {
    let brokers = Brokers::take();
    survives(&brokers, |deployment, load| {
        for _ in 0..if *LONG { 6 } else { 1 } {
            brokers.leader_of(&deployment.topic("commands"), 0).terminate();
            load.wait_for_more(20);
            brokers.wait_in_sync();
        }
    });
}
