//! The network between one instance and all brokers, while another instance has none of that trouble.

use std::time::Duration;

use millrace_tests::{
    Deployment, LONG,
    brokers::Brokers,
    proxy::{Network, Proxy},
};

use crate::{Busy, note};

/// Opens the network again, also when the test fails.
struct Opened(&'static Proxy);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.set(Network::Open);
    }
}

#[test]
fn g01_g02_g03_an_instance_without_network_loses_and_doubles_nothing() {
    let _brokers = Brokers::share();
    let proxy = Opened(Proxy::shared());
    // The broker misses the instance after two seconds.
    let deployment = Deployment::new()
        // Of several types, the assignor may give all of one's partitions to one instance.
        .with("MILLRACE_ONLY_TYPE", "bank-account")
        .with("MILLRACE_SESSION_TIMEOUT_MS", "2000")
        .with("MILLRACE_TRANSACTION_TIMEOUT_MS", "3000");
    let behind = deployment.clone().with("MILLRACE_KAFKA_BOOTSTRAP", &proxy.0.bootstrap);
    let services = vec![behind.command_service("behind"), deployment.command_service("other")];
    let both = |what: &str| {
        deployment
            .wait_for_owners(what, |owners| ["behind", "other"].iter().all(|one| owners.values().any(|o| o == one)))
    };
    both("share for both");
    let busy = Busy::start(deployment.clone(), services);
    let troubles = [Network::Deaf, Network::Cut, Network::Silent];
    for trouble in &troubles[..if *LONG { 3 } else { 1 }] {
        note(&format!("{trouble:?}"));
        proxy.0.set(*trouble);
        deployment.wait_for_owners("partitions all with the other instance", |owners| {
            owners.values().all(|owner| owner == "other")
        });
        busy.load.wait_for_more(50);
        proxy.0.set(Network::Open);
        both("share for the instance that is back");
    }
    note("cut too shortly for anybody to be missed");
    for _ in 0..if *LONG { 20 } else { 2 } {
        proxy.0.set(Network::Cut);
        busy.load.wait_for_more(1);
        proxy.0.set(Network::Open);
        busy.load.wait_for_more(20);
    }
    note("slow");
    proxy.0.set(Network::Slow(Duration::from_millis(50)));
    busy.load.wait_for_more(50);
    proxy.0.set(Network::Open);
    busy.check();
}
