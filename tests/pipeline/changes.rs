//! Server-sent events: what subscribers get, and how they go on after a break.

use std::{
    collections::BTreeMap,
    io::Write,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use millrace_tests::{
    Deployment, Services, commands, eventually,
    http::{Answer, get},
    kafka::{Draft, Producer},
    process::free_port,
    redis::Redis,
    services::{Shared, new_id, open_at},
    sse::{Event, Idle, Stream},
    wait::same,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value::Null, json};

const ALL: &str = "/v1/bank-accounts/changes";

fn of(id: &str) -> String {
    format!("/v1/bank-accounts/{id}/changes")
}

/// Sequences by aggregate, in the order in which they came.
fn sequences<'a>(events: impl IntoIterator<Item = &'a Event>) -> BTreeMap<String, Vec<u64>> {
    let mut sequences: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in events {
        assert_eq!(event.name, "change", "{event:?}");
        let (id, sequence) = event.about();
        assert!(event.data["view"]["version"].as_u64() >= Some(sequence), "the view is older: {event:?}");
        assert_eq!(event.data["view"]["id"], id, "{event:?}");
        sequences.entry(id.to_owned()).or_default().push(sequence);
    }
    sequences
}

#[test]
fn g09_changes_come_of_one_account_of_one_owner_and_of_all() {
    let services = Services::shared();
    let url = services.query.url();
    let (owner, id, other) = (new_id(), new_id(), services.open("Grace"));
    // Before it is there.
    let mut one = Stream::open(&url, &of(&id), None);
    let mut owned = Stream::open(&url, &format!("{ALL}?owner={owner}"), None);
    let mut all = Stream::open(&url, ALL, None);
    for header in ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"] {
        assert!(one.head.contains(header), "{header}: {}", one.head);
    }
    open_at(&services.command, &id, &owner);
    services.deposit(&other, 7);
    services.deposit(&id, 100);
    let token = services.withdraw(&id, 30).token();

    for stream in [&mut one, &mut owned] {
        let events = stream.until(&id, 3);
        assert_eq!(sequences(&events), BTreeMap::from([(id.clone(), vec![1, 2, 3])]));
        let last = &events[2].data;
        assert_eq!(last["type"], "MoneyWithdrawn");
        assert_eq!(last["view"], services.view_after(&id, &token));
        assert_eq!(last["time"], last["view"]["updated_at"]);
    }
    let mut events = all.until(&id, 3);
    if !sequences(&events).get(&other).is_some_and(|of| of.contains(&2)) {
        events.extend(all.until(&other, 2));
    }
    assert_eq!(sequences(&events)[&id], [1, 2, 3]);
    // An id holds for the other streams of the type as well.
    let at_deposit = events.iter().find(|event| event.about() == (&id, 2)).expect("it was there");
    let resumed = Stream::open(&url, &of(&id), Some(&at_deposit.id)).until(&id, 3);
    assert_eq!(sequences(&resumed), BTreeMap::from([(id.clone(), vec![3])]));
    let in_address = format!("{}?last_event_id={}", of(&id), at_deposit.id);
    assert_eq!(sequences(&Stream::open(&url, &in_address, None).until(&id, 3))[&id], [3]);
}

#[test]
fn g09_who_resumes_gets_every_change_since_also_after_a_restart_of_the_service() {
    let mut services = Services::start(Deployment::new());
    let ids: Vec<String> = (0..6).map(|_| services.open("Ada")).collect();
    let url = services.query.url();
    let mut stream = Stream::open(&url, ALL, None);
    let mut seen = Vec::new();
    for round in 0..12u64 {
        for id in &ids {
            services.deposit(id, 1);
        }
        if round % 4 == 3 {
            // In the middle of what comes, and back at once, or with more that was missed.
            let events = stream.until(&ids[0], round + 1);
            let id = events.last().expect("at least one").id.clone();
            seen.extend(events);
            drop(stream);
            if round == 7 {
                assert_eq!(services.query.terminate().code, Some(0));
                services.deposit(&ids[1], 1);
                services.query.start_again();
            }
            stream = Stream::open(&url, ALL, Some(&id));
        }
    }
    let last = services.deposit(&ids[0], 1);
    assert_eq!(last.json()["aggregate"]["version"], 14);
    seen.extend(stream.until(&ids[0], 14));
    for id in &ids[1..] {
        let version = services.view_is_the_fold_of_the_log(id)["version"].as_u64().expect("a version");
        if !seen.iter().any(|event| event.about() == (id, version)) {
            seen.extend(stream.until(id, version));
        }
    }
    let seen = sequences(&seen);
    for id in &ids {
        let last = seen[id].last().copied().expect("some");
        let expected: Vec<u64> = (2..=last).collect();
        let found: Vec<u64> = seen[id].iter().copied().filter(|sequence| *sequence > 1).collect();
        assert_eq!(found, expected, "{id}: none twice, none missing");
    }
}

