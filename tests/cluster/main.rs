//! Brokers that are killed and frozen, a network that is cut, a clock that jumps, on a cluster of three brokers: every
//! command that was acknowledged is in the log, once, the service is ready again in bounded time, and the views equal the
//! log. Names begin with the guarantee that a test is about.
//!
//! `FAULTS=long` does more of everything.

mod alone;
mod brokers;
mod clock;
mod network;

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use millrace_tests::{Deployment, LONG, eventually_within, ledger, load::Load, services::Service};

/// Prints what a test is at, and when.
fn note(what: &str) {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("{:6.1} s: {what}", START.elapsed().as_secs_f64());
}

const CLIENTS: usize = 8;
const ACCOUNTS: usize = 6;
/// From the end of a fault until the service is ready: a session, and a restore.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A deployment whose clients are kept busy.
struct Busy {
    deployment: Deployment,
    services: Vec<Service>,
    /// The views have to bear what happens to the log.
    _projector: Service,
    load: Load,
}

impl Busy {
    /// With clients that have been told about some commands.
    #[track_caller]
    fn start(deployment: Deployment, services: Vec<Service>) -> Self {
        let load = Load::start(services.iter().map(Service::url).collect(), CLIENTS, ACCOUNTS);
        let projector = deployment.projector_service("views");
        load.wait_for_more(50);
        note("busy");
        Self { deployment, services, _projector: projector, load }
    }

    /// After a fault: clients are told about many more commands, all services are ready, the log holds what clients were
    /// told, and the views equal the log.
    #[track_caller]
    fn check(self) {
        note("hurt");
        self.load.wait_for_more(100);
        note("answered");
        for service in &self.services {
            eventually_within(READY_LIMIT, "readiness after the fault", || service.ready());
        }
        let (told, troubles) = self.load.stop();
        note(&format!("{} commands; asked again: {troubles:?}", told.len()));
        ledger::check(&self.deployment, &told, &self.services[0], if *LONG { 200 } else { 20 });
        self.deployment.verify_all();
        note("checked");
    }
}
