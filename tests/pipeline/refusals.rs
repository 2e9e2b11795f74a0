//! What is refused over HTTP: how it is answered, and that it has no effect.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
};

use millrace_tests::{
    Deployment, Services,
    fail_points::Action,
    http::{Answer, Request, get, post},
    services::{command_at, new_id, new_key},
};
use serde_json::{Value, json};

/// The account has had so many events and no more.
fn assert_events(services: &Services, id: &str, count: usize) {
    assert_eq!(services.deployment.events(id).len(), count, "a refused command had an effect");
}

fn is_malformed(answer: &Answer, pointer: &str) {
    let problem = answer.problem(400, "malformed-request");
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors: {answer:?}"));
    assert!(
        errors.iter().all(|error| error["detail"].as_str().is_some_and(|detail| !detail.is_empty())),
        "an error says nothing: {answer:?}"
    );
    assert!(!answer.text().contains("invalid type"), "serde's words: {answer:?}");
    assert!(errors.iter().any(|error| error["pointer"] == pointer), "{pointer:?} expected: {answer:?}");
}

#[test]
fn g04_an_overdraft_is_refused_with_the_figures_and_has_no_effect() {
    let services = Services::shared();
    let id = services.open("Ada");
    services.deposit(&id, 4_999);
    let refused = services.command(&id, "withdraw", &json!({"amount_minor": 5_000})).key("too-much").send();
    let problem = refused.problem(422, "insufficient-funds");
    assert_eq!((&problem["balance_minor"], &problem["requested_minor"]), (&json!(4_999), &json!(5_000)));
    assert_eq!(problem["command_id"], "too-much");
    assert_eq!(problem["aggregate"], json!({"type": "bank-account", "id": id, "version": 2}));
    assert_events(&services, &id, 2);
    // The token leads to the view that the refusal was judged by.
    assert_eq!(services.view_after(&id, &refused.token())["balance_minor"], 4_999);
    services.withdraw(&id, 4_999);
}

#[test]
fn g04_rules_refuse_what_does_not_fit_the_account() {
    let services = Services::shared();
    let payment = json!({"amount_minor": 1});
    let open = json!({"owner": "Ada", "currency": "EUR"});

    let id = new_id();
    for (command, body) in [("deposit", &payment), ("withdraw", &payment), ("close", &json!({}))] {
        let problem = services.command(&id, command, body).send().problem(422, "account-not-found");
        assert_eq!(problem["aggregate"], json!({"type": "bank-account", "id": id, "version": 0}), "{command}");
        assert!(problem["command_id"].is_string());
    }
    services.accepted(&id, "open", &open);
    let problem = services.command(&id, "open", &open).send().problem(422, "account-already-open");
    assert_eq!(problem["aggregate"]["version"], 1);
    services.deposit(&id, 1);
    let problem = services.command(&id, "close", &json!({})).send().problem(422, "balance-not-zero");
    assert_eq!(problem["balance_minor"], 1);
    services.withdraw(&id, 1);
    services.accepted(&id, "close", &json!({}));
    for (command, body) in [("deposit", &payment), ("withdraw", &payment), ("close", &json!({})), ("open", &open)] {
        let problem = services.command(&id, command, body).send().problem(422, "account-closed");
        assert_eq!(problem["aggregate"]["version"], 4, "{command}");
    }
    assert_events(&services, &id, 4);
}

#[test]
fn g04_a_balance_has_a_limit() {
    let services = Services::shared();
    let id = services.open("Basil");
    let most = 1_000_000_000_000_000_i64;
    for _ in 0..9 {
        services.deposit(&id, most);
    }
    let problem =
        services.command(&id, "deposit", &json!({"amount_minor": 1})).send().problem(422, "balance-limit-exceeded");
    assert_eq!((&problem["balance_minor"], &problem["requested_minor"]), (&json!(9 * most), &json!(1)));
    let token = services.withdraw(&id, 1).token();
    assert_eq!(services.view_after(&id, &token)["balance_minor"], 9 * most - 1);
}