#[test]
fn g13_what_is_no_id_or_parameter_is_refused() {
    let services = Services::shared();
    let id = services.open("Ada");
    let refused = |path: &str, header: Option<&str>| -> Answer {
        let ask = services.ask(path);
        header.map_or(ask.clone(), |value| ask.header("Last-Event-ID", value)).send()
    };
    let known = Stream::open(&services.query.url(), ALL, None).last_id();
    let mut forged = known.clone().into_bytes();
    let middle = forged.len() / 2;
    forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("it is text");
    for bad in ["x", "0", "1-1", &known[1..], &forged, &known.repeat(2)] {
        refused(&format!("{ALL}?last_event_id={bad}"), None).problem(400, "malformed-request");
        refused(ALL, Some(bad)).problem(400, "malformed-request");
        refused(&of(&id), Some(bad)).problem(400, "malformed-request");
    }
    for path in [
        format!("{ALL}?owner="),
        format!("{ALL}?owner=Ada&owner=Bob"),
        format!("{ALL}?status=open"),
        format!("{ALL}?limit=1"),
        format!("{}?owner=Ada", of(&id)),
        of("a%20b"),
    ] {
        refused(&path, None).problem(400, "malformed-request");
    }
    let head = millrace_tests::http::Request::new("HEAD", &format!("{}{ALL}", services.query.url())).send();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")), "{head:?}");
    let posted = millrace_tests::http::post(&format!("{}{ALL}", services.query.url())).json(&json!({})).send();
    posted.problem(405, "method-not-allowed");
}

#[test]
fn g15_open_streams_do_not_hold_up_the_end() {
    let mut services = Services::start(Deployment::new());
    let id = services.open("Ada");
    let mut streams: Vec<Stream> =
        [ALL.to_owned(), of(&id)].iter().map(|path| Stream::open(&services.query.url(), path, None)).collect();
    services.deposit(&id, 1);
    for stream in &mut streams {
        stream.until(&id, 2);
    }
    let ended = services.query.terminate();
    assert!(ended.took.as_secs() < 5, "it took {:?}", ended.took);
    for stream in &mut streams {
        assert_eq!(stream.event(), None, "the stream ends in order");
    }
}

#[test]
fn g16_open_streams_are_bounded_for_each_caller_and_in_all() {
    let services: Shared = Services::shared();
    let bounded = |name: &str| {
        let deployment = services.deployment.clone().with(name, "2");
        deployment.query_service_at(free_port())
    };
    for (name, status, problem) in
        [("MILLRACE_MAX_STREAMS_PER_CALLER", 429, "overloaded"), ("MILLRACE_MAX_STREAMS", 503, "unavailable")]
    {
        let query = bounded(name);
        let mut open: Vec<Stream> = (0..2).map(|_| Stream::open(&query.url(), ALL, None)).collect();
        let ask = get(&format!("{}{ALL}", query.url()));
        let refused = ask.send();
        refused.problem(status, problem);
        refused.must("retry-after");
        // Everything else is served.
        let list = get(&format!("{}/v1/bank-accounts", query.url())).send();
        assert_eq!(list.status, 200, "{list:?}");
        assert_eq!(query.metric("millrace_query_streams"), 2.0);
        assert_eq!(query.metric("millrace_query_streams_refused_total"), 1.0);
        open.pop();
        // It is noticed that one has gone.
        eventually("a place that is free again", || {
            let stream = Stream::try_open(&query.url(), ALL, None)?;
            if stream.head.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(stream.head.clone()) }
        });
    }
}

/// Pays 1 into an account many times, by way of the topic.
fn pay_often(services: &Services, id: &str, times: usize) {
    let topic = services.deployment.topic("commands");
    Producer::new("murmur2_random").flood(&topic, &Draft::new(id, commands::deposit(1)), times);
}

