//! `command-service replay` shows how an account's state came to be, from the log alone.

use apache_avro::types::Value as Avro;
use millrace_tests::{
    Deployment, Services,
    account::Event,
    avro::{Registry, encode},
    commands, eventually,
    kafka::{self, Draft, Producer, Record},
    services::{command_at, new_id, open_at},
    tool::Ran,
};
use serde_json::{Value, json};

/// What happens to the account, a day each, from the first of January on.
fn story() -> Vec<Vec<u8>> {
    vec![
        commands::open("Ada Lovelace", "EUR"),
        commands::deposit_for(10_000, Some("salary")),
        commands::withdraw(2_500, Some("rent")),
        commands::deposit(7),
        commands::withdraw(7_507, None),
        commands::close(),
    ]
}

/// The state after each of these.
fn states() -> Vec<Value> {
    let open = |balance_minor: i64| json!({"status": "open", "balance_minor": balance_minor, "currency": "EUR"});
    vec![open(0), open(10_000), open(7_500), open(7_507), open(0), json!({"status": "closed"})]
}

fn day(number: usize) -> String {
    format!("2026-01-{number:02}T12:00:00.000000Z")
}

/// Tells the story of an account, and something of the neighbours that share its partition in between.
fn tell(deployment: &Deployment, id: &str, neighbours: &[String]) {
    let producer = Producer::new("murmur2_random");
    let topic = deployment.topic("commands");
    // Noon of the first of January 2026.
    let (noon_ms, day_ms) = (1_767_268_800_000_i64, 86_400_000);
    let mut at = noon_ms;
    for (number, value) in story().into_iter().enumerate() {
        for neighbour in neighbours {
            let value = if number == 0 { commands::open("Basil", "CZK") } else { commands::deposit(1) };
            producer.send(&topic, &Draft::new(neighbour, value));
        }
        let draft = Draft::new(id, value).header("ce_id", format!("step-{}", number + 1));
        producer.send(&topic, &Draft { timestamp_ms: Some(at), ..draft });
        at += day_ms;
    }
    wait_for_events(deployment, id, story().len());
}

fn wait_for_events(deployment: &Deployment, id: &str, count: usize) {
    eventually(&format!("{count} events of {id}"), || {
        let found = of_key(deployment, id).len();
        if found == count { Ok(()) } else { Err(format!("there are {found}")) }
    });
}

/// All records of the event topic with this key, whatever they are.
fn of_key(deployment: &Deployment, id: &str) -> Vec<Record> {
    let records = kafka::read(&deployment.topic("events"), Some(deployment.partition_of(id)));
    records.into_iter().filter(|record| record.key.as_deref() == Some(id.as_bytes())).collect()
}

fn replay(deployment: &Deployment, id: &str, flags: &[&str]) -> Ran {
    deployment.run_tool(&[&["replay", "--aggregate", "bank-account", "--id", id], flags].concat())
}

#[track_caller]
fn ended(ran: &Ran, code: i32, says: &[&str]) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    for text in says {
        assert!(ran.errors.contains(text), "{text:?} is not said: {ran:?}");
    }
}

