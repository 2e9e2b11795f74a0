//! `command-service check-log` finds nothing in a good log, and in a faulty one exactly what is wrong with it.

mod copy;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use apache_avro::types::Value as Avro;
use millrace_tests::{
    Deployment, commands, eventually,
    kafka::{self, Draft, Producer, Record},
    services::{Service, command_at, new_id, new_key, open_at},
};
use serde_json::{Value, json};

use copy::{Copy, Writer, own_partition, set_field, set_header, set_time};

/// What every account goes through: command ids and commands, in this order. The last four have no events.
fn story() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("open", commands::open("Ada", "EUR")),
        ("deposit", commands::deposit(10)),
        ("withdraw", commands::withdraw(3, None)),
        ("deposit", commands::deposit(10)),
        ("deposit", commands::deposit(11)),
        ("much", commands::withdraw(1_000, None)),
        ("more", commands::withdraw(2_000, None)),
    ]
}

/// Sends the stories of accounts, interleaved, and waits until all of it is decided. Those from `forwarded` on are sent
/// by a producer with librdkafka's own partitioner: most of them lie in other accounts' partitions.
fn tell(deployment: &Deployment, ids: &[String], forwarded: usize) {
    let producers = [Producer::new("murmur2_random"), Producer::new("consistent_random")];
    let topic = deployment.topic("commands");
    for (command_id, value) in story() {
        for (at, id) in ids.iter().enumerate() {
            let producer = &producers[usize::from(at >= forwarded)];
            producer.send(&topic, &Draft::new(id, value.clone()).header("ce_id", command_id));
        }
    }
    for id in ids {
        // Garbage with the account's key, in its partition.
        let garbage = Draft::new(id, b"garbage".to_vec()).to(deployment.partition_of(id));
        producers[0].send(&topic, &garbage);
    }
    let answered = story().len() * ids.len();
    eventually("outcomes and dead letters of all commands", || {
        let found = (deployment.read("outcomes").len(), deployment.read("dead-letters").len());
        if found.0 >= answered && found.1 >= ids.len() { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[track_caller]
fn count(checked: &Value, name: &str) -> u64 {
    checked["types"]["bank-account"]["records"][name].as_u64().unwrap_or_else(|| panic!("{name}: {checked}"))
}

#[test]
fn g01_to_g04_a_good_log_has_no_findings_while_it_grows_and_when_it_is_cut() {
    let deployment = Deployment::new();
    let mut service = deployment.command_service("c1");
    let ids: Vec<_> = (0..9).map(|number| deployment.id_in(number % 3)).collect();
    tell(&deployment, &ids, 5);
    service.kill();
    service.launch();
    // While commands are waiting, and while they are decided.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let growing = scope.spawn(|| {
            let (producer, topic) = (Producer::new("consistent_random"), deployment.topic("commands"));
            for id in ids.iter().cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                // No command id: its place is its id.
                producer.send(&topic, &Draft::new(id, commands::deposit(1)));
            }
        });
        let checked: Vec<_> = (0..3)
            .map(|round| {
                if round == 1 {
                    service.wait_ready();
                }
                deployment.run_log_check(&["--json"])
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        growing.join().expect("commands could be sent");
        for checked in checked {
            assert_eq!(checked.code, Some(0), "{checked:?}");
        }
    });
    let sent =
        deployment.read("commands").iter().filter(|record| record.header("millrace_forwarded").is_none()).count();
    eventually("outcomes of all commands", || {
        let outcomes = deployment.read("outcomes").len() + ids.len();
        if outcomes == sent { Ok(()) } else { Err(format!("{outcomes} of {sent}")) }
    });
    service.terminate();

    let whole = deployment.log_check_json();
    assert_eq!(whole["findings"], 0, "{whole}");
    assert_eq!(whole["types"]["bank-account"]["not_judged"], serde_json::json!({}), "{whole}");
    let accounts = ids.len() as u64;
    for (name, expected) in [
        ("aggregates", accounts),
        ("repeats", accounts),
        ("dead_letters", accounts),
        ("events", deployment.read("events").len() as u64),
        ("commands", deployment.read("commands").len() as u64),
        ("waiting", 0),
    ] {
        assert_eq!(count(&whole, name), expected, "{name}: {whole}");
    }
    assert!(count(&whole, "forwarded") >= 3, "{whole}");

    // As retention does it: outcomes first in one partition, commands first in another, both in the third.
    for (topic, partition) in [("outcomes", 0), ("commands", 1), ("outcomes", 2), ("commands", 2), ("dead-letters", 2)]
    {
        let name = deployment.topic(topic);
        kafka::delete_before(&name, partition, kafka::end(&name, partition) / 2);
    }
    let cut = deployment.log_check_json();
    assert_eq!(cut["findings"], 0, "{cut}");
    let unjudged = &cut["types"]["bank-account"]["not_judged"];
    for what in ["events-without-kept-outcome", "commands-without-kept-outcome"] {
        assert!(unjudged[what].as_u64() > Some(0), "{what}: {cut}");
    }
    assert!(
        cut["types"]["bank-account"]["records"]["outcomes"].as_u64()
            < whole["types"]["bank-account"]["records"]["outcomes"].as_u64()
    );
}

#[test]
fn what_cannot_be_checked_is_no_good_log() {
    let deployment = Deployment::new();
    let missing = deployment.run_log_check(&[]);
    assert_eq!(missing.code, Some(2), "{missing:?}");
    assert!(missing.errors.contains(&deployment.topic("commands")), "{missing:?}");
    let unknown = deployment.run_log_check(&["--type", "pirate-ship"]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(unknown.errors.contains("pirate-ship"), "{unknown:?}");
}

fn text(text: &str) -> Avro {
    Avro::Union(1, Box::new(Avro::String(text.to_owned())))
}

/// Makes an event into one of another sequence.
fn renumber(event: &mut Record, id: &str, sequence: u64) {
    set_header(event, "ce_sequence", Some(&sequence.to_string()));
    set_header(event, "ce_id", Some(&format!("bank-account/{id}/{sequence}")));
}

type Plant = fn(&mut Copy, &str);

/// Each fault is planted in an account of its own: what is found there, and how it comes about.
const FAULTS: &[(&[&str], Plant)] = &[
    (&["command-lost"], |copy, id| {
        let at = copy.outcome(id, "more", 0);
        copy.outcomes.remove(at);
    }),
    (&["command-lost"], |copy, id| {
        let at = copy.letter(id);
        copy.letters.remove(at);
    }),
    (&["handled-twice"], |copy, id| {
        let at = copy.outcome(id, "more", 0);
        copy.outcomes.insert(at, copy.outcomes[at].clone());
    }),
    // Another answer to the same command.
    (&["handled-twice"], |copy, id| {
        let at = copy.outcome(id, "more", 0);
        let mut other = copy.outcomes[at].clone();
        set_field(&mut other, "version", &Avro::Long(4));
        copy.outcomes.insert(at + 1, other);
    }),
    (&["out-of-order"], |copy, id| {
        let (first, second) = (copy.outcome(id, "much", 0), copy.outcome(id, "more", 0));
        let earlier = copy.outcomes.remove(first);
        copy.outcomes.insert(second, earlier);
    }),
    (&["outcome-differs"], |copy, id| copy.change_refusal(id, "fingerprint", Avro::Bytes(vec![7; 16]))),
    (&["outcome-differs"], |copy, id| {
        copy.change_refusal(id, "command_id", Avro::String("another".into()));
        let at = copy.outcome(id, "more", 0);
        copy.outcomes[at].key = Some(b"another".to_vec());
    }),
    (&["two-outcomes"], |copy, id| {
        let at = copy.outcome(id, "deposit", 1);
        set_header(&mut copy.outcomes[at], "millrace_replayed", None);
    }),
    (&["repeat-differs"], |copy, id| {
        let at = copy.outcome(id, "deposit", 1);
        set_field(&mut copy.outcomes[at], "at", &Avro::TimestampMicros(1));
    }),
    // Refused as reused, but never used before.
    (&["repeat-differs"], |copy, id| copy.change_refusal(id, "reason", text("idempotency-key-reused"))),
    (&["outcome-version"], |copy, id| copy.change_refusal(id, "version", Avro::Long(2))),
    (&["outcome-malformed"], |copy, id| {
        copy.change_refusal(id, "reason", Avro::Union(0, Box::new(Avro::Null)));
    }),
    (&["outcome-without-events"], |copy, id| {
        let at = copy.event(id, 3);
        copy.events.remove(at);
    }),
    (&["event-without-outcome"], |copy, id| {
        let mut event = copy.events[copy.event(id, 2)].clone();
        renumber(&mut event, id, 4);
        set_header(&mut event, "ce_commandid", Some("nobody"));
        set_time(&mut event, "2100-01-01T00:00:00.000000Z", 4_102_444_800_000);
        copy.events.push(event);
    }),
    // The events of a refused command.
    (&["events-differ"], |copy, id| {
        let mut event = copy.events[copy.event(id, 3)].clone();
        renumber(&mut event, id, 4);
        set_header(&mut event, "ce_commandid", Some("more"));
        copy.events.push(event);
    }),
    // Another event than the outcome names.
    (&["events-differ"], |copy, id| {
        let (at, from) = (copy.event(id, 3), copy.events[copy.event(id, 2)].clone());
        copy.events[at].value = from.value;
        set_header(&mut copy.events[at], "ce_type", Some("millrace.bank_account.events.MoneyDeposited"));
    }),
    (&["outcome-without-events", "sequence-gap"], |copy, id| {
        let at = copy.event(id, 2);
        copy.events.remove(at);
    }),
    (&["sequence-repeat"], |copy, id| {
        let at = copy.event(id, 3);
        copy.events.push(copy.events[at].clone());
    }),
    // The same effect once more, as a zombie would have written it.
    (&["events-differ"], |copy, id| {
        let mut event = copy.events[copy.event(id, 3)].clone();
        renumber(&mut event, id, 4);
        copy.events.push(event);
    }),
    (&["time-backwards"], |copy, id| {
        let at = copy.event(id, 3);
        set_time(&mut copy.events[at], "2001-01-01T00:00:00.000000Z", 978_307_200_000);
    }),
    (&["rule-broken"], |copy, id| {
        let at = copy.event(id, 3);
        set_field(&mut copy.events[at], "amount_minor", &Avro::Long(11));
    }),
    (&["wrong-partition"], |copy, id| {
        let mut event = copy.events[copy.event(id, 3)].clone();
        event.partition = (event.partition + 1) % 3;
        copy.events.push(event);
    }),
    (&["wrong-partition"], |copy, id| {
        let mut outcome = copy.outcomes[copy.outcome(id, "more", 0)].clone();
        outcome.partition = (outcome.partition + 1) % 3;
        copy.outcomes.push(outcome);
    }),
    (&["unreadable"], |copy, id| {
        let at = copy.event(id, 3);
        let mut event = copy.events[at].clone();
        renumber(&mut event, id, 4);
        event.value = Some(b"garbage".to_vec());
        copy.events.push(event);
    }),
    (&["headers"], |copy, id| on_event(copy, id, "content-type", Some("application/json"))),
    (&["headers"], |copy, id| on_event(copy, id, "ce_specversion", None)),
    (&["headers"], |copy, id| on_event(copy, id, "ce_id", Some("bank-account/another/3"))),
    (&["headers"], |copy, id| on_event(copy, id, "ce_source", None)),
    (&["headers"], |copy, id| on_event(copy, id, "ce_type", Some("MoneyWithdrawn"))),
    (&["headers"], |copy, id| on_event(copy, id, "ce_subject", Some("another"))),
    (&["headers"], |copy, id| on_event(copy, id, "traceparent", Some("00-0-0-00"))),
    (&["headers"], |copy, id| on_event(copy, id, "ce_correlationid", Some("two words"))),
    (&["headers"], |copy, id| {
        let at = copy.event(id, 3);
        copy.events[at].timestamp_ms += 1;
    }),
    (&["headers"], |copy, id| {
        let at = copy.event(id, 3);
        let time = copy.events[at].header("ce_time").expect("events have times");
        set_header(&mut copy.events[at], "ce_time", Some(&time.replace('Z', "+00:00")));
    }),
    (&["headers", "outcome-without-events"], |copy, id| on_event(copy, id, "ce_sequence", None)),
    (&["headers", "outcome-without-events"], |copy, id| on_event(copy, id, "ce_time", Some("yesterday"))),
    (&["headers", "outcome-without-events"], |copy, id| on_event(copy, id, "ce_commandid", None)),
    (&["headers"], |copy, id| {
        let at = copy.outcome(id, "more", 0);
        copy.outcomes[at].key = Some(b"another".to_vec());
    }),
    (&["command-lost", "headers"], |copy, id| {
        let at = copy.outcome(id, "more", 0);
        set_header(&mut copy.outcomes[at], "millrace_position", None);
    }),
    (&["command-lost", "headers"], |copy, id| {
        let at = copy.outcome(id, "more", 0);
        set_header(&mut copy.outcomes[at], "millrace_origin", Some("somewhere/0/0"));
    }),
];

fn on_event(copy: &mut Copy, id: &str, header: &str, value: Option<&str>) {
    let at = copy.event(id, 3);
    set_header(&mut copy.events[at], header, value);
}

/// Kinds of findings by account, or by place where no account is named.
fn found(checked: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let findings = checked["types"]["bank-account"]["findings"].as_array().expect("findings are a list");
    for finding in findings {
        let place = format!("{}/{}", finding["topic"].as_str().unwrap_or_default(), finding["partition"]);
        let of = finding["aggregate"].as_str().map_or(place, str::to_owned);
        found.entry(of).or_default().insert(finding["kind"].as_str().unwrap_or_default().to_owned());
    }
    found
}

/// Topics with nothing but what makes them a command topic's: one decided command, whose outcome tells the topic's id.
fn empty_deployment() -> (Deployment, String) {
    let deployment = Deployment::new();
    let mut service: Service = deployment.command_service("c1");
    let (id, key) = (new_id(), new_key());
    let producer = Producer::new("murmur2_random");
    producer.send(&deployment.topic("commands"), &Draft::new(&id, commands::deposit(1)).header("ce_id", &key));
    let (record, _) = deployment.outcome(&key);
    let position = record.header("millrace_position").expect("outcomes have positions");
    service.terminate();
    let topic_id = position.split('/').next().expect("positions begin with a topic id").to_owned();
    (deployment, topic_id)
}

#[test]
fn g01_to_g04_every_planted_fault_is_found_and_nothing_else() {
    let good = Deployment::new();
    let ids: Vec<_> =
        // So many that commands of several are forwarded: by chance, each of them are with two thirds.
        (0..FAULTS.len() + 16).map(|number| good.id_in(i32::try_from(number % 3).expect("small"))).collect();
    let (empty, ()) = thread::scope(|scope| {
        let empty = scope.spawn(empty_deployment);
        let mut service = good.command_service("c1");
        tell(&good, &ids, FAULTS.len());
        service.terminate();
        good.check_log();
        (empty.join().expect("topics can be made"), ())
    });
    let (deployment, topic_id) = empty;
    let mut copy = Copy::of(&good);
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for ((kinds, plant), id) in FAULTS.iter().zip(&ids) {
        plant(&mut copy, id);
        expected.insert(id.clone(), kinds.iter().map(|kind| (*kind).to_owned()).collect());
    }
    // What concerns two partitions: of the accounts whose commands were forwarded.
    let forwarded = |copy: &Copy, from: &str| {
        let is_it = |record: &Record| {
            record.header("millrace_forwarded").is_some()
                && record.header("ce_id").as_deref() == Some("more")
                && !expected
                    .contains_key(&String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned())
        };
        let at = copy.commands.iter().position(is_it);
        at.unwrap_or_else(|| panic!("{from}: no command was forwarded of an account without fault"))
    };
    let at = forwarded(&copy, "a forward that is lost");
    let lost = copy.commands.remove(at);
    let end = format!("/{}/{}", lost.partition, lost.offset);
    copy.outcomes.retain(|record| !record.header("millrace_position").is_some_and(|place| place.ends_with(&end)));
    let origin = lost.header("millrace_origin").expect("it has an origin");
    let origin: Vec<_> = origin.rsplit('/').collect();
    let lost_from = format!("{}/{}", deployment.topic("commands"), origin[1]);
    // A forward that is done twice, before anybody handled the second one.
    let twice = copy.commands[forwarded(&copy, "a forward that is done twice")].clone();
    expected.insert(
        String::from_utf8_lossy(twice.key.as_deref().unwrap_or_default()).into_owned(),
        ["handled-twice".to_owned()].into(),
    );
    copy.late.push(twice);
    expected.insert(lost_from, ["command-lost".to_owned()].into());

    // What names no account, each in a partition of its own.
    let free = &ids[FAULTS.len() + 2..];
    let with_letter = |partition| free.iter().find(|id| own_partition(id) == partition).expect("ids spread");
    let doubled = copy.letters[copy.letter(with_letter(0))].clone();
    copy.letters.push(doubled);
    let mut at = copy.letters[copy.letter(with_letter(1))].clone();
    set_header(&mut at, "millrace_error", None);
    copy.letters.push(at);
    let garbage = Record { value: Some(b"garbage".to_vec()), ..copy.outcomes[0].clone() };
    copy.outcomes.push(Record { partition: 2, ..garbage });
    for (topic, partition, kind) in
        [("commands", 0, "handled-twice"), ("dead-letters", 1, "headers"), ("outcomes", 2, "unreadable")]
    {
        let place = format!("{}/{partition}", deployment.topic(topic));
        expected.entry(place).or_default().insert(kind.to_owned());
    }

    let moved = HashMap::new();
    let producer = Producer::new("murmur2_random");
    Writer { deployment: &deployment, from: good.prefix.clone(), topic_id, moved, producer }.write(&copy);
    is_found(&deployment, &expected);

    // What concerns whole topics.
    let (events, commands) = (deployment.topic("events"), deployment.topic("commands"));
    let (before, beyond) = (kafka::read(&events, Some(0))[1].offset, kafka::end(&commands, 1) + 1);
    kafka::delete_before(&events, 0, before);
    kafka::commit(&format!("{}.command", deployment.prefix), &commands, 1, beyond);
    let checked = deployment.log_check_json();
    let kinds: BTreeSet<_> = found(&checked).into_values().flatten().collect();
    for kind in ["events-deleted", "offset-beyond-end"] {
        assert!(kinds.contains(kind), "{kind}: {checked}");
    }
}

#[test]
fn g01_a_command_that_was_told_to_wait_must_wait_be_put_back_or_be_decided() {
    let deployment = Deployment::new();
    let mut service = deployment.command_service("c1");
    let id = deployment.id_in(1);
    open_at(&service, &id, "Ada");
    for command_id in ["waits", "back", "lost", "decided"] {
        let later = command_at(&service, &id, "deposit", &json!({"amount_minor": 1})).key(command_id);
        let told = later.header("Millrace-Not-Before", "2199-01-01T00:00:00Z").send();
        assert_eq!(told.status, 202, "{told:?}");
    }
    let now = command_at(&service, &id, "deposit", &json!({"amount_minor": 1})).key("decided").send();
    assert_eq!(now.status, 200, "{now:?}");
    service.terminate();
    deployment.check_log();

    let producer = Producer::new("murmur2_random");
    let put_back = Draft::new(&id, commands::deposit(1)).header("ce_id", "back").header("millrace_released", "1");
    producer.send(&deployment.topic("commands"), &put_back.to(1));
    for gone in ["back", "lost"] {
        let tombstone = Draft { value: None, ..Draft::new(&format!("{id}/{gone}"), vec![]) };
        producer.send(&deployment.topic("scheduled"), &tombstone.to(1));
    }
    is_found(&deployment, &[(id, ["command-lost".to_owned()].into())].into());
    let lost = &deployment.log_check_json()["types"]["bank-account"]["findings"];
    assert_eq!(lost.as_array().map(Vec::len), Some(1), "{lost}");
    assert!(lost[0]["detail"].as_str().is_some_and(|detail| detail.contains("told to wait")), "{lost}");
}

/// Checks that the log check finds exactly this.
#[track_caller]
fn is_found(deployment: &Deployment, expected: &BTreeMap<String, BTreeSet<String>>) {
    let checked = deployment.log_check_json();
    let found = found(&checked);
    let differ: Vec<_> = expected.keys().chain(found.keys()).filter(|of| found.get(*of) != expected.get(*of)).collect();
    for of in &differ {
        eprintln!("{of}: expected {:?}, found {:?}", expected.get(*of), found.get(*of));
    }
    assert!(differ.is_empty(), "{checked}");
    let printed = deployment.run_log_check(&[]);
    assert_eq!(printed.code, Some(1), "{printed:?}");
    for kind in expected.values().flatten() {
        assert!(printed.output.contains(kind), "{kind}: {printed:?}");
    }
}
