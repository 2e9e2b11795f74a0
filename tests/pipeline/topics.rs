//! Commands from the topic and events to the topic, with programs of another make at the other end.

use std::collections::HashSet;

use millrace_tests::{
    Services, account, commands,
    kafka::{self, Draft, Producer},
    process::{command, run},
    python,
    services::{new_id, new_key},
    wait::PATIENCE,
};
use serde_json::{Value, json};

/// Runs a Python example; its output, line by line.
#[track_caller]
fn example(services: &Services, name: &str, args: &[&str]) -> Vec<String> {
    let output = python::example(name, args, &services.deployment.env);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} ended with {}:\n{out}\n{err}", output.status);
    out.lines().map(str::to_owned).collect()
}

#[test]
fn python_sends_commands_with_its_own_partitioner_and_reads_events() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let own = |id: &str| deployment.partition_of(id).to_string();
    // CRC32 puts some of them elsewhere than murmur2, and at least one is wanted that lies wrong.
    let mut misrouted = None;
    for _ in 0..20 {
        let id = new_id();
        let places = example(&services, "send_commands.py", &[&id]);
        assert_eq!(places.len(), 3, "{places:?}");
        let outcomes = wait_for_outcomes(&services, &id, 3);
        let command_ids: Vec<_> = outcomes.iter().map(|(_, outcome)| outcome["command_id"].clone()).collect();
        let topic_ids = &outcomes[2].0.header("millrace_origin").expect("an origin");
        assert_eq!(command_ids, [json!("open"), json!("salary-2026-01"), json!(places[2])], "{topic_ids}");
        for ((record, outcome), place) in outcomes.iter().zip(&places) {
            is_well_formed(&services, record, outcome, &id);
            assert_eq!(record.header("millrace_origin").as_ref(), Some(place));
            assert_eq!(outcome["outcome"], "accepted", "{outcome}");
        }
        let events = deployment.events(&id);
        let folded = account::fold(&id, &events).expect("it was opened");
        assert_eq!((&folded["owner"], &folded["balance_minor"]), (&json!("Grace"), &json!(5_000)));
        services.view_is_the_fold_of_the_log(&id);
        if places[0].split('/').nth(1) != Some(&own(&id)) {
            misrouted = Some(id);
            break;
        }
    }
    let id = misrouted.expect("twenty ids in a row that CRC32 and murmur2 put into the same partition");

    let lines = example(&services, "read_events.py", &[]);
    let read: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of_id: Vec<_> = read.into_iter().filter(|event| event["account"] == id).collect();
    let expected: Vec<_> = deployment
        .events(&id)
        .into_iter()
        .map(|event| {
            json!({"account": id, "sequence": event.sequence, "type": event.kind, "time": event.time, "data": event.fields})
        })
        .collect();
    assert_eq!(of_id, expected);
}

fn wait_for_outcomes(services: &Services, id: &str, count: usize) -> Vec<(kafka::Record, Value)> {
    millrace_tests::eventually(&format!("{count} outcomes of {id}"), || {
        let mut all = services.deployment.outcomes();
        all.retain(|(_, outcome)| outcome["aggregate_id"] == id);
        if all.len() == count { Ok(all) } else { Err(format!("there are {}: {all:?}", all.len())) }
    })
}

/// What the contract says of every outcome record.
#[track_caller]
fn is_well_formed(services: &Services, record: &kafka::Record, outcome: &Value, id: &str) {
    let partition = services.deployment.partition_of(id);
    assert_eq!(record.partition, partition, "outcomes lie in the partition of their aggregate");
    assert_eq!(record.key.as_deref(), outcome["command_id"].as_str().map(str::as_bytes));
    assert_eq!((&outcome["aggregate_type"], &outcome["aggregate_id"]), (&json!("bank-account"), &json!(id)));
    assert!(outcome["at"].as_i64().is_some_and(|at| at > 1_700_000_000_000_000), "microseconds: {outcome}");
    assert!(outcome["fingerprint"].as_array().is_some_and(|bytes| !bytes.is_empty()), "{outcome}");
    let position = record.header("millrace_position").expect("a position");
    let parts: Vec<_> = position.split('/').collect();
    assert_eq!(parts.len(), 3, "{position}");
    assert_eq!(parts[1], partition.to_string(), "{position}");
    let commands = kafka::read(&services.deployment.topic("commands"), Some(partition));
    let handled = commands.iter().find(|command| command.offset.to_string() == parts[2]).expect("the command is there");
    assert_eq!(handled.key.as_deref(), Some(id.as_bytes()));
}

