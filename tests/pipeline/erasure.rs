//! Personal data: it lies in clear nowhere once it was handled, and for nobody any more once it was erased.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_tests::{
    Deployment, Stack, eventually, eventually_within,
    http::{Answer, Request, post},
    kafka::{self, Draft, Producer, Record},
    services::{Service, new_id, new_key},
};
use serde_json::{Value, json};

/// What a tester is called; in no other text.
const MARKERS: [&str; 9] = [
    "Zaphira",
    "Quillon",
    "Zenobia",
    "Quarrick",
    "xyzzy1@example.org",
    "xyzzy2@example.org",
    "Plughstreet",
    "Frotzheim",
    "94712x",
];
/// All that the type has.
const TOPICS: [&str; 7] = ["commands", "events", "outcomes", "snapshots", "dead-letters", "scheduled", "keys"];
/// The brokers look for what is to be compacted every 15 s; the rest is what was set, and a busy machine.
const FORGET_LIMIT: Duration = Duration::from_secs(60);

fn registration() -> Value {
    let address = json!({"street": "Plughstreet 1", "postal_code": "94712x", "city": "Frotzheim", "country": "DE"});
    json!({"given_name": "Zaphira", "family_name": "Quillon", "email": "xyzzy1@example.org", "address": address})
}

fn request(service: &Service, id: &str, command: &str, body: &Value) -> Request {
    post(&format!("{}/v1/users/{id}/{command}", service.url())).json(body)
}

#[track_caller]
fn accepted(service: &Service, id: &str, command: &str, body: &Value) -> Answer {
    let answer = request(service, id, command, body).send();
    assert!([200, 201].contains(&answer.status), "{command}: {answer:?}");
    answer
}

fn topic(deployment: &Deployment, suffix: &str) -> String {
    deployment.topic_of("user", suffix)
}