#[test]
fn g13_malformed_bodies_are_answered_400_and_pointed_at() {
    let services = Services::shared();
    let id = services.open("Chidi");
    let to = |command: &str| format!("{}/v1/bank-accounts/{id}/{command}", services.command.url());
    let send = |command: &str, body: &[u8]| post(&to(command)).raw("application/json", body).send();

    let nested = [b'['; 60_000];
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"1",
        b"\"text\"",
        b"{} {}",
        b"{\"amount_minor\": 1",
        b"{\"amount_minor\": 01}",
        b"\xff\xfe",
        b"{\"amount_minor\": 1, \"reference\": \"\xff\"}",
        &nested,
    ] {
        let answer = send("deposit", body);
        answer.problem(400, "malformed-request");
    }
    for (command, body, pointer) in [
        ("deposit", r"{}", "/amount_minor"),
        ("deposit", r#"{"amount_minor": null}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": 0}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": -1}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": 1000000000000001}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": 9223372036854775808}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": 10.0}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": "10"}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": true}"#, "/amount_minor"),
        ("deposit", r#"{"amount_minor": 1, "reference": 7}"#, "/reference"),
        ("deposit", r#"{"amount_minor": 1, "amount": 1}"#, "/amount"),
        ("deposit", r#"{"amount_minor": 1, "amount_minor": 1}"#, "/amount_minor"),
        ("withdraw", r#"{"amount_minor": 0}"#, "/amount_minor"),
        ("withdraw", r#"{"reference": "rent"}"#, "/amount_minor"),
        ("close", r#"{"reason": "moved"}"#, "/reason"),
        ("open", r#"{"owner": "Ada"}"#, "/currency"),
        ("open", r#"{"currency": "EUR"}"#, "/owner"),
        ("open", r#"{"owner": "", "currency": "EUR"}"#, "/owner"),
        ("open", r#"{"owner": "a\u0007b", "currency": "EUR"}"#, "/owner"),
        ("open", r#"{"owner": "Ada", "currency": "eur"}"#, "/currency"),
        ("open", r#"{"owner": "Ada", "currency": "EURO"}"#, "/currency"),
        ("open", r#"{"owner": "Ada", "currency": "DEM"}"#, "/currency"),
        ("open", r#"{"owner": "Ada", "currency": ""}"#, "/currency"),
        ("open", r#"{"owner": ["Ada"], "currency": "EUR"}"#, "/owner"),
    ] {
        is_malformed(&send(command, body.as_bytes()), pointer);
    }
    let long = |length| "ä".repeat(length);
    is_malformed(&services.command(&id, "open", &json!({"owner": long(201), "currency": "EUR"})).send(), "/owner");
    let reference = json!({"amount_minor": 1, "reference": long(141)});
    is_malformed(&services.command(&id, "deposit", &reference).send(), "/reference");
    // Everything that is wrong is told at once.
    let both = services.command(&id, "deposit", &json!({"reference": 7, "colour": "red"})).send();
    for pointer in ["/amount_minor", "/reference", "/colour"] {
        is_malformed(&both, pointer);
    }
    assert_events(&services, &id, 1);
}

#[test]
fn values_at_the_limits_are_accepted() {
    let services = Services::shared();
    let id = new_id();
    let owner = "ä".repeat(200);
    services.accepted(&id, "open", &json!({"owner": owner, "currency": "JPY"}));
    let reference = "€".repeat(140);
    services.accepted(&id, "deposit", &json!({"amount_minor": 1_000_000_000_000_000_i64, "reference": reference}));
    services.accepted(&id, "deposit", &json!({"amount_minor": 1, "reference": null}));
    services.accepted(&id, "deposit", &json!({"amount_minor": 1, "reference": ""}));
    let events = services.deployment.events(&id);
    assert_eq!(events[0].fields["owner"], owner);
    let references: Vec<_> = events[1..].iter().map(|event| &event.fields["reference"]).collect();
    assert_eq!(references, [&json!(reference), &Value::Null, &json!("")]);

    // 64 KiB and no more.
    let url = format!("{}/v1/bank-accounts/{id}/deposit", services.command.url());
    let padded = |length: usize| {
        let body = r#"{"amount_minor": 1}"#;
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    let full = post(&url).raw("application/json", padded(65_536)).send();
    assert_eq!(full.status, 200, "{full:?}");
    post(&url).raw("application/json", padded(65_537)).send().problem(413, "too-large");

    for content_type in ["application/json; charset=utf-8", "Application/JSON"] {
        let answer = post(&url).raw(content_type, r#"{"amount_minor": 1}"#).send();
        assert_eq!(answer.status, 200, "{content_type}: {answer:?}");
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        post(&url).raw(content_type, r#"{"amount_minor": 1}"#).send().problem(415, "unsupported-media-type");
    }
    let mut without = Request::new("POST", &url);
    without = without.header("Content-Length", "0");
    without.send().problem(415, "unsupported-media-type");
    assert_events(&services, &id, 7);

    let longest = format!("{}-{}", new_id(), ".:_-".repeat(32));
    for id in [&longest[..128], "x"] {
        let url = format!("{}/v1/bank-accounts/{id}/deposit", services.command.url());
        post(&url).json(&json!({"amount_minor": 1})).send().problem(422, "account-not-found");
    }
}

#[test]
fn g13_ids_that_are_none_are_answered_400() {
    let services = Services::shared();
    let too_long = "x".repeat(129);
    for id in
        [".", "..", "%2e", "%2E%2E", "stats", "changes", "a%20b", "a%2Fb", "%C3%A4", "a+b", "a%00b", "%FF", &too_long]
    {
        let url = format!("{}/v1/bank-accounts/{id}/open", services.command.url());
        let answer = post(&url).json(&json!({"owner": "Ada", "currency": "EUR"})).send();
        let problem = answer.problem(400, "malformed-request");
        assert!(problem["errors"].as_array().is_some_and(|errors| !errors.is_empty()), "{id}: {answer:?}");
    }
    for id in ["a%20b", "a%2Fb", "%C3%A4", "a+b", "%FF", &too_long] {
        let answer = services.ask(&format!("/v1/bank-accounts/{id}")).send();
        answer.problem(400, "malformed-request");
    }
}

#[test]
fn paths_and_methods_that_are_none_are_told_apart() {
    let services = Services::shared();
    let (commands, queries) = (services.command.url(), services.query.url());
    let id = new_id();
    let body = json!({});

    post(&format!("{commands}/v1/bank-accounts/{id}/fly")).json(&body).send().problem(404, "unknown-command");
    for path in ["/nowhere", "/v1/pirate-ships/x/sail", "/v1", "/v2/bank-accounts/x/open"] {
        post(&format!("{commands}{path}")).json(&body).send().problem(404, "not-found");
        get(&format!("{queries}{path}")).send().problem(404, "not-found");
    }
    let answer = get(&format!("{commands}/v1/bank-accounts/{id}/deposit")).send();
    answer.problem(405, "method-not-allowed");
    assert_eq!(answer.must("allow"), "POST");
    let answer = Request::new("DELETE", &format!("{queries}/v1/bank-accounts/{id}")).send();
    answer.problem(405, "method-not-allowed");
    let mut allowed: Vec<_> = answer.must("allow").split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD"]);
}

#[test]
fn head_is_answered_wherever_get_is() {
    let services = Services::shared();
    let id = services.open("Dalia");
    let token = services.deposit(&id, 7).token();
    services.view_after(&id, &token);
    let queries = services.query.url();
    let mut urls = vec![format!("{}/problems/insufficient-funds", services.command.url())];
    for path in [format!("/v1/bank-accounts/{id}"), "/v1/bank-accounts".into(), "/problems/not-found".into()] {
        urls.push(format!("{queries}{path}"));
    }
    for service in [&services.command, &services.projector, &services.query] {
        for path in ["/health/live", "/health/ready", "/metrics"] {
            urls.push(format!("{}{path}", service.ops_url()));
        }
    }
    for url in urls {
        let head = Request::new("HEAD", &url).send();
        let full = get(&url).send();
        assert_eq!((head.status, full.status), (200, 200), "{url}: {head:?}");
        assert!(head.body.is_empty() && !full.body.is_empty(), "{url}");
        assert_eq!(head.header("content-type"), full.header("content-type"), "{url}");
        assert_eq!(head.header("etag"), full.header("etag"), "{url}");
    }
}

#[test]
fn every_problem_has_a_page_on_both_services() {
    let services = Services::shared();
    for name in [
        "malformed-request",
        "unauthenticated",
        "unknown-command",
        "not-found",
        "method-not-allowed",
        "version-conflict",
        "too-large",
        "unsupported-media-type",
        "insufficient-funds",
        "account-not-found",
        "account-closed",
        "account-already-open",
        "balance-not-zero",
        "balance-limit-exceeded",
        "idempotency-key-reused",
        "overloaded",
        "unavailable",
        "internal",
        "outcome-unknown",
    ] {
        for service in [&services.command, &services.query] {
            let page = get(&format!("{}/problems/{name}", service.url())).send();
            assert_eq!(page.status, 200, "{name} on {}: {page:?}", service.kind);
            assert!(page.text().contains(name), "{page:?}");
        }
    }
    get(&format!("{}/problems/bad-weather", services.query.url())).send().problem(404, "not-found");
}

#[test]
fn g13_headers_that_are_malformed_are_answered_400() {
    let services = Services::shared();
    let id = services.open("Emre");
    let deposit = || services.command(&id, "deposit", &json!({"amount_minor": 1}));
    let too_long = "k".repeat(129);
    for key in [&b""[..], b"two words", b"\xc3\xa4", too_long.as_bytes(), b"transfer/t-1/2"] {
        deposit().header("Idempotency-Key", key).send().problem(400, "malformed-request");
    }
    for version in ["*", "1", "abc", "\"abc\"", "\"1\", \"2\"", "W/\"1\"", "\"-1\"", "\"1", "\"\"", ""] {
        deposit().header("If-Match", version).send().problem(400, "malformed-request");
    }
    assert_events(&services, &id, 1);
    // What only helps tracing does not cost a command; the longest key is one.
    let answer = deposit().header("traceparent", "garbage").key(&"k".repeat(128)).send();
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn respond_async_answers_202_and_where_the_outcome_will_be() {
    let services = Services::shared();
    let id = services.open("Freya");
    let key = new_key();
    let deposit = || services.command(&id, "deposit", &json!({"amount_minor": 12})).key(&key);
    let accepted = deposit().header("Prefer", "respond-async").send();
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(accepted.json(), json!({"command_id": key}));
    let location = accepted.must("location");
    assert_eq!(location, format!("{}/v1/bank-accounts/{id}/commands/{key}", services.query.url()));
    let stored = millrace_tests::eventually("stored outcome", || {
        let answer = get(location).try_send()?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!(stored["outcome"], "accepted");
    let repeated = deposit().send();
    assert_eq!((repeated.status, repeated.header("idempotency-replayed")), (200, Some("true")), "{repeated:?}");
    assert_eq!(repeated.json(), stored);
    assert_events(&services, &id, 2);
}

#[test]
fn g16_more_than_may_be_in_flight_is_answered_429() {
    let deployment = Deployment::new().with("MILLRACE_MAX_IN_FLIGHT", "1");
    let (service, points) = deployment.command_service_with_fail_points("c1");
    let ids: Vec<_> = (0..8).map(|_| new_id()).collect();
    let open = |id: &str| command_at(&service, id, "open", &json!({"owner": "Ada", "currency": "EUR"})).key("open");
    points.arm("begin", Action::Stall);
    thread::scope(|scope| {
        let first = open(&ids[0]);
        let first = scope.spawn(move || first.send());
        points.wait_reached("begin");
        for id in &ids[1..] {
            let refused = open(id).send();
            refused.problem(429, "overloaded");
            refused.must("retry-after").parse::<u32>().expect("seconds");
        }
        points.release("begin");
        let first = first.join().expect("an answer");
        assert_eq!(first.status, 201, "{first:?}");
    });
    assert_eq!(deployment.all_events().len(), 1, "a refused command had an effect");
    for id in &ids {
        assert_eq!(open(id).send_until_definite(millrace_tests::wait::PATIENCE).status, 201);
    }
}

/// Sends a part of a request and waits for what comes until the connection is closed.
fn stalled(url: &str, sent: &str) -> String {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("somebody listens");
    stream.set_read_timeout(Some(millrace_tests::wait::PATIENCE)).expect("a time-out can be set");
    stream.write_all(sent.as_bytes()).expect("the service reads");
    let mut read = String::new();
    stream.read_to_string(&mut read).unwrap_or_else(|error| panic!("{url} is not closed: {error}"));
    read
}

#[test]
fn g16_a_request_that_is_never_sent_whole_is_given_up() {
    let limited = Deployment::new().with("MILLRACE_HTTP_TIMEOUT_MS", "500").with("MILLRACE_MAX_CONNECTIONS", "2");
    let service = limited.command_service("c1");
    let body = "POST /v1/bank-accounts/x/deposit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\n\r\n{";
    let answer = stalled(&service.url(), body);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("/problems/request-timeout"), "{answer}");
    // Whoever holds all connections holds them for that long, and health is told meanwhile.
    let all: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(service.url().trim_start_matches("http://")).expect("somebody listens");
            stream.write_all(b"POST").expect("the service reads");
            stream
        })
        .collect();
    service.ready().expect("it is ready");
    let id = new_id();
    let open = command_at(&service, &id, "open", &json!({"owner": "Ada", "currency": "EUR"}));
    assert_eq!(open.send().status, 201);
    for mut stream in all {
        assert_eq!(stream.read(&mut [0]).expect("it is closed in order"), 0);
    }
    let query = limited.query_service();
    for url in [service.url(), query.url()] {
        for head in ["", "GET /v1", "GET / HTTP/1.1\r\nHost: x\r\n"] {
            assert_eq!(stalled(&url, head), "", "{url}");
        }
    }
}