#[test]
fn g03_a_replay_shows_every_event_in_order_with_the_state_after_it() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let id = new_id();
    let home = deployment.partition_of(&id);
    let neighbours: Vec<_> = (0..20).map(|_| deployment.id_in(home)).collect();
    tell(deployment, &id, &neighbours);

    let expected: Vec<Value> = deployment
        .events(&id)
        .into_iter()
        .zip(states())
        .enumerate()
        .map(|(at, (event, state))| {
            json!({
                "sequence": at + 1, "time": day(at + 1), "event_id": format!("bank-account/{id}/{}", at + 1),
                "command_id": format!("step-{}", at + 1), "event": event.kind, "data": event.fields, "state": state,
                "position": event.record.place(),
            })
        })
        .collect();
    let last = expected.len();
    let whole = replay(deployment, &id, &["--json"]);
    ended(&whole, 0, &[]);
    assert_eq!(whole.json_lines(), expected);
    assert_eq!(whole.errors, "");

    // Up to a version, or a time, which is inclusive; the future is the present.
    for version in [1, 3, last] {
        let ran = replay(deployment, &id, &["--json", "--at-version", &version.to_string()]);
        ended(&ran, 0, &[]);
        assert_eq!(ran.json_lines(), expected[..version]);
    }
    for (time, count) in [
        (day(1).as_str(), 1),
        ("2026-01-03T11:59:59.999999Z", 2),
        ("2026-01-03T12:00:00Z", 3),
        ("2026-01-03T14:00:00+02:00", 3),
        ("2026-01-05T23:00:00Z", 5),
        ("2999-01-01T00:00:00Z", last),
    ] {
        let ran = replay(deployment, &id, &["--json", "--as-of", time]);
        ended(&ran, 0, &[]);
        assert_eq!(ran.json_lines(), expected[..count], "{time}");
    }

    // For people: a head, a line an event, the result.
    let ran = replay(deployment, &id, &["--at-version", "3"]);
    ended(&ran, 0, &[]);
    let lines: Vec<_> = ran.output.lines().collect();
    let [head, opened, _, withdrawn, result] = lines[..] else { panic!("{ran:?}") };
    for (line, parts) in [
        (head, &[&*id, &format!("{}/{home}", deployment.topic("events"))][..]),
        (opened, &["1  ", &day(1), "AccountOpened", r#"owner="Ada Lovelace" currency="EUR""#, "balance_minor=0"]),
        (
            withdrawn,
            &["3  ", &day(3), "MoneyWithdrawn", r#"amount_minor=2500 reference="rent""#, "=> ", "balance_minor=7500"],
        ),
        (result, &["version 3", "3 events", r#"status="open" balance_minor=7500"#]),
    ] {
        for part in parts {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
    }

    // What is not there.
    let beyond = replay(deployment, &id, &["--at-version", "7", "--json"]);
    ended(&beyond, 1, &[&id, "no version 7", "1 to 6"]);
    let before = replay(deployment, &id, &["--as-of", "2026-01-01T11:59:59Z"]);
    ended(&before, 1, &[&id, "no event up to 2026-01-01T11:59:59.000000Z", &day(1)]);
    let nobody = replay(deployment, "nobody", &[]);
    ended(&nobody, 1, &["there is no bank-account nobody"]);
}

#[test]
fn g13_a_replay_of_what_cannot_be_is_refused_with_the_reason() {
    let services = Services::shared();
    let run = |aggregate: &str, id: &str, flags: &[&str]| {
        services.deployment.run_tool(&[&["replay", "--aggregate", aggregate, "--id", id], flags].concat())
    };
    for (ran, says) in [
        (run("pirate-ship", "acc-42", &[]), &["pirate-ship", "there is bank-account"][..]),
        (run("bank-account", "two words", &[]), &["--id", "A-Z a-z 0-9"]),
        (run("bank-account", "stats", &[]), &["--id", "stats"]),
        (run("bank-account", "acc-42", &["--at-version", "0"]), &["--at-version"]),
        (run("bank-account", "acc-42", &["--at-version", "latest"]), &["--at-version"]),
        (run("bank-account", "acc-42", &["--as-of", "yesterday"]), &["--as-of", "RFC 3339"]),
        (
            run("bank-account", "acc-42", &["--at-version", "1", "--as-of", "2026-01-01T00:00:00Z"]),
            &["--at-version", "--as-of"],
        ),
        (services.deployment.run_tool(&["replay", "--id", "acc-42"]), &["--aggregate"]),
    ] {
        ended(&ran, 2, says);
        assert_eq!(ran.output, "", "{ran:?}");
    }
    // Topics that are not there, or have another number of partitions, would be read at the wrong place.
    let elsewhere = replay(&services.deployment, "acc-42", &["--topic-prefix", "nowhere"]);
    ended(&elsewhere, 1, &["nowhere.bank-account."]);
    let others = replay(&services.deployment, "acc-42", &["--partitions", "5"]);
    ended(&others, 1, &["3 partitions"]);
}

/// A copy of a record under another key.
fn copied(record: &Record, id: &str, partition: i32) -> Draft {
    let headers = record.headers.iter().map(|(name, value)| (&*name.clone().leak(), value.clone()));
    Draft {
        partition: Some(partition),
        key: Some(id.into()),
        value: record.value.clone(),
        headers: headers.collect(),
        timestamp_ms: Some(record.timestamp_ms),
    }
}

/// The same record with another sequence.
fn renumbered(mut draft: Draft, sequence: u64) -> Draft {
    draft.headers.retain(|(name, _)| *name != "ce_sequence");
    draft.header("ce_sequence", sequence.to_string())
}

/// A deposit in a version that no release of Millrace has written.
fn of_the_future() -> Vec<u8> {
    let schema = json!({
        "type": "record", "name": "MoneyDeposited", "namespace": "millrace.bank_account.events", "fields": [
            {"name": "amount_minor", "type": "long"},
            {"name": "reference", "type": ["null", "string"], "default": null},
            {"name": "colour", "type": "string", "default": "none"},
        ],
    });
    let id = Registry::shared().register("a-later-release", &schema);
    let null = Avro::Union(0, Box::new(Avro::Null));
    let fields = vec![("amount_minor", Avro::Long(1)), ("reference", null), ("colour", Avro::String("red".into()))];
    encode(id, &schema, fields)
}

/// What a line is about: a sequence and its state, or a problem.
fn gist(line: &Value) -> (Option<u64>, Value) {
    (line["sequence"].as_u64(), if line["problem"].is_null() { line["state"].clone() } else { json!("problem") })
}

#[test]
fn g12_g13_what_cannot_be_read_is_told_at_its_place_and_the_rest_is_shown() {
    let deployment = Deployment::new();
    let _service = deployment.command_service("c1");
    let (producer, topic) = (Producer::new("murmur2_random"), deployment.topic("events"));
    let good = new_id();
    let home = deployment.partition_of(&good);
    // Garbage of others, before and between: it is not even looked at.
    let (stranger, garbage) = (deployment.id_in(home), || b"garbage\x1b[2J".to_vec());
    let raw = |key: Option<&str>, value| Draft { key: key.map(Into::into), value, ..Draft::default() }.to(home);
    producer.send(&topic, &raw(None, Some(garbage())));
    producer.send(&topic, &raw(Some(&stranger), None));
    tell(&deployment, &good, std::slice::from_ref(&stranger));
    let whole = replay(&deployment, &good, &["--json"]);
    ended(&whole, 0, &[]);
    let gists: Vec<_> = whole.json_lines().iter().map(gist).collect();
    let states = states();
    assert_eq!(gists, (1..).map(Some).zip(states.clone()).collect::<Vec<_>>());

    // Copies of this account's history, each with a fault in it.
    let history = of_key(&deployment, &good);
    let story = |faulty: &dyn Fn(&str) -> Vec<Draft>| {
        let id = deployment.id_in(home);
        let places: Vec<_> = faulty(&id).iter().map(|draft| producer.send(&topic, draft).to_string()).collect();
        (id, places)
    };
    let event = |id: &str, sequence: usize| copied(&history[sequence - 1], id, home);
    let shown = |sequence: usize| (Some(sequence as u64), states[sequence - 1].clone());
    let unknown = |sequence: u64| (Some(sequence), Value::Null);
    let problem = || (None, json!("problem"));

    // Records that Millrace did not write take nothing away: the sequences go on behind them.
    let (id, places) = story(&|id| {
        let unreadable = Draft { value: Some(garbage()), ..event(id, 3) };
        let far = Draft { value: Some(garbage()), ..renumbered(event(id, 3), 999) };
        let none = Draft { value: None, ..event(id, 3) };
        let bare = Draft { headers: Vec::new(), ..event(id, 3) };
        let mut drafts = vec![event(id, 1), event(id, 2), raw(Some(id), Some(garbage())), unreadable, far, none, bare];
        drafts.extend((3..=6).map(|sequence| event(id, sequence)));
        drafts
    });
    let ran = replay(&deployment, &id, &["--json"]);
    ended(&ran, 1, &["5 problems"]);
    let lines = ran.json_lines();
    let mut expected = vec![shown(1), shown(2)];
    expected.extend((0..5).map(|_| problem()));
    expected.extend((3..=6).map(shown));
    assert_eq!(lines.iter().map(gist).collect::<Vec<_>>(), expected);
    let found: Vec<_> = lines.iter().map(|line| line["position"].as_str().expect("lines have positions")).collect();
    assert_eq!(found, places);
    // A far sequence in garbage does not end a replay up to a version early.
    let ran = replay(&deployment, &id, &["--json", "--at-version", "4"]);
    ended(&ran, 1, &["5 problems"]);
    assert_eq!(ran.json_lines().iter().map(gist).collect::<Vec<_>>(), expected[..9]);
    // People see the same, with nothing in it that a terminal would obey.
    let ran = replay(&deployment, &id, &[]);
    ended(&ran, 1, &["5 problems"]);
    for place in &places[2..7] {
        let told = ran.output.lines().any(|line| line.trim_start().starts_with('!') && line.contains(place));
        assert!(told, "{place} is not told: {}", ran.output);
    }
    assert!(ran.output.contains("balance_minor=7500") && ran.output.contains("5 problems"), "{}", ran.output);
    assert!(!ran.output.contains('\x1b'), "{ran:?}");

    // An event is missing: what follows is shown, but nobody knows the state.
    let (id, places) = story(&|id| [1, 2, 4, 5].iter().map(|sequence| event(id, *sequence)).collect());
    let ran = replay(&deployment, &id, &["--json"]);
    ended(&ran, 1, &["1 problem"]);
    let lines = ran.json_lines();
    let gists: Vec<_> = lines.iter().map(gist).collect();
    assert_eq!(gists, [shown(1), shown(2), problem(), unknown(4), unknown(5)]);
    assert_eq!(lines[2]["position"], places[2].as_str());
    assert_eq!(lines[2]["problem"], "sequence 4 comes after 2; the state is not known");
    let ran = replay(&deployment, &id, &[]);
    assert!(ran.output.lines().last().is_some_and(|line| line.contains("not known")), "{ran:?}");
    let ran = replay(&deployment, &id, &["--at-version", "3"]);
    ended(&ran, 1, &["no version 3", "4 comes after 2"]);
    ended(&replay(&deployment, &id, &["--at-version", "2"]), 0, &[]);

    // An event comes twice: the second one does not count.
    let (id, places) = story(&|id| [1, 2, 2, 3].iter().map(|sequence| event(id, *sequence)).collect());
    let ran = replay(&deployment, &id, &["--json"]);
    ended(&ran, 1, &["1 problem"]);
    let lines = ran.json_lines();
    assert_eq!(lines.iter().map(gist).collect::<Vec<_>>(), [shown(1), shown(2), problem(), shown(3)]);
    assert_eq!(lines[2]["position"], places[2].as_str());

    // An event of a later release: this one must not guess what it means.
    let (id, places) = story(&|id| {
        let later = Draft { value: Some(of_the_future()), ..event(id, 2) };
        vec![event(id, 1), later, event(id, 3)]
    });
    let ran = replay(&deployment, &id, &["--json"]);
    ended(&ran, 1, &["2 problems"]);
    let lines = ran.json_lines();
    assert_eq!(lines.iter().map(gist).collect::<Vec<_>>(), [shown(1), problem(), problem(), unknown(3)]);
    assert_eq!(lines[1]["position"], places[1].as_str());
    assert!(lines[1]["problem"].as_str().is_some_and(|text| text.contains("version")), "{lines:?}");

    // Nothing but garbage is no account, and what was never committed is not even that.
    let id = deployment.id_in(home);
    producer.send(&topic, &raw(Some(&id), Some(garbage())));
    ended(&replay(&deployment, &id, &[]), 1, &["there is no", "no event of it that can be read"]);
    kafka::OpenTransaction::begin(&topic, deployment.partition_of("nobody")).abort();
    let ran = replay(&deployment, "nobody", &["--json"]);
    ended(&ran, 1, &["there is no bank-account nobody"]);
    assert_eq!(ran.output, "");

    // A log that was cut says so.
    let third = Event::decode(history[2].clone());
    kafka::delete_before(&topic, home, third.record.offset);
    let ran = replay(&deployment, &good, &[]);
    ended(&ran, 1, &["1 problem"]);
    assert!(ran.output.contains(&format!("before offset {} are gone", third.record.offset)), "{ran:?}");
    assert!(ran.output.contains("sequence 3 comes after 0"), "{ran:?}");
    ended(&replay(&deployment, &good, &["--at-version", "2"]), 1, &["no version 2", "3 comes after 0"]);
}

/// The lines that tell what is kept beside the log.
fn copies(ran: &Ran) -> Vec<Value> {
    ran.json_lines().into_iter().filter(|line| line["compared"].is_string()).collect()
}

#[test]
fn g05_what_snapshots_and_stores_hold_is_compared_with_the_log() {
    let deployment = Deployment::new().with("MILLRACE_SNAPSHOT_EVENTS", "4").with("MILLRACE_STORE_INTERVAL_MS", "50");
    // None comes between those that are forged below.
    let deployment = deployment.with("MILLRACE_SNAPSHOT_INTERVAL", "1h");
    let service = deployment.command_service("c1");
    let ids = [deployment.id_in(0), deployment.id_in(0)];
    for id in &ids {
        open_at(&service, id, "Ada");
        for _ in 0..4 {
            let amount = if *id == ids[0] { 100 } else { 7 };
            let answer = command_at(&service, id, "deposit", &json!({"amount_minor": amount})).send();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    // Both get there by and by, the service being at work.
    let agreeing = eventually("a snapshot and a store of it", || {
        let ran = replay(&deployment, &ids[0], &["--diff", "--json"]);
        ended(&ran, 0, &[]);
        let copies = copies(&ran);
        assert!(copies.iter().all(|copy| copy["difference"].is_null() && copy["unused"].is_null()), "{copies:?}");
        let kinds: Vec<_> = copies.iter().map(|copy| (&copy["compared"], copy["version"].as_u64())).collect();
        match kinds.as_slice() {
            [(snapshot, Some(2..)), (store, Some(5))] if *snapshot == "snapshot" && *store == "store" => Ok(copies),
            _ => Err(format!("{copies:?}")),
        }
    });
    assert_eq!(agreeing[1]["state"], json!({"status": "open", "balance_minor": 400, "currency": "EUR"}));
    let ran = replay(&deployment, &ids[0], &["--diff"]);
    ended(&ran, 0, &[]);
    assert!(ran.output.contains("\nsnapshot ") && ran.output.contains("\nstore "), "{ran:?}");
    assert_eq!(ran.output.matches(": agrees\n").count(), 2, "{ran:?}");

    // Snapshots that the service did not write; it reads none as long as it runs.
    let snapshots = kafka::read(&deployment.topic("snapshots"), Some(0));
    let last = |id: &str| snapshots.iter().rfind(|record| record.key.as_deref() == Some(id.as_bytes()));
    let (ours, theirs) = (last(&ids[0]).expect("a snapshot"), last(&ids[1]).expect("a snapshot"));
    let producer = Producer::new("murmur2_random");
    for (sequence, value, says) in [
        (None, &theirs.value, "the log says status=\"open\" balance_minor="),
        (Some("99"), &ours.value, "it is of version 99, which is not in the log"),
        (Some("1"), &ours.value, "it is of version 1, but covers the log up to version"),
    ] {
        let mut forged = Draft::new(&ids[0], value.clone().expect("a value"));
        for name in ["ce_sequence", "ce_time", "millrace_topic_id", "millrace_state_version"] {
            let known = ours.header(name).expect("a header");
            forged = forged.header(name, sequence.filter(|_| name == "ce_sequence").unwrap_or(&known));
        }
        let at = producer.send(&deployment.topic("snapshots"), &forged.to(0));
        let ran = replay(&deployment, &ids[0], &["--diff", "--json"]);
        ended(&ran, 1, &["1 problem"]);
        let copies = copies(&ran);
        let difference = copies[0]["difference"].as_str().unwrap_or_default();
        assert!(difference.contains(says), "{says}, not {copies:?}, at {at:?}");
        assert!(copies[1]["difference"].is_null(), "{copies:?}");
    }
    drop(service);
    // The store of another partition's instance is none of it; one that is damaged is not used.
    let store = std::path::Path::new(&deployment.data_dir())
        .join(format!("{}.command/c1/bank-account/0.redb", deployment.prefix));
    std::fs::write(&store, [7; 20_000]).expect("a file");
    let ran = replay(&deployment, &ids[1], &["--diff", "--json"]);
    ended(&ran, 0, &[]);
    let unused = copies(&ran)[1]["unused"].as_str().map(str::to_owned).expect("it is not used");
    assert!(unused.contains("damaged"), "{unused}");
}