fn found_in(bytes: &[u8]) -> Option<&'static str> {
    MARKERS.into_iter().find(|marker| holds(bytes, marker.as_bytes()))
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Fails at the first record that holds personal data in clear.
fn no_marker(record: &Record) -> Result<(), String> {
    let headers = record.headers.iter().filter_map(|(_, value)| value.as_deref());
    let parts = headers.chain(record.key.as_deref()).chain(record.value.as_deref());
    match parts.into_iter().find_map(found_in) {
        Some(marker) => Err(format!("{marker} in {}", record.place())),
        None => Ok(()),
    }
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Fails at the first file of a topic, as the broker has it, that holds these bytes.
fn not_in_files(topic: &str, bytes: &[u8]) -> Result<(), String> {
    let of_topic = |path: &Path| {
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        folder.strip_prefix(topic).is_some_and(|rest| rest.starts_with('-'))
    };
    let all: Vec<_> = files(&Stack::shared().data).into_iter().filter(|path| of_topic(path)).collect();
    assert!(!all.is_empty(), "the files of {topic} are not there");
    // One that is gone meanwhile holds nothing.
    match all.iter().find(|path| fs::read(path).is_ok_and(|text| holds(&text, bytes))) {
        Some(path) => Err(format!("it is in {}", path.display())),
        None => Ok(()),
    }
}

fn open_at_once(service: &Service) -> Result<Answer, String> {
    let body = json!({"owner": "Ada", "currency": "EUR"});
    post(&format!("{}/v1/bank-accounts/{}/open", service.url(), new_id())).json(&body).try_send()
}

/// The record that holds a user's key.
fn key_record(deployment: &Deployment, id: &str) -> Record {
    let records = kafka::read(&topic(deployment, "keys"), Some(deployment.partition_of(id)));
    let mut of_id = records.into_iter().filter(|record| record.key.as_deref() == Some(id.as_bytes()));
    of_id.next_back().unwrap_or_else(|| panic!("{id} has no key"))
}

#[test]
fn g14_personal_data_lies_in_clear_nowhere_and_is_gone_with_its_key() {
    let deployment = Deployment::new()
        .with("MILLRACE_FORGET_WITHIN", "2s")
        .with("MILLRACE_SNAPSHOT_INTERVAL", "1s")
        .with("MILLRACE_STORE_INTERVAL_MS", "100");
    let mut service = deployment.command_service("c1");
    let (id, garbage, key) = (new_id(), new_id(), new_key());
    let register = request(&service, &id, "register", &registration()).key(&key);
    assert_eq!(register.send().status, 201);
    let again = register.send();
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{again:?}");
    request(&service, &id, "change-email", &json!({"email": "xyzzy2@example.org"}))
        .key(&key)
        .send()
        .problem(422, "idempotency-key-reused");
    accepted(&service, &id, "change-name", &json!({"given_name": "Zenobia", "family_name": "Quarrick"}));
    accepted(&service, &id, "deactivate", &json!({}));
    let name = json!({"given_name": "Zaphira", "family_name": "Quillon"});
    request(&service, &id, "change-name", &name).send().problem(422, "user-inactive");
    accepted(&service, &id, "reactivate", &json!({}));
    let later = request(&service, &id, "change-email", &json!({"email": "xyzzy2@example.org"}));
    let later = later.header("Millrace-Not-Before", "2100-01-01T00:00:00Z").send();
    assert_eq!(later.status, 202, "{later:?}");
    // What can't be read, and what must be no key.
    let (commands, producer) = (topic(&deployment, "commands"), Producer::new("murmur2_random"));
    producer.send(&commands, &Draft::new(&garbage, b"\0\0\0\0\x01Zaphira Quillon".to_vec()));
    producer.send(&commands, &Draft::new("xyzzy1@example.org", b"Zaphira".to_vec()).header("ce_id", "Zaphira Quillon"));

    eventually("dead letters", || match kafka::read(&topic(&deployment, "dead-letters"), None).len() {
        2 => Ok(()),
        count => Err(format!("there are {count}")),
    });
    eventually("a snapshot", || {
        let records = kafka::read(&topic(&deployment, "snapshots"), Some(deployment.partition_of(&id)));
        records.into_iter().find(|record| record.key.as_deref() == Some(id.as_bytes())).ok_or("none".to_owned())
    });
    eventually("commands that are deleted", || kafka::read(&commands, None).iter().try_for_each(no_marker));
    let clear = |deployment: &Deployment| {
        for suffix in TOPICS {
            let records = kafka::read(&topic(deployment, suffix), None);
            assert!(suffix == "commands" || !records.is_empty(), "{suffix} is empty");
            records.iter().try_for_each(no_marker).unwrap();
        }
        let stores = files(Path::new(&deployment.data_dir()));
        assert!(!stores.is_empty(), "no local store was written");
        for path in stores.iter().chain([&service.log]) {
            assert_eq!(fs::read(path).ok().as_deref().and_then(found_in), None, "{}", path.display());
        }
    };
    clear(&deployment);

    // From its local store, and from the topics alone.
    for fresh in [false, true] {
        service.terminate();
        if fresh {
            fs::remove_dir_all(deployment.data_dir()).expect("the stores are there");
        }
        service.start_again();
        request(&service, &id, "register", &registration()).send().problem(422, "user-already-registered");
        accepted(&service, &id, "change-email", &json!({"email": "xyzzy1@example.org"}));
    }
    let key_bytes = key_record(&deployment, &id).value.expect("a key");
    let keys = topic(&deployment, "keys");
    assert!(not_in_files(&keys, &key_bytes).is_err(), "the search finds nothing");
    let exported = deployment.run_tool(&["export", "--aggregate", "user", "--id", &id]);
    assert_eq!((exported.code, found_in(exported.output.as_bytes())), (Some(0), None), "{exported:?}");

    let version = accepted(&service, &id, "erase", &json!({})).json()["aggregate"]["version"].clone();
    assert_eq!(key_record(&deployment, &id).value, None, "a tombstone");
    // Nothing else happens in its partition.
    eventually_within(FORGET_LIMIT, "key that is gone from the files", || not_in_files(&keys, &key_bytes));
    for fresh in [false, true] {
        for (command, body) in [("register", registration()), ("reactivate", json!({})), ("erase", json!({}))] {
            let problem = request(&service, &id, command, &body).send().problem(422, "user-erased");
            assert_eq!(problem["aggregate"]["version"], version);
        }
        service.terminate();
        if fresh {
            fs::remove_dir_all(deployment.data_dir()).expect("the stores are there");
        }
        service.start_again();
    }
    eventually("commands that are deleted", || kafka::read(&commands, None).iter().try_for_each(no_marker));
    deployment.check_log();
}

#[test]
fn g12_master_keys_are_rotated_and_one_that_is_missing_is_named() {
    const KEYS: &str = "MILLRACE_MASTER_KEYS";
    let [old, new] =
        ["old:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "new:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="];
    let mut deployment = Deployment::new().with("MILLRACE_DATA_DIR", "none");
    deployment.env.remove("MILLRACE_MASTER_KEYS_FILE");
    let with = |keys: String| deployment.clone().with(KEYS, keys);
    let (first, second) = (new_id(), new_id());
    let mut service = with(old.to_owned()).command_service("c1");
    accepted(&service, &first, "register", &registration());
    service.terminate();

    let mut service = with(format!("{new},{old}")).command_service("c1");
    accepted(&service, &first, "change-email", &json!({"email": "xyzzy2@example.org"}));
    accepted(&service, &second, "register", &registration());
    for id in [&first, &second] {
        eventually("keys that are encrypted anew", || match key_record(&deployment, id).value {
            Some(value) if holds(&value, b"new") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    service.terminate();

    // Without that one nobody could tell them from those who were erased.
    let mut service = with(old.to_owned()).launched_command_service("c1");
    eventually("a word on what is missing", || {
        let log = fs::read_to_string(&service.log).unwrap_or_default();
        if log.contains("master key new") { Ok(()) } else { Err(service.tail()) }
    });
    assert!(service.ready().is_err());
    service.kill();

    // So it would be with another key of that name; whoever has no such data is served meanwhile.
    let mut service = with(new.replace("AgIC", "AwID")).launched_command_service("c1");
    service.wait_logged(&format!("the key of {first} at offset"));
    service.wait_logged("under the name new");
    eventually("an account, opened", || {
        let answer = open_at_once(&service)?;
        if answer.status == 201 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert!(service.ready().is_err());
    service.kill();

    // The old one is needed no more.
    let service = with(new.to_owned()).command_service("c1");
    accepted(&service, &first, "change-email", &json!({"email": "xyzzy3@example.org"}));
}
