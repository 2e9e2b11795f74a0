//! A disk that is full under Kafka: commands are not acknowledged while nothing can be written, nothing that was is
//! lost, and all goes on when there is room again.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    sync::LazyLock,
    time::{Duration, Instant},
};

use millrace_tests::{
    Deployment, Stack, brokers::Brokers, eventually_within, ledger, load::Load, services::command_at,
};
use serde_json::json;

/// The broker's session, its start, and a restore.
const READY_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn g01_g02_g03_a_full_disk_loses_and_doubles_nothing() {
    note("starting");
    let brokers = Brokers::take();
    // Nobody has to wait for long to be told that nobody knows.
    let deployment = Deployment::new().with("MILLRACE_OUTCOME_TIMEOUT_MS", "2000");
    let deployment = deployment.with("MILLRACE_TRANSACTION_TIMEOUT_MS", "3000");
    let service = deployment.command_service("one");
    let load = Load::start(vec![service.url()], 8, 6);
    load.wait_for_more(50);

    note("filling");
    let filler = Stack::shared().data.join("filler");
    fill(&filler);
    eventually_within(READY_LIMIT, "service that says that Kafka does not answer", || match service.ready() {
        Ok(()) => Err("it is ready".to_owned()),
        Err(_) => Ok(()),
    });
    let answer = command_at(&service, "somebody", "deposit", &json!({"amount_minor": 1})).send();
    assert!(matches!(answer.status, 503 | 504), "{answer:?}");

    note("room again");
    fs::remove_file(&filler).expect("the filler is ours");
    eventually_within(READY_LIMIT, "service that is ready again", || service.ready());
    note("ready");
    load.wait_for_more(100);
    note("answered");
    let (told, troubles) = load.stop();
    println!("{} commands; asked again: {troubles:?}", told.len());
    ledger::check(&deployment, &told, &service, 20);
    brokers.wait_in_sync();
}

/// Prints what the test is at, and when.
fn note(what: &str) {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("{:6.1} s: {what}", START.elapsed().as_secs_f64());
}

/// Writes until nothing more fits.
fn fill(path: &std::path::Path) {
    let mut file = File::create(path).expect("the disk can be written");
    let mut bytes = vec![0; 1 << 20];
    while !bytes.is_empty() {
        match file.write_all(&bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => bytes.truncate(bytes.len() / 2),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}