#[test]
fn kcat_sends_a_command() {
    let services = Services::shared();
    let id = services.open("Hana");
    let (file, key) = (millrace_tests::Stack::shared().dir.join(&id), new_key());
    std::fs::write(&file, commands::deposit(777)).expect("the scratch folder is writable");
    let mut kcat = command("kcat");
    kcat.args(["-P", "-b", &services.deployment.env["MILLRACE_KAFKA_BOOTSTRAP"]]);
    kcat.args(["-t", &services.deployment.topic("commands"), "-k", &id, "-H", &format!("ce_id={key}")]).arg(&file);
    let output = run(kcat, PATIENCE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (record, outcome) = services.deployment.outcome(&key);
    is_well_formed(&services, &record, &outcome, &id);
    assert_eq!(outcome["events"], json!([{"sequence": 2, "type": "MoneyDeposited"}]));
    assert_eq!((&outcome["version"], &outcome["reason"], &outcome["detail"]), (&json!(2), &Value::Null, &Value::Null));
}

#[test]
fn java_and_librdkafka_and_everybody_else_may_choose_the_partition() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let topic = deployment.topic("commands");
    // librdkafka's own murmur2 agrees with ours, so nothing is forwarded.
    let java = Producer::new("murmur2_random");
    let id = services.open("Iris");
    let key = new_key();
    let place = java.send(&topic, &Draft::new(&id, commands::deposit(1)).header("ce_id", &key));
    assert_eq!(place.partition, deployment.partition_of(&id));
    let (record, _) = deployment.outcome(&key);
    let position = record.header("millrace_position").expect("a position");
    assert!(position.ends_with(&format!("/{}/{}", place.partition, place.offset)), "{position} is not {place}");

    // From every partition, in every order; what is forwarded keeps its time, and is decided once.
    for partition in 0..deployment.partitions {
        let key = new_key();
        let past = 1_600_000_000_000 + i64::from(partition);
        let mut draft = Draft::new(&id, commands::deposit(10)).header("ce_id", &key).to(partition);
        draft.headers.push(("ce_correlationid", Some(b"a-story".to_vec())));
        draft.timestamp_ms = Some(past);
        let place = java.send(&topic, &draft);
        let (record, outcome) = deployment.outcome(&key);
        is_well_formed(&services, &record, &outcome, &id);
        assert_eq!(record.header("millrace_origin"), Some(place.to_string()));
        let in_partition = kafka::read(&topic, Some(deployment.partition_of(&id)));
        let handled: Vec<_> =
            in_partition.iter().filter(|command| command.header("ce_id").as_ref() == Some(&key)).collect();
        assert_eq!(handled.len(), 1, "forwarded once");
        assert_eq!(handled[0].timestamp_ms, past, "the time stamp is kept");
        let event = deployment.events(&id).pop().expect("an event");
        assert_eq!(event.command_id, key);
        assert_eq!(event.record.header("ce_correlationid").as_deref(), Some("a-story"));
    }

    // Without a command id, the place where it first lay is its id: two equal records are two commands.
    let elsewhere = (deployment.partition_of(&id) + 1) % deployment.partitions;
    let draft = Draft::new(&id, commands::withdraw(1, Some("rent"))).to(elsewhere);
    let places: HashSet<_> = (0..2).map(|_| java.send(&topic, &draft).to_string()).collect();
    for place in &places {
        assert_eq!(deployment.outcome(place).1["outcome"], "accepted");
    }
    let events = deployment.events(&id);
    let last: HashSet<_> = events[events.len() - 2..].iter().map(|event| event.command_id.clone()).collect();
    assert_eq!(last, places);
    account::fold(&id, &events);
}

