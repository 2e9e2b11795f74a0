//! kill -9 and SIGSTOP of brokers.

use std::thread;

use millrace_tests::{
    Deployment, LONG,
    brokers::{Broker, Brokers},
    eventually, kafka,
};

use crate::{
    Busy,
    alone::{self, Alone},
    note,
};

const INSTANCE: &str = "one";

/// What the broker that is hurt is to a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It leads a partition of each topic. Somebody else coordinates the transactions.
    Leader,
    /// It coordinates the transactions.
    TransactionCoordinator,
    /// It coordinates the consumer group. Somebody else coordinates the transactions.
    GroupCoordinator,
}

impl Role {
    /// Those of a short run, all of them in a long one.
    fn all() -> &'static [Self] {
        let all = &[Self::Leader, Self::TransactionCoordinator, Self::GroupCoordinator];
        if *LONG { all } else { &all[..2] }
    }

    /// Who is it.
    fn holder(self, brokers: &Brokers, deployment: &Deployment) -> Broker {
        let all = brokers.all();
        let holder = all.into_iter().find(|broker| self.is_held_by(*broker, brokers, deployment));
        holder.expect("each role has somebody")
    }

    fn is_held_by(self, broker: Broker, brokers: &Brokers, deployment: &Deployment) -> bool {
        match self {
            Self::Leader => (0..deployment.partitions)
                .any(|partition| brokers.leader_of(&deployment.topic("events"), partition) == broker),
            Self::TransactionCoordinator => {
                let id = format!("{}.{INSTANCE}.0", deployment.prefix);
                brokers.transaction_coordinator(&id) == broker
            }
            Self::GroupCoordinator => brokers.group_coordinator(&deployment.group()) == broker,
        }
    }

    /// A busy deployment in which a broker is this. Who coordinates what is a matter of names.
    #[track_caller]
    fn busy(self, broker: Broker, brokers: &Brokers) -> Busy {
        let fits = |deployment: &Deployment| {
            let coordinates = Self::TransactionCoordinator.is_held_by(broker, brokers, deployment);
            coordinates == (self == Self::TransactionCoordinator)
                && (self != Self::GroupCoordinator || self.is_held_by(broker, brokers, deployment))
        };
        // With one writer there is one transactional id.
        let fresh =
            || Deployment::new().with("MILLRACE_WRITERS", "1").with("MILLRACE_LOG", "info,command_service=debug");
        let deployment = (0..200).map(|_| fresh()).find(fits).expect("names spread over the coordinators");
        let service = deployment.command_service(INSTANCE);
        assert!(self.is_held_by(broker, brokers, &deployment), "{broker:?} is not {self:?}");
        Busy::start(deployment, vec![service])
    }
}

/// A broker and deployments, side by side, to each of which it is something else.
#[track_caller]
fn busy(brokers: &Brokers) -> (Broker, Vec<(Role, Busy)>) {
    kafka::make_coordinators();
    brokers.wait_in_sync();
    let coordinates = |broker: &Broker| {
        ["__transaction_state", "__consumer_offsets"].iter().all(|topic| brokers.led_by(*broker, topic) > 0)
    };
    let broker = brokers.all().into_iter().find(coordinates).expect("they share the work");
    let busy = thread::scope(|scope| {
        let start = |role: &Role| {
            let role = *role;
            scope.spawn(move || (role, role.busy(broker, brokers)))
        };
        let started: Vec<_> = Role::all().iter().map(start).collect();
        started.into_iter().map(|started| started.join().expect("a deployment is busy")).collect()
    });
    (broker, busy)
}

#[track_caller]
fn wait_for_more(busy: &[(Role, Busy)], more: usize) {
    for (role, busy) in busy {
        note(&format!("{more} more: {role:?}"));
        busy.load.wait_for_more(more);
    }
}

#[track_caller]
fn check(busy: Vec<(Role, Busy)>) {
    thread::scope(|scope| {
        let checks: Vec<_> = busy.into_iter().map(|(role, busy)| (role, scope.spawn(|| busy.check()))).collect();
        for (role, check) in checks {
            assert!(check.join().is_ok(), "failed, see above: {role:?}");
        }
    });
}

// One test, for to start three brokers' worth of deployments takes as long as to hurt them.
#[test]
fn g01_g02_g03_g07_brokers_that_are_frozen_killed_and_restarted_lose_and_double_nothing() {
    let brokers = &Brokers::take();
    let (broker, busy) = busy(brokers);
    let alone = thread::scope(|scope| {
        let start = |taken_over| scope.spawn(move || Alone::start(brokers, broker, taken_over));
        [true, false].map(start).map(|started| started.join().expect("it is ready"))
    });
    note(&format!("freezing {broker:?}"));
    let frozen = broker.freeze();
    for (role, busy) in &busy {
        eventually("another broker in its place", || {
            let still = role.is_held_by(broker, brokers, &busy.deployment);
            if still { Err(format!("it is still {role:?}")) } else { Ok(()) }
        });
    }
    wait_for_more(&busy, 50);
    // A partition that only the frozen broker has waits alone.
    alone::check(alone, || {
        note("thawing");
        drop(frozen);
    });
    for round in 0..if *LONG { 5 } else { 1 } {
        // In a short run one kill is all: the coordinator of one deployment leads partitions of the other, too.
        for (role, busy_one) in busy.iter().skip(if *LONG { 0 } else { busy.len() - 1 }) {
            brokers.wait_in_sync();
            let victim = role.holder(brokers, &busy_one.deployment);
            note(&format!("killing {victim:?}, {role:?}, round {round}"));
            for (_, other) in busy.iter().filter(|_| !*LONG) {
                assert!(Role::Leader.is_held_by(victim, brokers, &other.deployment), "{victim:?} leads nothing");
            }
            victim.kill();
            wait_for_more(&busy, 20);
        }
        brokers.wait_in_sync();
        note("restarting one by one");
        for broker in brokers.all().into_iter().take(if *LONG { 3 } else { 1 }) {
            broker.terminate();
            wait_for_more(&busy, 20);
            brokers.wait_in_sync();
        }
        note("killing all at once");
        for broker in brokers.all() {
            broker.kill();
        }
        wait_for_more(&busy, 50);
        brokers.wait_in_sync();
    }
    check(busy);
}
