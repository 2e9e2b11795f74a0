//! Instances that come and go in order, under load.

use std::thread;

use millrace_tests::{
    Deployment, LONG, ledger,
    load::{Load, TopicLoad},
    services::Service,
    side_by_side,
};

use crate::deployment;

/// What a client of a service that ends may see beside answers: the port is closed, or its connection was not taken any
/// more; "Peer disconnected" is how ureq tells of one that was closed before the answer began.
const CONNECTING: [&str; 4] = ["Connection refused", "Connection reset by peer", "Broken pipe", "Peer disconnected"];

/// Every repeat was for a reason that the contract names.
#[track_caller]
fn only_what_the_contract_tells(troubles: &std::collections::BTreeMap<String, usize>) {
    for (trouble, count) in troubles {
        let told = matches!(trouble.as_str(), "429" | "503" | "504");
        let connecting = CONNECTING.iter().any(|text| trouble.contains(text));
        assert!(told || connecting, "{count} times: {trouble}");
    }
}

#[test]
fn g01_g02_g03_instances_are_added_and_removed_under_load() {
    side_by_side(&["with stores", "without"], |&stores| match stores {
        "without" => come_and_go(&deployment().with("MILLRACE_DATA_DIR", "none")),
        _ => come_and_go(&deployment()),
    });
}

fn come_and_go(deployment: &Deployment) {
    let rounds = if *LONG { 20 } else { 1 };
    let mut first = deployment.command_service("c1");
    let (mut second, mut third) = thread::scope(|scope| {
        let second = scope.spawn(|| deployment.command_service("c2"));
        let third = deployment.command_service("c3");
        (second.join().expect("it is ready"), third)
    });
    let urls = [&first, &second, &third].map(Service::url).to_vec();
    let load = Load::start(urls, 6, 12);
    let topic = TopicLoad::start(deployment, 6);
    for _ in 0..rounds {
        for leaving in [&mut second, &mut third, &mut first] {
            leaving.terminate();
            load.wait_for_more(20);
            leaving.start_again();
            load.wait_for_more(20);
        }
        // Two at once, and one that is back before the group has settled.
        second.terminate();
        third.terminate();
        load.wait_for_more(20);
        second.launch();
        third.launch();
        second.wait_ready();
        second.terminate();
        second.start_again();
        third.wait_ready();
    }
    load.wait_for_more(50);
    let (told, troubles) = load.stop();
    topic.stop(deployment);
    only_what_the_contract_tells(&troubles);
    ledger::check(deployment, &told, &first, 100);
}

#[test]
fn g15_a_rolling_restart_of_three_instances_under_full_load() {
    let rounds = if *LONG { 10 } else { 1 };
    let deployment = deployment();
    let names = ["c1", "c2", "c3"];
    let mut services = thread::scope(|scope| {
        let starting = names.map(|name| scope.spawn(|| deployment.command_service(name)));
        starting.map(|starting| starting.join().expect("it is ready"))
    });
    let load = Load::full(services.iter().map(Service::url).collect(), 24, 30);
    for _ in 0..rounds {
        for (service, name) in services.iter_mut().zip(names) {
            load.wait_for_more(100);
            // Fails when it does not end with 0 within 10 s.
            service.terminate();
            // Else its partitions would stand still until its session has timed out.
            assert!(!deployment.members().iter().any(|member| member == name), "{name} has not left the group");
            service.start_again();
        }
    }
    load.wait_for_more(100);
    let (told, troubles) = load.stop();
    only_what_the_contract_tells(&troubles);
    ledger::check(&deployment, &told, &services[0], 100);
}