/// Takes a reset: the views told, by account.
#[track_caller]
fn told_anew(stream: &mut Stream, accounts: usize) -> BTreeMap<String, u64> {
    let mut views = BTreeMap::new();
    let reset = stream.event().expect("it goes on");
    assert_eq!((reset.name.as_str(), &reset.data), ("reset", &json!({})), "{reset:?}");
    for _ in 0..accounts {
        let event = stream.event().expect("it goes on");
        assert_eq!((&event.name[..], &event.data["type"], &event.data["time"]), ("change", &Null, &Null), "{event:?}");
        let (id, sequence) = event.about();
        assert_eq!(event.data["view"]["version"], sequence, "{event:?}");
        assert_eq!(views.insert(id.to_owned(), sequence), None, "twice: {event:?}");
    }
    views
}

#[test]
fn g09_who_cannot_resume_is_told_everything_anew() {
    let mut redis = Redis::start();
    let deployment =
        Deployment::new().with("MILLRACE_REDIS_URL", redis.url.clone()).with("MILLRACE_CHANGES_WINDOW", "50");
    let services = Services::start(deployment);
    let url = services.query.url();
    let [busy, quiet, ended] = [0, 1, 2].map(|partition| services.deployment.id_in(partition));
    for (id, owner) in [(&busy, "Ada"), (&quiet, "Ada"), (&ended, "Grace")] {
        open_at(&services.command, id, owner);
        // Or its opening would be what the stream lacks.
        eventually("a view", || {
            let status = services.ask(&format!("/v1/bank-accounts/{id}")).try_send()?.status;
            if status == 200 { Ok(()) } else { Err(status.to_string()) }
        });
    }
    let mut stream = Stream::open(&url, ALL, None);
    services.deposit(&quiet, 1);
    let old = stream.until(&quiet, 2).pop().expect("it came").id;
    drop(stream);

    // More has changed than is kept, in one partition.
    pay_often(&services, &busy, 400);
    eventually("400 payments", || {
        let view = services.ask(&format!("/v1/bank-accounts/{busy}")).try_send()?.json();
        if view["version"] == 401 { Ok(()) } else { Err(view.to_string()) }
    });
    let mut all = Stream::open(&url, ALL, Some(&old));
    let views = told_anew(&mut all, 3);
    assert_eq!(views, [(&busy, 401), (&quiet, 2), (&ended, 1)].map(|(id, at)| (id.clone(), at)).into());
    let mut owned = Stream::open(&url, &format!("{ALL}?owner=Ada"), Some(&old));
    assert_eq!(told_anew(&mut owned, 2).len(), 2);
    let mut one = Stream::open(&url, &of(&busy), Some(&old));
    assert_eq!(told_anew(&mut one, 1)[&busy], 401);
    // Of another partition nothing is missing.
    let mut other = Stream::open(&url, &of(&quiet), Some(&old));
    services.deposit(&quiet, 1);
    services.deposit(&busy, 1);
    assert_eq!(sequences(&other.until(&quiet, 3))[&quiet], [3]);
    assert_eq!(sequences(&one.until(&busy, 402))[&busy], [402]);
    for stream in [&mut all, &mut owned] {
        let seen = sequences(&[stream.event().expect("one"), stream.event().expect("two")]);
        assert_eq!(seen, BTreeMap::from([(busy.clone(), vec![402]), (quiet.clone(), vec![3])]));
    }

    // Redis is restarted: streams stay open, and nothing is missing.
    redis.kill();
    redis.start_again();
    services.deposit(&ended, 1);
    assert_eq!(sequences(&all.until(&ended, 2)), BTreeMap::from([(ended.clone(), vec![2])]));

    // A rebuild's switch: open streams are told, and whoever comes with an id of before.
    let before = all.last_id();
    let ran = services.deployment.run_projector_tool(&["rebuild", "bank-accounts"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.output, ran.errors);
    let mut late = Stream::open(&url, ALL, Some(&before));
    for stream in [&mut all, &mut late] {
        assert_eq!(told_anew(stream, 3)[&ended], 2);
    }
    services.deposit(&ended, 1);
    for stream in [&mut all, &mut late] {
        assert_eq!(sequences(&stream.until(&ended, 3)), BTreeMap::from([(ended.clone(), vec![3])]));
    }

    // Redis is emptied, and filled again.
    redis.client().run::<()>("FLUSHALL", &[] as &[&str]);
    assert_eq!(told_anew(&mut all, 3)[&ended], 3);
    services.deposit(&ended, 1);
    assert_eq!(sequences(&all.until(&ended, 4)), BTreeMap::from([(ended.clone(), vec![4])]));
}

#[test]
fn g09_a_reset_loses_and_doubles_nothing_while_accounts_change() {
    const ACCOUNTS: usize = 300;
    let services = Services::start(Deployment::new());
    let url = services.query.url();
    let producer = Producer::new("murmur2_random");
    let topic = services.deployment.topic("commands");
    let ids: Vec<String> = (0..ACCOUNTS).map(|_| new_id()).collect();
    let first = services.open("Ada");
    let foreign = {
        let id = Stream::open(&url, ALL, None).last_id();
        // Of a build that there is not: the same, in a deployment of the same name, would be told by its birth.
        let mut redis = services.deployment.redis();
        for partition in 0..services.deployment.partitions {
            redis.run::<()>("HINCRBY", &[services.deployment.view_key(partition, "meta"), "born".into(), "1".into()]);
        }
        id
    };
    for id in &ids {
        producer.send(&topic, &Draft::new(id, commands::open("Ada", "EUR")));
    }
    services.deposit(&first, 1);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                for id in &ids {
                    producer.flood(&topic, &Draft::new(id, commands::deposit(1)), 3);
                }
                round += 1;
            }
            round
        });
        let streams: Vec<Vec<Event>> = [ALL, ALL, &format!("{ALL}?owner=Ada")]
            .map(|path| {
                let mut stream = Stream::open(&url, path, Some(&foreign));
                // The reader may take a second to see that it is another build: what it tells until then, the reset revokes.
                let deadline = Instant::now() + Duration::from_secs(30);
                let mut events = vec![stream.event().expect("it goes on")];
                while events[0].name != "reset" {
                    assert!(Instant::now() < deadline, "no reset came");
                    events[0] = stream.event().expect("it goes on");
                }
                while events.len() < 4 * ACCOUNTS {
                    events.push(stream.event().expect("it goes on"));
                }
                events
            })
            .into();
        over.store(true, Ordering::Relaxed);
        assert!(load.join().expect("the load goes on") > 1, "nothing changed meanwhile");
        for events in streams {
            let seen = sequences(&events[1..]);
            assert!(events[1..].iter().any(|event| event.data["type"] == "MoneyDeposited"), "changes came as well");
            for (id, sequences) in &seen {
                let expected: Vec<u64> = (sequences[0]..).take(sequences.len()).collect();
                assert_eq!(*sequences, expected, "{id}: none twice, none missing");
            }
        }
    });
}

