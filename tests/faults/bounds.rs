//! What is bounded stays so: requests in flight, memory, and the time that an end takes.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use millrace_tests::{
    LONG, commands, eventually, eventually_within,
    fail_points::Action,
    kafka::{Draft, Producer},
    services::{Service, command_at, new_id, open_at},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::deployment;

/// Physical memory of a command-service, at most; see README.
const MEMORY_LIMIT: u64 = 640 << 20;

/// A request of which the answer is read later: ten thousand threads would be too many.
struct Open(TcpStream);

impl Open {
    fn deposit(service: &Service, id: &str) -> Self {
        let address = service.url().split_off("http://".len());
        let body = r#"{"amount_minor": 1}"#;
        let mut stream = TcpStream::connect(&address).expect("the service takes connections");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a time-out can be set");
        let request = format!(
            "POST /v1/bank-accounts/{id}/deposit HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("the service reads");
        Self(stream)
    }

    /// Status and headers; an error when the connection ends without an answer.
    fn answer(mut self) -> Result<(u16, String), String> {
        let mut text = String::new();
        let read = self.0.read_to_string(&mut text);
        let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        status.map(|status| (status, text.to_lowercase())).ok_or_else(|| format!("{read:?} after {text:?}"))
    }
}

fn free(service: &Service) -> f64 {
    service.metric("millrace_http_commands_free")
}

#[track_caller]
fn wait_until_full(service: &Service) {
    eventually_within(Duration::from_secs(60), "as many requests in flight as may be", || match free(service) {
        0.0 => Ok(()),
        free => Err(format!("{free} more may be")),
    });
}

#[test]
fn g16_ten_thousand_requests_at_once_take_bounded_memory_and_more_are_told_to_wait() {
    const MOST: usize = 10_000;
    const MORE: usize = 200;
    // This process has as many connections as the service, which inherits the limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the kernel tells");
    assert!(hard >= 12_000, "this test needs 12,000 open files (ulimit -Hn), not {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be raised to the hard one");

    let deployment = deployment().with("MILLRACE_WRITERS", "1").with("MILLRACE_OUTCOME_TIMEOUT_MS", "60000");
    let (service, points) = deployment.command_service_with_fail_points("c1");
    let ids: Vec<_> = (0..100).map(|_| new_id()).collect();
    for id in &ids {
        open_at(&service, id, "Ada");
    }
    let before = service.peak_memory();
    points.arm("begin", Action::Stall);
    let waiting: Vec<_> = ids.iter().cycle().take(MOST).map(|id| Open::deposit(&service, id)).collect();
    wait_until_full(&service);
    for id in ids.iter().cycle().take(MORE) {
        let (status, text) = Open::deposit(&service, id).answer().expect("an answer");
        assert_eq!(status, 429, "{text}");
        assert!(text.contains("\r\nretry-after: "), "{text}");
    }
    service.ready().expect("a service that has much to do is ready");
    points.release("begin");
    for open in waiting {
        let (status, text) = open.answer().expect("an answer");
        assert_eq!(status, 200, "{text}");
    }
    let peak = service.peak_memory();
    println!("{MOST} requests at once: from {} to {} MiB", before >> 20, peak >> 20);
    assert!(peak < MEMORY_LIMIT, "{} MiB", peak >> 20);
    assert_eq!(deployment.read("events").len(), ids.len() + MOST);
}

#[test]
fn g16_a_flooded_topic_waits_in_kafka() {
    let count = if *LONG { 400_000 } else { 60_000 };
    let deployment = deployment().with("MILLRACE_WRITERS", "1");
    let (service, points) = deployment.command_service_with_fail_points("c1");
    let id = new_id();
    open_at(&service, &id, "Ada");
    let before = service.peak_memory();
    points.arm("begin", Action::Stall);
    let producer = Producer::new("murmur2_random");
    // More than the service may keep, many times over.
    let flood = Draft::new(&id, commands::deposit(1)).header("padding", "x".repeat(1_000));
    producer.flood(&deployment.topic("commands"), &flood, count);
    points.wait_reached("begin");
    let other = (0..deployment.partitions).find(|partition| *partition != deployment.partition_of(&id));
    let other = deployment.id_in(other.expect("there are three"));
    points.release("begin");
    // The flood keeps nobody else waiting for long.
    open_at(&service, &other, "Ada");
    eventually_within(Duration::from_secs(120), "events of the whole flood", || {
        let offset: i64 = deployment.committed().values().flatten().sum();
        // The opening commands count, and so do markers: none are in command topics without forwards.
        if offset >= 2 + i64::try_from(count).expect("a count") { Ok(()) } else { Err(format!("{offset} of {count}")) }
    });
    let peak = service.peak_memory();
    println!("{count} commands of 1 kB in one partition: from {} to {} MiB", before >> 20, peak >> 20);
    assert!(peak < MEMORY_LIMIT, "{} MiB", peak >> 20);
    assert_eq!(deployment.read("events").len(), 2 + count);
}

#[test]
fn g16_clients_that_go_away_leave_nothing_behind() {
    let deployment = deployment().with("MILLRACE_WRITERS", "1").with("MILLRACE_MAX_IN_FLIGHT", "50");
    let (service, points) = deployment.command_service_with_fail_points("c1");
    let id = new_id();
    open_at(&service, &id, "Ada");
    for round in 1..=3 {
        points.arm("begin", Action::Stall);
        let waiting: Vec<_> = (0..50).map(|_| Open::deposit(&service, &id)).collect();
        wait_until_full(&service);
        let refused = command_at(&service, &id, "deposit", &json!({"amount_minor": 1})).send();
        refused.problem(429, "overloaded");
        drop(waiting);
        let asynchronous = command_at(&service, &id, "deposit", &json!({"amount_minor": 1}))
            .key(&format!("round-{round}"))
            .header("Prefer", "respond-async");
        eventually("room for others", || {
            let answer = asynchronous.try_send()?;
            let free = free(&service);
            // The request itself takes one place.
            if answer.status == 202 && free == 49.0 { Ok(()) } else { Err(format!("{free} free, {answer:?}")) }
        });
        points.release("begin");
        // Who went away left its command in the topic, which is decided all the same.
        eventually("events of all who went away", || {
            let events = deployment.events(&id).len();
            millrace_tests::wait::same(&events, &(1 + 51 * round))
        });
    }
}

#[test]
fn g15_at_sigterm_everybody_who_waits_is_told() {
    let deployment = deployment().with("MILLRACE_WRITERS", "1").with("MILLRACE_MAX_IN_FLIGHT", "200");
    let (mut service, points) = deployment.command_service_with_fail_points("c1");
    let id = new_id();
    open_at(&service, &id, "Ada");
    for released in [true, false] {
        points.arm("begin", Action::Stall);
        let waiting: Vec<_> = (0..200).map(|_| Open::deposit(&service, &id)).collect();
        wait_until_full(&service);
        service.tell_to_end();
        // In time to be decided; or not at all before the service has ended.
        if released {
            points.release("begin");
        }
        let answers: Vec<_> = waiting.into_iter().map(|open| open.answer().expect("an answer")).collect();
        service.terminate();
        for (status, text) in answers {
            let told = if released { status == 200 } else { status == 504 && text.contains("\r\nretry-after: ") };
            assert!(told, "{text}");
        }
        service.start_again();
        let events = if released { 201 } else { 401 };
        eventually("events of all commands", || millrace_tests::wait::same(&deployment.events(&id).len(), &events));
    }
}
