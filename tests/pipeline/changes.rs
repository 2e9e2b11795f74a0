//! Server-sent events: what subscribers get, and how they go on after a break.

use std::collections::BTreeMap;

use millrace_tests::{
    Deployment, Services, eventually,
    http::Answer,
    services::{Shared, new_id},
    sse::{Event, Stream},
};
use serde_json::json;

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
    millrace_tests::services::open_at(&services.command, &id, &owner);
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
        deployment.query_service_at(millrace_tests::process::free_port())
    };
    for (name, status, problem) in
        [("MILLRACE_MAX_STREAMS_PER_CALLER", 429, "overloaded"), ("MILLRACE_MAX_STREAMS", 503, "unavailable")]
    {
        let query = bounded(name);
        let mut open: Vec<Stream> = (0..2).map(|_| Stream::open(&query.url(), ALL, None)).collect();
        let ask = millrace_tests::http::get(&format!("{}{ALL}", query.url()));
        let refused = ask.send();
        refused.problem(status, problem);
        refused.must("retry-after");
        // Everything else is served.
        let list = millrace_tests::http::get(&format!("{}/v1/bank-accounts", query.url())).send();
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
