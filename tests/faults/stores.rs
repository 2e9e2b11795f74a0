//! Local stores that are cut off, lost, mixed up or spoiled: never a wrong answer.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use millrace_tests::{
    Deployment, commands, eventually,
    fail_points::Action,
    kafka::{Draft, Producer},
    process::binary,
    services::{Service, command_at, open_at},
    side_by_side,
    wait::PATIENCE,
};
use serde_json::json;

use crate::deployment;

/// An account in each partition.
fn open(deployment: &Deployment, service: &Service) -> Vec<String> {
    let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    ids.iter().for_each(|id| open_at(service, id, "Ada"));
    ids
}

/// Pays in at each account, and checks that it is the `version`th event, and that the first deposit was not forgotten.
#[track_caller]
fn deposit(service: &Service, ids: &[String], version: usize) {
    for id in ids {
        let deposit = |key: &str| command_at(service, id, "deposit", &json!({"amount_minor": 5})).key(key).send();
        let answer = deposit(&format!("deposit-{version}"));
        assert_eq!((answer.status, &answer.json()["aggregate"]["version"]), (200, &json!(version)), "{answer:?}");
        let again = deposit("deposit-2");
        assert_eq!((again.status, &again.json()["aggregate"]["version"]), (200, &json!(2)), "{again:?}");
        let overdraw = command_at(service, id, "withdraw", &json!({"amount_minor": 1_000_000})).send();
        let balance = json!(5 * (version - 1));
        assert_eq!((overdraw.status, &overdraw.json()["balance_minor"]), (422, &balance), "{overdraw:?}");
    }
}

/// Waits until the stores have been written since now.
#[track_caller]
fn wait_stored(service: &Service) {
    let commits = || service.metric("millrace_store_commit_seconds_count");
    // One may have begun before what is waited for; partitions take turns.
    let enough = commits() + 6.0;
    eventually("stores that are written", || match commits() {
        now if now >= enough => Ok(()),
        now => {
            // Only what is new is written.
            (0..3).for_each(|at| drop(command_at(service, &format!("nobody-{at}{now}"), "close", &json!({})).send()));
            Err(format!("{now} of {enough} times"))
        }
    });
}

#[test]
fn g02_g03_g05_an_instance_is_killed_between_the_log_and_its_store() {
    side_by_side(&["store-commit", "store-committed", "committed"], |point| {
        let deployment = deployment();
        let (mut service, points) = deployment.command_service_with_fail_points("c1");
        let ids = open(&deployment, &service);
        deposit(&service, &ids, 2);
        wait_stored(&service);
        points.arm(point, Action::Kill);
        // Whether it is answered depends on the point.
        let _ = command_at(&service, &ids[0], "deposit", &json!({"amount_minor": 5})).key("deposit-3").try_send();
        service.wait_ended();
        service.start_again();
        deposit(&service, &ids, 3);
        deployment.check_log();
    });
}

/// What happens to the stores while their instance is down.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Lost,
    OneLost,
    Swapped,
    Truncated,
    Flipped,
    Garbage,
    /// As they were some time ago: from a backup.
    Older,
}