#[test]
fn g16_one_who_does_not_read_is_cut_off_and_can_resume() {
    let services = Services::shared();
    let query = services.deployment.clone().query_service_at(free_port());
    let url = query.url();
    // Long names make for long events: a socket takes some megabytes.
    let id = new_id();
    open_at(&services.command, &id, &"\u{1f40c}".repeat(200));
    services.view_is_the_fold_of_the_log(&id);
    let mut slow = Idle::open(&url, &of(&id));
    let mut quick = Stream::open(&url, &of(&id), None);
    pay_often(&services, &id, 5_000);
    let mut seen = quick.until(&id, 5_001);
    // Each of these is on its way before the next one comes.
    for sequence in 5_002..5_052 {
        services.deposit(&id, 1);
        seen.extend(quick.until(&id, sequence));
    }
    assert_eq!(sequences(&seen)[&id], (2..5_052).collect::<Vec<u64>>(), "the others don't notice");
    let text = slow.rest();
    assert_eq!(query.metric("millrace_query_streams_cut_off_total"), 1.0);
    let last = text.rmatch_indices("\n\n").next().expect("something came").0;
    let whole = &text[..last];
    let at = whole.rfind("id: ").expect("there is an id") + 4;
    let last_id = whole[at..].lines().next().expect("a line");
    let told = whole.matches("event: change").count() as u64;
    assert!((1..5_000).contains(&told), "{told}");
    let resumed = Stream::open(&url, &of(&id), Some(last_id)).until(&id, 5_051);
    assert_eq!(sequences(&resumed)[&id], (told + 2..5_052).collect::<Vec<u64>>());
}

