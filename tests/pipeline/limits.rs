//! What may be asked for, what may be kept of the answers, and how they are sent.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use millrace_tests::{
    Deployment, Services,
    http::{Request, get, post},
    process::free_port,
    services::open_at,
};
use serde_json::json;

#[test]
fn g08_several_tokens_are_waited_for_and_staleness_is_said() {
    let services = Services::shared();
    let [one, two] = [0, 1].map(|partition| {
        let id = services.deployment.id_in(partition);
        open_at(&services.command, &id, "Ada");
        id
    });
    for round in 1..=3 {
        let tokens = [&one, &two].map(|id| format!("after={}", services.deposit(id, 1).token())).join("&");
        let wait = format!("{tokens}&wait_ms=20000&stale=error");
        let list = services.ask(&format!("/v1/bank-accounts?owner=Ada&limit=200&sort=-updated_at&{wait}")).send();
        assert_eq!((list.status, list.header("millrace-stale")), (200, None), "{list:?}");
        let list = list.json();
        for id in [&one, &two] {
            let item = list["items"].as_array().and_then(|items| items.iter().find(|item| item["id"] == **id));
            assert_eq!(item.expect("it is listed")["balance_minor"], round, "{id}");
        }
        for path in ["stats".to_owned(), format!("{one}/history"), format!("{two}/statement")] {
            let answer = services.ask(&format!("/v1/bank-accounts/{path}?{wait}")).send();
            assert_eq!((answer.status, answer.header("millrace-stale")), (200, None), "{path}: {answer:?}");
        }
        let owner = services.ask(&format!("/v1/owners/Ada?{wait}")).send();
        assert_eq!(owner.status, 200, "{owner:?}");
    }
    // One that is not reached, since nobody projects any more, beside one that is.
    let mut others = Services::start(Deployment::new());
    let [other, another] = [0, 1].map(|_| others.open("Ada"));
    let [near, also_near] = [&other, &another].map(|id| others.deposit(id, 1).token());
    others.view_after(&other, &near);
    others.view_after(&another, &also_near);
    let cursor = others.ask("/v1/bank-accounts?limit=1").send().json()["next_cursor"].clone();
    others.projector.terminate();
    let far = others.deposit(&another, 1).token();
    for path in ["", "/stats", &format!("/{other}/history"), &format!("/{other}/statement")] {
        let path = format!("/v1/bank-accounts{path}?after={near}&after={far}&wait_ms=50");
        let stale = others.ask(&path).send();
        assert_eq!((stale.status, stale.header("millrace-stale")), (200, Some("true")), "{path}: {stale:?}");
        others.ask(&format!("{path}&stale=error")).send().problem(503, "stale");
    }
    let of_another = others.ask(&format!("/v1/bank-accounts/{other}?after={near}&after={far}")).send();
    of_another.problem(400, "malformed-request");
    // Those of another deployment are none.
    let token = services.deposit(&one, 1).token();
    let cursor = cursor.as_str().expect("there is more");
    for path in [
        format!("?after={far}"),
        format!("/stats?after={far}"),
        format!("/{one}/history?after={token}&after={far}"),
        format!("/{another}?after={far}"),
        format!("?limit=1&cursor={cursor}"),
    ] {
        services.ask(&format!("/v1/bank-accounts{path}")).send().problem(400, "malformed-request");
    }
    services.ask(&format!("/v1/owners/Ada?after={far}")).send().problem(400, "malformed-request");
    let many = format!("/v1/bank-accounts?{}", vec![format!("after={token}"); 33].join("&"));
    services.ask(&many).send().problem(400, "malformed-request");
}

#[test]
fn every_answer_can_be_kept_and_asked_about() {
    let services = Services::shared();
    let id = services.open("Ada");
    let token = services.deposit(&id, 100).token();
    services.view_after(&id, &token);
    let command = services.deposit(&id, 1).json()["command_id"].as_str().expect("an id").to_owned();
    let base = format!("/v1/bank-accounts/{id}");
    for path in [
        base.clone(),
        format!("{base}?at_version=1"),
        format!("{base}/history"),
        format!("{base}/history?limit=1"),
        format!("{base}/statement?to=2020-01-01T00:00:00Z"),
        format!("{base}/commands/{command}"),
        "/v1/bank-accounts?owner=nobody-of-this-name".to_owned(),
        "/v1/owners/Ada".to_owned(),
    ] {
        millrace_tests::eventually("the same answer twice", || {
            let answer = services.ask(&path).try_send()?;
            if answer.status != 200 {
                return Err(format!("{path}: {answer:?}"));
            }
            assert_eq!(answer.must("cache-control"), "private, no-cache", "{path}: {answer:?}");
            let again = services.ask(&path).header("If-None-Match", answer.must("etag")).try_send()?;
            if again.status != 304 {
                return Err(format!("{path}: {again:?}"));
            }
            assert!(again.body.is_empty() && again.header("content-type").is_none(), "{path}: {again:?}");
            assert_eq!(again.must("etag"), answer.must("etag"), "{path}");
            Ok(())
        });
        let other = services.ask(&path).header("If-None-Match", "\"another\"").send();
        assert_eq!(other.status, 200, "{path}: {other:?}");
    }
    let missing = services.ask("/v1/bank-accounts/nobody-of-this-name").send();
    assert_eq!((missing.status, missing.must("cache-control")), (404, "no-store"), "{missing:?}");
}