#[test]
fn g02_g03_g05_stores_that_are_lost_mixed_up_or_spoiled_give_no_wrong_answer() {
    use Harm::*;
    side_by_side(&[Lost, OneLost, Swapped, Truncated, Flipped, Garbage, Older], |&harm| {
        let deployment = deployment();
        let mut service = deployment.command_service("c1");
        let ids = open(&deployment, &service);
        deposit(&service, &ids, 2);
        wait_stored(&service);
        service.kill();
        let older: Vec<_> =
            stores(&deployment).into_iter().map(|path| (fs::read(&path).expect("a store"), path)).collect();
        service.start_again();
        deposit(&service, &ids, 3);
        wait_stored(&service);
        service.kill();
        let stores = stores(&deployment);
        let [first, second, _] = stores.as_slice() else { panic!("one for each partition: {stores:?}") };
        match harm {
            Lost => stores.iter().for_each(|store| fs::remove_file(store).expect("a file")),
            OneLost => fs::remove_file(first).expect("a file"),
            Swapped => {
                let aside = first.with_extension("aside");
                fs::rename(first, &aside).expect("a file");
                fs::rename(second, first).expect("a file");
                fs::rename(aside, second).expect("a file");
            }
            Truncated => stores.iter().for_each(|store| {
                let file = File::options().write(true).open(store).expect("a file");
                file.set_len(file.metadata().expect("a length").len() / 2).expect("it can be cut");
            }),
            Flipped => stores.iter().for_each(|store| {
                alter(store, |bytes| {
                    bytes.iter_mut().step_by(997).for_each(|byte| *byte ^= 1);
                })
            }),
            Garbage => stores.iter().for_each(|store| alter(store, |bytes| bytes.fill(0xA5))),
            Older => older.iter().for_each(|(bytes, path)| fs::write(path, bytes).expect("a file")),
        }
        service.start_again();
        deposit(&service, &ids, 4);
        let log = fs::read_to_string(&service.log).expect("a log");
        let told = match harm {
            Lost | OneLost | Older => true,
            Swapped => log.contains("a foreign store is replaced"),
            Truncated | Flipped | Garbage => log.contains("a damaged store is replaced"),
        };
        assert!(told, "{harm:?}: {}", service.tail());
        deployment.check_log();
    });
}

#[test]
fn g01_g05_g16_a_disk_that_is_full_under_the_stores_costs_no_answer() {
    let mut deployment = deployment();
    // The service in a mount namespace of its own, with a small disk for its stores.
    let folder = PathBuf::from(deployment.data_dir()).with_extension("programs");
    let script = folder.join("command-service");
    fs::create_dir_all(&folder).expect("a folder");
    let text = format!(
        "#!/bin/sh\nmkdir -p {data}\nexec unshare --map-root-user --mount sh -c \
         'mount -t tmpfs -o size=3m tmpfs {data} && exec {program} \"$@\"' sh \"$@\"\n",
        data = deployment.data_dir(),
        program = binary("command-service").display(),
    );
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it can be run");
    deployment.bin_dir = Some(folder);
    let mut service = deployment.command_service("c1");
    let ids = open(&deployment, &service);
    deposit(&service, &ids, 2);
    let told = |text: &str| fs::read_to_string(&service.log).expect("a log").contains(text);
    assert!(!told("no local store"), "{}", service.tail());
    // Answers that don't fit.
    let commands = 30_000;
    let flood = Draft::new(&ids[0], commands::deposit(1)).to(0);
    Producer::new("murmur2_random").flood(&deployment.topic("commands"), &flood, commands);
    eventually("a store that can't be written", || match told("the local store can't be written") {
        true => Ok(()),
        false => Err(service.tail()),
    });
    // The flood was for the first account alone.
    deposit(&service, &ids[1..], 3);
    let version = commands + 3;
    let last = || command_at(&service, &ids[0], "deposit", &json!({"amount_minor": 5})).key("last");
    let answer = last().send_until_definite(PATIENCE);
    assert_eq!((answer.status, &answer.json()["aggregate"]["version"]), (200, &json!(version)), "{answer:?}");
    // The disk goes with the process.
    service.kill();
    service.start_again();
    deposit(&service, &ids[1..], 4);
    let again = command_at(&service, &ids[0], "deposit", &json!({"amount_minor": 5})).key("last").send();
    assert_eq!((again.status, &again.body), (200, &answer.body), "{again:?}");
    deployment.check_log();
}

/// The files of the stores, by partition.
fn stores(deployment: &Deployment) -> Vec<PathBuf> {
    let folder = PathBuf::from(&deployment.data_dir()).join(deployment.group()).join("c1").join("bank-account");
    let mut found: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    found
}

fn alter(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a store");
    how(&mut bytes);
    fs::write(path, bytes).expect("a store");
}