#[test]
fn g05_repeats_on_the_topic_are_answered_by_equal_outcomes() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let topic = deployment.topic("commands");
    let producer = Producer::new("consistent_random");
    let id = services.open("Jonas");
    let key = new_key();
    let outcomes = |count| {
        millrace_tests::eventually(&format!("{count} outcomes"), || {
            let mut all = deployment.outcomes();
            all.retain(|(_, outcome)| outcome["command_id"] == key);
            if all.len() == count { Ok(all) } else { Err(format!("{all:?}")) }
        })
    };
    let send = |value| producer.send(&topic, &Draft::new(&id, value).header("ce_id", &key));
    send(commands::deposit(9));
    let first = outcomes(1).remove(0);
    assert_eq!(first.0.header("millrace_replayed"), None);
    send(commands::deposit(9));
    let repeat = outcomes(2).remove(1);
    assert!(repeat.0.header("millrace_replayed").is_some(), "{repeat:?}");
    assert_eq!(repeat.1, first.1, "an equal record");

    send(commands::deposit(8));
    let reused = outcomes(3).remove(2);
    assert_eq!((&reused.1["outcome"], &reused.1["reason"]), (&json!("rejected"), &json!("idempotency-key-reused")));
    assert_ne!(reused.1["fingerprint"], first.1["fingerprint"], "that of the refused command");
    // It never becomes the stored outcome; over HTTP the answer is the same.
    send(commands::deposit(9));
    let again = outcomes(4).remove(3);
    assert_eq!(again.1, first.1);
    let http = services.command(&id, "deposit", &json!({"amount_minor": 9})).key(&key).send();
    assert_eq!((http.status, http.header("idempotency-replayed")), (200, Some("true")), "{http:?}");
    assert_eq!(deployment.events(&id).len(), 2);
}

#[test]
fn g04_refusals_on_the_topic_say_why() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let producer = Producer::new("murmur2_random");
    let id = new_id();
    let send = |value: Vec<u8>| {
        let key = new_key();
        producer.send(&deployment.topic("commands"), &Draft::new(&id, value).header("ce_id", &key));
        let (record, outcome) = deployment.outcome(&key);
        is_well_formed(&services, &record, &outcome, &id);
        (outcome["reason"].as_str().map(str::to_owned), outcome)
    };
    assert_eq!(send(commands::deposit(1)).0.as_deref(), Some("account-not-found"));
    assert_eq!(send(commands::open("Kamala", "EUR")).0, None);
    assert_eq!(send(commands::open("Kamala", "EUR")).0.as_deref(), Some("account-already-open"));
    let (reason, outcome) = send(commands::withdraw(1, None));
    assert_eq!(reason.as_deref(), Some("insufficient-funds"));
    let figures: Value = serde_json::from_str(outcome["detail"].as_str().expect("figures")).expect("JSON");
    assert_eq!((&figures["balance_minor"], &figures["requested_minor"]), (&json!(0), &json!(1)));
    assert_eq!(send(commands::close()).0, None);
    assert_eq!(send(commands::deposit(1)).0.as_deref(), Some("account-closed"));
    assert_eq!(deployment.events(&id).len(), 2);
}

#[test]
fn events_are_dated_by_their_commands_within_reason() {
    let services = Services::shared();
    let deployment = &services.deployment;
    let producer = Producer::new("murmur2_random");
    let id = new_id();
    let now = || jiff::Timestamp::now().as_millisecond();
    let hour = 3_600_000;
    let send = |value, timestamp_ms| {
        let key = new_key();
        let mut draft = Draft::new(&id, value).header("ce_id", &key);
        draft.timestamp_ms = Some(timestamp_ms);
        producer.send(&deployment.topic("commands"), &draft);
        assert_eq!(deployment.outcome(&key).1["outcome"], "accepted");
        let event = deployment.events(&id).pop().expect("an event");
        assert_eq!(event.command_id, key);
        event.time.parse::<jiff::Timestamp>().expect("RFC 3339").as_millisecond()
    };
    let long_ago = 725_846_400_000; // 1993
    assert_eq!(send(commands::open("Lucia", "EUR"), long_ago), long_ago);
    assert_eq!(send(commands::deposit(1), long_ago + hour), long_ago + hour);
    // Never backwards, never into the future.
    assert_eq!(send(commands::deposit(1), long_ago), long_ago + hour);
    let before = now();
    let future = send(commands::deposit(1), before + 24 * hour);
    assert!((before..=now()).contains(&future), "{future} lies in the future");
    let after = send(commands::deposit(1), now());
    assert!((future..=now()).contains(&after), "frozen in the future: {after}");
    services.view_is_the_fold_of_the_log(&id);
}