#[test]
fn g16_two_thousand_idle_streams_cost_20_kilobytes_each_and_nobody_else_notices() {
    const STREAMS: u64 = 2_000;
    // Of its own: what others do to the shared ones would fill the sockets of those who don't read.
    let services = Services::start(Deployment::new().with("MILLRACE_MAX_STREAMS_PER_CALLER", "5000"));
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("it may be raised");
    let query = &services.query;
    let id = services.open("Ada");
    Stream::open(&query.url(), ALL, None).last_id();
    let before = query.peak_memory();
    let paths = [ALL.to_owned(), of(&id), format!("{ALL}?owner=Ada")];
    let mut idle: Vec<Idle> =
        (0..STREAMS).map(|number| Idle::open(&query.url(), &paths[number as usize % paths.len()])).collect();
    // The first one was closed; that is noticed by and by.
    eventually("as many streams as are open", || same(&query.metric("millrace_query_streams"), &(STREAMS as f64)));
    let token = services.deposit(&id, 1).token();
    let view = get(&format!("{}/v1/bank-accounts/{id}?after={token}&wait_ms=20000&stale=error", query.url())).send();
    assert_eq!((view.status, view.json()["balance_minor"].as_i64()), (200, Some(1)), "{view:?}");
    for stream in &mut idle {
        stream.wait_for(&format!("\"id\":\"{id}\",\"sequence\":2,"));
    }
    let each = query.peak_memory().saturating_sub(before) / STREAMS;
    println!("{each} bytes a stream");
    assert!(each <= 20 << 10, "{each} bytes a stream");
    drop(idle);
    eventually("streams that are closed", || match query.metric("millrace_query_streams") {
        0.0 => Ok(()),
        open => Err(open.to_string()),
    });
}

#[test]
fn g16_those_who_never_read_cost_little_and_hold_up_nobody() {
    const STREAMS: usize = 100;
    const MIB: u64 = 1 << 20;
    let services = Services::start(Deployment::new().with("MILLRACE_HTTP_TIMEOUT_MS", "5000"));
    let url = services.query.url();
    // Long names make for long events: a socket takes some megabytes, of each stream.
    let id = new_id();
    open_at(&services.command, &id, &"\u{1f40c}".repeat(200));
    services.view_is_the_fold_of_the_log(&id);
    let mut quick = Stream::open(&url, ALL, None);
    quick.last_id();
    let before = services.query.peak_memory();
    let idle: Vec<Idle> = (0..STREAMS).map(|_| Idle::open(&url, ALL)).collect();
    // Others ask for long answers and don't read them either, or send nothing at all.
    let host = url.trim_start_matches("http://");
    let silent: Vec<TcpStream> = (0..2 * STREAMS)
        .map(|number| {
            let mut socket = TcpStream::connect(host).expect("it listens");
            let asked = format!("GET /v1/bank-accounts/{id}/history?limit=1000 HTTP/1.1\r\nHost: {host}\r\n\r\n");
            socket.write_all(&asked.as_bytes()[..if number % 2 == 0 { asked.len() } else { 20 }]).expect("it is taken");
            socket
        })
        .collect();
    pay_often(&services, &id, 8_000);
    let mut told = quick.until(&id, 8_001);
    let mut took = Vec::new();
    // Each of these is on its way before the next one comes.
    for sequence in 8_002..8_202 {
        let begun = Instant::now();
        services.deposit(&id, 1);
        told.extend(quick.until(&id, sequence));
        let view = services.ask(&format!("/v1/bank-accounts/{id}")).send();
        assert_eq!(view.json()["version"].as_u64(), Some(sequence), "{view:?}");
        took.push(begun.elapsed());
    }
    took.sort();
    // Not each of them: the machine may hang for once.
    assert!(took[took.len() / 2] < Duration::from_secs(1), "the others are held up: {took:?}");
    assert_eq!(sequences(&told)[&id], (2..8_202).collect::<Vec<u64>>(), "the others don't notice");
    eventually("ends of all streams that nobody reads", || match services.query.metric("millrace_query_streams") {
        1.0 => Ok(()),
        open => Err(open.to_string()),
    });
    let grown = services.query.peak_memory().saturating_sub(before) / MIB;
    println!("{grown} MiB");
    // What is kept for those who are slow is there once; for each of them it would be a gigabyte.
    assert!(grown < 100, "{grown} MiB for {STREAMS} streams");
    drop((idle, silent));
}