#[test]
fn long_answers_are_compressed_for_those_who_ask() {
    let services = Services::shared();
    let id = services.open("Ada");
    for _ in 0..20 {
        services.deposit(&id, 1);
    }
    let path = format!("/v1/bank-accounts/{id}/history?after={}", services.deposit(&id, 1).token());
    let plain = services.ask(&path).send();
    assert_eq!(plain.header("content-encoding"), None, "{plain:?}");
    let packed = services.ask(&path).header("Accept-Encoding", "gzip").send();
    assert_eq!(packed.header("content-encoding"), Some("gzip"), "{packed:?}");
    assert!(packed.must("vary").contains("accept-encoding"), "{packed:?}");
    assert!(packed.body.len() * 4 < plain.body.len(), "{} of {}", packed.body.len(), plain.body.len());
    let mut gzip = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    gzip.stdin.take().expect("a pipe").write_all(&packed.body).expect("gzip reads");
    assert_eq!(gzip.wait_with_output().expect("gzip ends").stdout, plain.body);
    let short = services.ask(&format!("/v1/bank-accounts/{id}")).header("Accept-Encoding", "gzip").send();
    assert_eq!(short.header("content-encoding"), None, "{short:?}");
    let known =
        services.ask(&path).header("Accept-Encoding", "gzip").header("If-None-Match", packed.must("etag")).send();
    assert_eq!((known.status, known.header("content-encoding"), known.body.len()), (304, None, 0), "{known:?}");
    // Somebody who takes neither.
    for nothing in ["identity;q=0", "*;q=0", "br, identity;q=0"] {
        services.ask(&path).header("Accept-Encoding", nothing).send().problem(400, "malformed-request");
    }
}

#[test]
fn g13_each_limit_has_its_setting_and_says_so() {
    let services = Services::shared();
    let deployment = services.deployment.clone();
    let limits = [
        ("MILLRACE_MAX_LIST_ITEMS", "3"),
        ("MILLRACE_MAX_HISTORY_ITEMS", "2"),
        ("MILLRACE_MAX_STATEMENT_ENTRIES", "2"),
        ("MILLRACE_MAX_WAIT_MS", "100"),
        ("MILLRACE_MAX_URI_BYTES", "600"),
        ("MILLRACE_MAX_HEADER_BYTES", "700"),
    ];
    let deployment = limits.iter().fold(deployment, |deployment, (name, value)| deployment.with(name, *value));
    let query = deployment.query_service_at(free_port());
    let id = services.open("Ada");
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    let ask = |path: &str| get(&format!("{}{path}", query.url()));
    // Below them, and the defaults follow.
    let history = ask(&format!("/v1/bank-accounts/{id}/history?after={token}&wait_ms=100")).send();
    assert_eq!(history.json()["items"].as_array().map(Vec::len), Some(2), "{history:?}");
    assert!(ask("/v1/bank-accounts").send().json()["items"].as_array().is_some_and(|items| items.len() <= 3));
    let refused = |request: Request, wanted: &str| {
        let problem = request.send().problem(400, "malformed-request");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(wanted)), "{wanted}: {problem}");
    };
    refused(ask("/v1/bank-accounts?limit=4"), "1 to 3");
    refused(ask(&format!("/v1/bank-accounts/{id}/history?limit=3")), "1 to 2");
    refused(ask("/v1/bank-accounts?wait_ms=101"), "0 to 100");
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    let of_two = format!("/v1/bank-accounts/{id}/statement?after={token}&wait_ms=100");
    assert_eq!(ask(&of_two).send().json()["entries"].as_array().map(Vec::len), Some(2));
    let token = services.deposit(&id, 1).token();
    services.view_after(&id, &token);
    refused(ask(&format!("/v1/bank-accounts/{id}/statement")), "more than 2 entries");
    refused(ask(&format!("/v1/bank-accounts?owner={}", "x".repeat(600))), "600 at most");
    refused(ask("/v1/bank-accounts").header("X-Long", "x".repeat(700)), "700 at most");
    // Far beyond them as well, and command-service likewise.
    let long = post(&format!("{}/v1/bank-accounts/{}", services.command.url(), "x".repeat(9_000))).json(&json!({}));
    refused(long, "8192 at most");
    let headers = ask("/v1/bank-accounts").header("X-Long", "x".repeat(60_000)).send();
    assert_eq!(headers.status, 431, "{headers:?}");
}

#[test]
fn g13_what_was_tampered_with_is_refused() {
    let services = Services::shared();
    let id = services.open("Ada");
    let token = services.deposit(&id, 1).token();
    let also = services.deposit(&services.open("Ada"), 1).token();
    let first = format!("/v1/bank-accounts?owner=Ada&limit=1&after={token}&after={also}&wait_ms=20000");
    let page = services.ask(&first).send().json();
    let cursor = page["next_cursor"].as_str().expect("there is more");
    assert_eq!(services.ask(&format!("/v1/bank-accounts?owner=Ada&limit=1&cursor={cursor}")).send().status, 200);
    for (name, good) in [("cursor", cursor), ("after", token.as_str())] {
        let flipped = |at: usize| {
            let mut bytes = good.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            String::from_utf8(bytes).expect("it is text")
        };
        let bad = [flipped(0), flipped(3), good[1..].to_owned(), format!("{good}AAAA"), "%00".into(), "%ff".into()];
        for bad in bad {
            let answer = services.ask(&format!("/v1/bank-accounts?owner=Ada&limit=1&{name}={bad}")).send();
            answer.problem(400, "malformed-request");
        }
    }
}
