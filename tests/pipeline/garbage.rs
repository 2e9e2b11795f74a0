//! Garbage on a topic harms nothing but itself.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use millrace_tests::{
    Deployment, Services,
    account::partition_of,
    commands, eventually,
    kafka::{self, Draft, Place, Producer},
    services::{new_key, open_at},
};
use serde_json::json;

/// What is no command, with a word on why. It goes to a partition of its own choice.
fn garbage(id: &str) -> Vec<(&'static str, Draft)> {
    let good = || commands::deposit(1);
    let with = |value: Vec<u8>| Draft::new(id, value);
    let cut = |bytes: usize| good()[..bytes].to_vec();
    let unknown_schema = [&[0, 0x7f, 0xff, 0xff, 0xf0][..], &good()[5..]].concat();
    let trailing = [&good()[..], b"more"].concat();
    let wrong_magic = [&[1][..], &good()[1..]].concat();
    let random: Vec<u8> = (0..300_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let keyed = |key: Option<&[u8]>| Draft { key: key.map(<[u8]>::to_vec), ..with(good()) };
    vec![
        ("empty value", with(Vec::new())),
        ("null value", Draft { value: None, ..with(Vec::new()) }),
        ("random bytes", with(random)),
        ("text", with(b"{\"amount_minor\": 1}".to_vec())),
        ("wrong magic byte", with(wrong_magic)),
        ("half a schema id", with(cut(3))),
        ("unknown schema id", with(unknown_schema)),
        ("no datum", with(cut(5))),
        ("truncated datum", with(commands::withdraw(1, Some("rent"))[..8].to_vec())),
        ("trailing bytes", with(trailing)),
        ("another record type", with(commands::no_command())),
        ("huge", with(vec![7; 900_000])),
        ("huge, of our schema", with([&good()[..], &vec![0; 900_000]].concat())),
        ("no key", keyed(None)),
        ("empty key", keyed(Some(b""))),
        ("key is no id", keyed(Some(b"two words"))),
        ("key is no text", keyed(Some(b"\xff\xfe"))),
        ("key too long", keyed(Some(&[b'k'; 129]))),
        ("bad ce_id", with(good()).header("ce_id", "two words")),
        ("ce_id too long", with(good()).header("ce_id", "k".repeat(129))),
        ("bad ce_expectedversion", with(good()).header("ce_expectedversion", "latest")),
        ("negative ce_expectedversion", with(good()).header("ce_expectedversion", "-1")),
        ("amount 0", with(commands::deposit(0))),
        ("negative amount", with(commands::withdraw(-5, None))),
        ("amount too large", with(commands::deposit(1_000_000_000_000_001))),
        ("reference too long", with(commands::withdraw(1, Some(&"x".repeat(141))))),
        ("no currency", with(commands::open("Ada", "eur"))),
        ("no owner", with(commands::open("", "EUR"))),
    ]
}

#[test]
fn g13_garbage_between_commands_becomes_dead_letters_and_stops_nothing() {
    let deployment = Deployment::new();
    let mut service = deployment.command_service("c1");
    let topic = deployment.topic("commands");
    let producer = Producer::new("murmur2_random");
    let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    for id in &ids {
        open_at(&service, id, "Ada");
    }

    let mut thrown: Vec<(&str, Place, Draft)> = Vec::new();
    let mut sent = Vec::new();
    for (at, (why, draft)) in garbage(&ids[0]).into_iter().enumerate() {
        let partition = i32::try_from(at).expect("few") % deployment.partitions;
        let draft = draft.to(partition).header("x-origin", "somewhere");
        thrown.push((why, producer.send(&topic, &draft), draft));
        for id in &ids {
            let key = new_key();
            producer.send(&topic, &Draft::new(id, commands::deposit(1)).header("ce_id", &key));
            sent.push((id.clone(), key));
        }
    }
    // Every good command is decided, in order.
    let (_, last) = sent.last().expect("some were sent");
    deployment.outcome(last);
    for id in &ids {
        let expected: Vec<_> = sent.iter().filter(|(to, _)| to == id).map(|(_, key)| key.clone()).collect();
        millrace_tests::eventually(&format!("events of all commands to {id}"), || {
            let events = deployment.events(id);
            millrace_tests::account::fold(id, &events);
            let decided: Vec<_> = events[1..].iter().map(|event| event.command_id.clone()).collect();
            millrace_tests::wait::same(&decided, &expected)
        });
    }

    // Every garbage record is a dead letter, whole, with the reason.
    let letters = millrace_tests::eventually("dead letters of all garbage", || {
        let letters = deployment.read("dead-letters");
        if letters.len() >= thrown.len() { Ok(letters) } else { Err(format!("there are {}", letters.len())) }
    });
    for (why, origin, draft) in &thrown {
        let place = origin.to_string();
        let of_place: Vec<_> =
            letters.iter().filter(|letter| letter.header("millrace_origin").as_ref() == Some(&place)).collect();
        let [letter] = of_place[..] else { panic!("{why}: {} dead letters of {place}", of_place.len()) };
        is_dead_letter(why, letter, draft);
        // Where it lay, or, if it was forwarded before anybody looked inside, where its key leads.
        let led = letter.key.as_deref().map(|key| partition_of(key, deployment.partitions));
        assert!([Some(origin.partition), led].contains(&Some(letter.partition)), "{why} at {origin}: {letter:?}");
    }
    assert_eq!(letters.len(), thrown.len(), "more dead letters than garbage");

    assert!(service.runs());
    service.ready().expect("garbage makes nobody unready");
    assert!(deployment.all_events().len() == ids.len() + sent.len(), "garbage caused events");
}

#[track_caller]
fn is_dead_letter(why: &str, letter: &kafka::Record, draft: &Draft) {
    let error = letter.header("millrace_error").unwrap_or_default();
    assert!(error.len() > 5, "{why}: the error says nothing: {letter:?}");
    assert_eq!(letter.key, draft.key, "{why}");
    assert!(letter.value == draft.value, "{why}: another value: {letter:?}");
    for (name, value) in &draft.headers {
        let found = letter.headers.iter().find(|(header, _)| header == name);
        assert_eq!(found.map(|(_, value)| value), Some(value), "{why}: header {name}");
    }
}

#[test]
fn g13_garbage_on_outcomes_and_snapshots_holds_up_nobody() {
    let mut services = Services::start(Deployment::new());
    let deployment = services.deployment.clone();
    let producer = Producer::new("murmur2_random");
    let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    for id in &ids {
        open_at(&services.command, id, "Ada");
        services.command(id, "deposit", &json!({"amount_minor": 9})).key("deposit").send();
    }
    for partition in 0..deployment.partitions {
        for topic in ["outcomes", "snapshots"] {
            let key = || Some(ids[0].clone().into_bytes());
            for (key, value) in [
                (key(), Some(b"garbage".to_vec())),
                (key(), Some(Vec::new())),
                (key(), Some(commands::deposit(1))),
                (Some(b"\xff".to_vec()), Some(vec![0; 10])),
            ] {
                producer.send(&deployment.topic(topic), &Draft { key, value, ..Draft::default() }.to(partition));
            }
            if topic == "outcomes" {
                // A compacted topic takes no record without a key.
                let value = Some(b"garbage".to_vec());
                producer.send(&deployment.topic(topic), &Draft { value, ..Draft::default() }.to(partition));
                producer.send(&deployment.topic(topic), &Draft { key: key(), ..Draft::default() }.to(partition));
            }
        }
    }
    for round in ["before a restart", "after it"] {
        for id in &ids {
            let again = services.command(id, "deposit", &json!({"amount_minor": 9})).key("deposit").send();
            assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")), "{round}: {again:?}");
            let token = services.withdraw(id, 1).token();
            services.view_after(id, &token);
            services.view_is_the_fold_of_the_log(id);
        }
        eventually("stored outcome", || {
            let known = services.ask(&format!("/v1/bank-accounts/{}/commands/deposit", ids[0])).try_send()?;
            if known.status == 200 { Ok(()) } else { Err(format!("{round}: {known:?}")) }
        });
        for service in [&mut services.command, &mut services.projector] {
            service.ready().unwrap_or_else(|reason| panic!("{round}: {reason}"));
            service.terminate();
            service.start_again();
        }
    }
}

#[test]
fn g13_garbage_on_a_listener_harms_nobody() {
    let services = Services::shared();
    let long = [b"GET / HTTP/1.1\r\nX: ", &vec![b'x'; 2 << 20][..]].concat();
    let many = [b"GET / HTTP/1.1\r\n".to_vec(), b"X: x\r\n".repeat(20_000)].concat();
    let chunked = b"POST /v1/bank-accounts/x/deposit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Transfer-Encoding: chunked\r\n\r\nnot a number\r\n";
    let short = b"POST /v1/bank-accounts/x/deposit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Content-Length: 100\r\n\r\n{";
    let two_lengths = b"POST /v1/bank-accounts/x/deposit HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\
        Content-Length: 2\r\n\r\n{}";
    for service in [&services.command, &services.projector, &services.query] {
        let mut listeners = vec![service.ops_url()];
        if service.kind != "projector-service" {
            listeners.push(service.url());
        }
        for url in listeners {
            for bytes in
                [&b"\0\xff\r\n\r\n"[..], b"GET", b"", b"\x16\x03\x01\x02\0", &long, &many, chunked, short, two_lengths]
            {
                let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("somebody listens");
                stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out can be set");
                // It may well be refused before all of it is sent.
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.take(1 << 16).read_to_end(&mut Vec::new());
            }
        }
        service.ready().expect("garbage makes nobody unready");
    }
    let id = services.open("Ada");
    let token = services.deposit(&id, 3).token();
    assert_eq!(services.view_after(&id, &token)["balance_minor"], 3);
}

#[test]
fn g13_garbage_on_the_events_topic_holds_up_nobody_else() {
    let mut services = Services::start(Deployment::new());
    let deployment = services.deployment.clone();
    let producer = Producer::new("murmur2_random");
    let topic = deployment.topic("events");
    let ids: Vec<_> = (0..deployment.partitions).map(|partition| deployment.id_in(partition)).collect();
    let stranger = |partition| deployment.id_in(partition);
    for id in &ids {
        open_at(&services.command, id, "Ada");
    }
    for partition in 0..deployment.partitions {
        let raw = |key: Option<String>, value: Option<Vec<u8>>| {
            Draft { key: key.map(String::into_bytes), value, ..Draft::default() }.to(partition)
        };
        producer.send(&topic, &raw(Some(stranger(partition)), Some(b"garbage".to_vec())));
        producer.send(&topic, &raw(Some(stranger(partition)), None));
        producer.send(&topic, &raw(None, Some(b"garbage".to_vec())));
        producer.send(&topic, &raw(None, None));
        // A good datum without the headers that an event has.
        producer.send(&topic, &raw(Some(stranger(partition)), Some(commands::deposit(1))));
    }
    for id in &ids {
        let token = services.deposit(id, 25).token();
        assert_eq!(services.view_after(id, &token)["balance_minor"], 25);
    }
    services.projector.ready().expect("garbage makes nobody unready");
    services.command.ready().expect("garbage makes nobody unready");
    let projections = services.ask("/v1/projections").send();
    assert_eq!(projections.status, 200, "{projections:?}");
    let parked = &projections.json()["projections"][0]["parked"];
    assert!(parked.as_array().is_some_and(|parked| !parked.is_empty()), "what is parked is shown: {projections:?}");
    // Nor is anybody after a restart, when all of it is read again.
    for service in [&mut services.command, &mut services.projector] {
        service.terminate();
        service.start_again();
    }
    for id in &ids {
        let token = services.withdraw(id, 25).token();
        assert_eq!(services.view_after(id, &token)["balance_minor"], 0);
    }
}
