//! What the query side answers, compared with what the log says.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
    thread,
};

use millrace_tests::{
    Deployment, Services,
    account::{Event, fold},
    commands, eventually,
    http::get,
    kafka::{Draft, Producer},
    services::{Shared, new_id, new_key},
    wait::same,
};
use serde_json::{Value, json};

/// Services with 60 accounts in them, all projected. Tests change only the accounts that they open themselves.
fn sixty() -> (Shared, &'static [String]) {
    static SIXTY: OnceLock<(Services, Vec<String>)> = OnceLock::new();
    let (services, ids) = SIXTY.get_or_init(|| {
        let services = Services::start(Deployment::new());
        let producer = Producer::new("murmur2_random");
        let topic = services.deployment.topic("commands");
        let send = |id: &str, value| {
            let key = new_key();
            producer.send(&topic, &Draft::new(id, value).header("ce_id", &key));
            key
        };
        let mut ids = Vec::new();
        let mut sent = BTreeSet::new();
        for number in 0..60 {
            let id = new_id();
            // Few owners and balances, so that there are ties.
            sent.insert(send(&id, commands::open(["Ada", "Basil", "Chidi"][number % 3], ["EUR", "CHF"][number % 2])));
            for payment in 0..number % 5 {
                sent.insert(send(&id, commands::deposit(100 + 10 * payment as i64)));
            }
            if number % 7 == 3 && number % 5 > 0 {
                sent.insert(send(&id, commands::withdraw(50, None)));
            }
            if number % 10 == 0 {
                sent.insert(send(&id, commands::close()));
            }
            ids.push(id);
        }
        eventually("events of all commands", || {
            let done = services.deployment.all_events().into_iter().map(|event| event.command_id).collect();
            same(&done, &sent)
        });
        let views = folded(&services, &ids);
        for (id, folded) in ids.iter().zip(&views) {
            eventually(&format!("view of {id} that equals the fold of its log"), || {
                let answer = services.ask(&format!("/v1/bank-accounts/{id}")).try_send()?;
                if answer.status == 200 { same(&answer.json(), folded) } else { Err(format!("{answer:?}")) }
            });
        }
        (services, ids)
    });
    (Shared::new(services), ids)
}

/// The views of the sixty, by the log.
fn folded(services: &Services, ids: &[String]) -> Vec<Value> {
    let mut by_id: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in services.deployment.all_events() {
        let id = String::from_utf8(event.record.key.clone().expect("events have keys")).expect("keys are text");
        by_id.entry(id).or_default().push(event);
    }
    ids.iter().map(|id| fold(id, &by_id[id]).expect("it was opened")).collect()
}

/// All pages of a list, one after another.
#[track_caller]
fn all_pages(services: &Services, query: &str, limit: usize, mut between: impl FnMut()) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = services.ask(&format!("/v1/bank-accounts?limit={limit}{query}{cursor}")).send();
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        let on_page = page["items"].as_array().expect("items").clone();
        assert!(on_page.len() <= limit, "{answer:?}");
        items.extend(on_page);
        match &page["next_cursor"] {
            Value::Null => return items,
            Value::String(next) => cursor = format!("&cursor={next}"),
            other => panic!("no cursor: {other}"),
        }
        between();
    }
}

fn text<'a>(view: &'a Value, field: &str) -> &'a str {
    view[field].as_str().expect("a text")
}

fn by(field: &str, left: &Value, right: &Value) -> Ordering {
    match &left[field] {
        Value::Number(_) => left[field].as_i64().cmp(&right[field].as_i64()),
        _ => text(left, field).cmp(text(right, field)),
    }
}

#[test]
fn lists_filter_sort_and_page() {
    let (services, ids) = sixty();
    let views = folded(&services, ids);
    let of_test: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    for (query, keep) in [
        ("", Box::new(|_: &Value| true) as Box<dyn Fn(&Value) -> bool>),
        ("&owner=Ada", Box::new(|view| view["owner"] == "Ada")),
        ("&status=closed", Box::new(|view| view["status"] == "closed")),
        ("&currency=CHF", Box::new(|view| view["currency"] == "CHF")),
        (
            "&owner=Basil&status=open&currency=EUR",
            Box::new(|view| view["owner"] == "Basil" && view["status"] == "open" && view["currency"] == "EUR"),
        ),
        ("&owner=Nobody", Box::new(|_| false)),
        ("&owner=ada", Box::new(|_| false)),
    ] {
        for field in ["balance_minor", "updated_at", "opened_at", "id"] {
            for (sort, descending) in [(field.to_owned(), false), (format!("-{field}"), true)] {
                let mut expected: Vec<_> = views.iter().filter(|view| keep(view)).cloned().collect();
                expected.sort_by(|left, right| {
                    let order = by(field, left, right);
                    let order = if descending { order.reverse() } else { order };
                    order.then_with(|| by("id", left, right))
                });
                let mut listed = all_pages(&services, &format!("{query}&sort={sort}"), 7, || ());
                listed.retain(|view| of_test.contains(text(view, "id")));
                let key = |views: &[Value]| -> Vec<_> {
                    views.iter().map(|view| (view[field].clone(), view["id"].clone())).collect()
                };
                // Whether ties go up or down with a falling order, nobody has promised; the same way everywhere.
                if descending && key(&listed) != key(&expected) {
                    expected
                        .sort_by(|left, right| by(field, left, right).then_with(|| by("id", left, right)).reverse());
                }
                assert_eq!(key(&listed), key(&expected), "{query} {sort}");
                assert_eq!(listed, expected, "{query} {sort}");
            }
        }
    }
    let whole = services.ask("/v1/bank-accounts?limit=200").send().json();
    assert!(whole["items"].as_array().is_some_and(|items| items.len() >= 60));
    let default = services.ask("/v1/bank-accounts").send().json();
    assert_eq!(default["items"].as_array().map(Vec::len), Some(50), "the default limit");
    assert!(default["next_cursor"].is_string());
}

#[test]
fn an_item_that_does_not_change_comes_exactly_once() {
    let (services, ids) = sixty();
    for sort in ["balance_minor", "-balance_minor", "-updated_at", "updated_at", "id"] {
        let busy: Vec<_> = (0..4).map(|_| services.open("Dalia")).collect();
        for id in &busy {
            let token = services.deposit(id, 90).token();
            services.view_after(id, &token);
        }
        let mut turn = 0;
        let listed = all_pages(&services, &format!("&sort={sort}"), 5, || {
            let id = &busy[turn % busy.len()];
            // Jumps about in the order of balances and times.
            let token =
                if turn / busy.len() % 2 == 0 { services.deposit(id, 400) } else { services.withdraw(id, 60) }.token();
            services.view_after(id, &token);
            turn += 1;
        });
        let of_test: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let mut seen: Vec<_> = listed.iter().map(|view| text(view, "id")).filter(|id| of_test.contains(id)).collect();
        assert_eq!(seen.len(), ids.len(), "{sort}");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), ids.len(), "{sort}: one came twice and another never");
    }
}

#[test]
fn g13_bad_parameters_are_answered_400() {
    let (services, ids) = sixty();
    let id = &ids[0];
    for path in [
        "?limit=0".to_owned(),
        "?limit=201".into(),
        "?limit=-1".into(),
        "?limit=ten".into(),
        "?sort=colour".into(),
        "?sort=--id".into(),
        "?sort=".into(),
        "?status=frozen".into(),
        "?currency=eur".into(),
        "?owner=".into(),
        "?colour=red".into(),
        "?cursor=garbage".into(),
        "?cursor=".into(),
        "?owner=%FF".into(),
        "?limit=1&limit=2".into(),
        "?after=garbage".into(),
        format!("/{id}?after=garbage"),
        format!("/{id}?wait_ms=-1"),
        format!("/{id}?stale=perhaps"),
        format!("/{id}?at_version=one"),
        format!("/{id}?at_version=-1"),
        format!("/{id}?at_version=1&as_of=2026-01-01T00:00:00Z"),
        format!("/{id}?as_of=yesterday"),
        format!("/{id}?colour=red"),
        format!("/{id}/history?limit=0"),
        format!("/{id}/history?limit=1001"),
        format!("/{id}/history?after_sequence=-1"),
        format!("/{id}/history?after_sequence=x"),
    ] {
        let answer = services.ask(&format!("/v1/bank-accounts{path}")).send();
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        let problem = answer.problem(400, "malformed-request");
        assert!(problem["errors"].as_array().is_some_and(|errors| !errors.is_empty()), "{path}: {answer:?}");
    }
    let token = services.deposit(&services.open("Emre"), 1).token();
    for bad in [format!("{token}x"), token[1..].to_owned(), token.to_uppercase()] {
        services.ask(&format!("/v1/bank-accounts/{id}?after={bad}")).send().problem(400, "malformed-request");
    }
    // Another aggregate's.
    services.ask(&format!("/v1/bank-accounts/{id}?after={token}")).send().problem(400, "malformed-request");
    for wait_ms in ["30001", "x", "1.5"] {
        let path = format!("/v1/bank-accounts?after={token}&wait_ms={wait_ms}");
        services.ask(&path).send().problem(400, "malformed-request");
    }
    // On lists, stats and the like any token of the type will do.
    for path in ["", "/stats"] {
        let answer = services.ask(&format!("/v1/bank-accounts{path}?after={token}&wait_ms=30000")).send();
        assert_eq!((answer.status, answer.header("millrace-stale")), (200, None), "{answer:?}");
    }
}

/// An account with a story, and its events.
fn story(services: &Services) -> (String, Vec<Event>) {
    let id = services.open("Freya");
    services.deposit(&id, 1_000);
    services.accepted(&id, "withdraw", &json!({"amount_minor": 250, "reference": "rent"}));
    services.deposit(&id, 7);
    services.withdraw(&id, 757);
    let token = services.accepted(&id, "close", &json!({})).token();
    services.view_after(&id, &token);
    let events = services.deployment.events(&id);
    assert_eq!(events.len(), 6);
    (id, events)
}

#[test]
fn history_tells_every_event_and_the_state_after_it() {
    let (services, _) = sixty();
    let (id, events) = story(&services);
    let expected: Vec<_> = (0..events.len())
        .map(|at| {
            let event = &events[at];
            json!({
                "sequence": event.sequence,
                "type": event.kind,
                "time": event.time,
                "command_id": event.command_id,
                "data": event.fields,
                "state": fold(&id, &events[..=at]),
            })
        })
        .collect();
    let base = format!("/v1/bank-accounts/{id}/history");
    let whole = services.ask(&base).send();
    assert_eq!((whole.status, whole.json()), (200, json!({"items": expected, "next": null})));
    for limit in [1, 2, 4, 5, 6] {
        let (mut items, mut path) = (Vec::new(), format!("{base}?limit={limit}"));
        loop {
            let page = services.ask(&path).send().json();
            let on_page = page["items"].as_array().expect("items").clone();
            assert!(!on_page.is_empty() && on_page.len() <= limit, "{page}");
            items.extend(on_page);
            match page["next"].as_str() {
                Some(next) => path = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(items, expected, "limit {limit}");
    }
    let rest = services.ask(&format!("{base}?after_sequence=4&limit=1000")).send().json();
    assert_eq!(rest, json!({"items": expected[4..], "next": null}));
    let beyond = services.ask(&format!("{base}?after_sequence=6")).send().json();
    assert_eq!(beyond, json!({"items": [], "next": null}));
    services.ask(&format!("/v1/bank-accounts/{}/history", new_id())).send().problem(404, "not-found");
}

#[test]
fn the_past_can_be_asked_for() {
    let (services, _) = sixty();
    let (id, events) = story(&services);
    let ask =
        |parameter: &str, value: &str| services.ask(&format!("/v1/bank-accounts/{id}?{parameter}={value}")).send();
    let moved = |time: &str, by_microseconds: i64| {
        let time: jiff::Timestamp = time.parse().expect("RFC 3339");
        format!("{:.6}", time + jiff::Span::new().microseconds(by_microseconds))
    };
    for at in 0..events.len() {
        let expected = fold(&id, &events[..=at]).expect("it was opened");
        let answer = ask("at_version", &(at + 1).to_string());
        assert_eq!((answer.status, answer.json()), (200, expected.clone()));
        assert_eq!(answer.must("etag"), format!("\"{}\"", at + 1));
        // Inclusive; events may share a time, then the last one of them counts.
        let time = &events[at].time;
        let last = events.iter().rposition(|event| event.time <= *time).expect("itself at least");
        let expected = fold(&id, &events[..=last]).expect("it was opened");
        let answer = ask("as_of", time);
        assert_eq!((answer.status, answer.json()), (200, expected));
        assert_eq!(answer.must("etag"), format!("\"{}\"", last + 1));
        let before = moved(time, -1);
        let answer = ask("as_of", &before);
        match events.iter().rposition(|event| event.time <= before) {
            Some(last) => assert_eq!((answer.status, &answer.json()["version"]), (200, &json!(last + 1))),
            None => drop(answer.problem(404, "not-found")),
        }
    }
    let present = fold(&id, &events).expect("it was opened");
    assert_eq!(ask("as_of", "2999-12-31T23:59:59Z").json(), present);
    // Any offset of RFC 3339.
    assert_eq!(ask("as_of", "2999-12-31T23:59:59%2B01:00").json(), present);
    for version in ["0", "7", "1000"] {
        let problem = ask("at_version", version).problem(404, "not-found");
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains(&format!("no version {version}")) && detail.contains("1 to 6"), "{detail}");
        assert_eq!(problem["aggregate"], json!({"type": "bank-account", "id": id, "version": 6}));
    }
}

#[test]
fn stats_are_the_sums_of_the_log() {
    let (services, _) = sixty();
    let sums = || {
        let mut currency_of = BTreeMap::new();
        let (mut open, mut closed) = (0, 0);
        let mut currencies: BTreeMap<String, [i64; 4]> = BTreeMap::new();
        for event in services.deployment.all_events() {
            let id = event.record.key.clone();
            if event.kind == "AccountOpened" {
                currency_of.insert(id.clone(), text(&event.fields, "currency").to_owned());
                open += 1;
            }
            if event.kind == "AccountClosed" {
                open -= 1;
                closed += 1;
            }
            let sums = currencies.entry(currency_of[&id].clone()).or_default();
            let change = event.change_minor();
            sums[0] += change.max(0);
            sums[1] += (-change).max(0);
            sums[2] += change;
            sums[3] += 1;
        }
        let currencies: BTreeMap<_, _> = currencies
            .into_iter()
            .map(|(currency, [deposited, withdrawn, balance, events])| {
                let of = json!({
                    "deposited_minor": deposited, "withdrawn_minor": withdrawn, "balance_minor": balance, "events": events
                });
                (currency, of)
            })
            .collect();
        json!({"accounts": {"open": open, "closed": closed}, "currencies": currencies})
    };
    // Other tests add accounts meanwhile.
    eventually("stats that equal the sums of the log", || {
        let expected = sums();
        same(&services.ask("/v1/bank-accounts/stats").try_send()?.json(), &expected)
    });
}

#[test]
fn projections_tell_how_far_they_are() {
    let (services, _) = sixty();
    let token = services.deposit(&services.open("Goran"), 1).token();
    let answer = services.ask(&format!("/v1/bank-accounts?after={token}&wait_ms=30000")).send();
    assert_eq!(answer.status, 200, "{answer:?}");
    eventually("projection that has read everything", || {
        let answer = services.ask("/v1/projections").try_send()?;
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        let projections = body["projections"].as_array().expect("a list");
        let ours = projections.iter().find(|projection| projection["name"] == "bank-accounts").expect("it is listed");
        for member in ["version", "state", "partitions", "parked", "rebuild"] {
            assert!(ours.get(member).is_some(), "no {member}: {body}");
        }
        assert_eq!((&ours["state"], &ours["parked"], &ours["rebuild"]), (&json!("live"), &json!([]), &Value::Null));
        let partitions = ours["partitions"].as_array().expect("a list");
        let numbers: Vec<_> = partitions.iter().map(|partition| partition["partition"].as_i64()).collect();
        assert_eq!(numbers, [Some(0), Some(1), Some(2)]);
        for partition in partitions {
            assert!(!partition["checkpoint"].is_null(), "{body}");
            // Other tests write at the same time.
            let (records, seconds) = (&partition["lag_records"], &partition["lag_seconds"]);
            if records != &json!(0) || seconds.as_f64() != Some(0.0) {
                return Err(body.to_string());
            }
        }
        Ok(())
    });
}

#[test]
fn what_one_has_already_is_answered_304() {
    let (services, ids) = sixty();
    let path = format!("/v1/bank-accounts/{}", ids[1]);
    let full = services.ask(&path).send();
    let etag = full.must("etag").to_owned();
    for known in [etag.clone(), format!("W/{etag}"), format!("\"99\", {etag}"), "*".to_owned()] {
        let answer = services.ask(&path).header("If-None-Match", &known).send();
        assert_eq!((answer.status, answer.must("etag")), (304, etag.as_str()), "{known}: {answer:?}");
        assert!(answer.body.is_empty(), "{answer:?}");
    }
    let answer = services.ask(&path).header("If-None-Match", "\"99\"").send();
    assert_eq!((answer.status, answer.json()), (200, full.json()));
    services
        .ask(&format!("/v1/bank-accounts/{}", new_id()))
        .header("If-None-Match", "\"1\"")
        .send()
        .problem(404, "not-found");
}

#[test]
fn views_asked_for_at_the_same_time_are_each_what_was_asked_for() {
    let (services, ids) = sixty();
    let views = folded(&services, ids);
    thread::scope(|scope| {
        for first in 0..32 {
            let (services, views) = (&services, &views);
            scope.spawn(move || {
                // Each begins elsewhere, and among them are some that there are not.
                for (id, view) in ids.iter().zip(views).cycle().skip(7 * first).take(ids.len()) {
                    assert_eq!(services.ask(&format!("/v1/bank-accounts/{id}")).send().json(), *view);
                    let absent = services.ask(&format!("/v1/bank-accounts/{id}-absent")).send();
                    assert_eq!(absent.status, 404, "{absent:?}");
                    assert!(absent.json()["detail"].to_string().contains(&format!("{id}-absent")), "{absent:?}");
                }
            });
        }
    });
}

#[test]
fn g05_outcomes_can_be_asked_for_by_command_id() {
    let (services, _) = sixty();
    let id = services.open("Hana");
    let ask = |id: &str, key: &str| services.ask(&format!("/v1/bank-accounts/{id}/commands/{key}")).send();
    let settled = |id: &str, key: &str, status: u16| {
        eventually(&format!("{status} for {key}"), || {
            let answer = ask(id, key);
            if answer.status == status {
                return Ok(answer);
            }
            // While the projection has not passed the time of asking, nobody knows.
            assert!([503, 404].contains(&answer.status), "{answer:?}");
            if answer.status == 503 {
                answer.problem(503, "stale");
                answer.must("retry-after");
            }
            Err(format!("{answer:?}"))
        })
    };
    let deposit = services.command(&id, "deposit", &json!({"amount_minor": 5})).key("one/two%three").send();
    assert_eq!(deposit.status, 200, "{deposit:?}");
    let stored = settled(&id, "one%2Ftwo%25three", 200).json();
    assert_eq!(stored, deposit.json());

    let refused = services.command(&id, "withdraw", &json!({"amount_minor": 6})).key("refused").send();
    let mut expected = refused.json();
    expected["outcome"] = json!("rejected");
    assert_eq!(settled(&id, "refused", 200).json(), expected);

    let conflict = services.command(&id, "deposit", &json!({"amount_minor": 6})).header("If-Match", "\"1\"");
    let mut expected = conflict.key("conflict").send().json();
    expected["outcome"] = json!("rejected");
    assert_eq!(settled(&id, "conflict", 200).json(), expected);

    settled(&id, "never", 404).problem(404, "not-found");
    settled(&new_id(), "refused", 404).problem(404, "not-found");
    // A reused id does not change the stored outcome.
    services
        .command(&id, "deposit", &json!({"amount_minor": 7}))
        .key("one/two%three")
        .send()
        .problem(422, "idempotency-key-reused");
    settled(&id, "never-either", 404);
    assert_eq!(ask(&id, "one%2Ftwo%25three").json(), deposit.json());
}

#[test]
fn g08_a_reader_sees_what_was_written_or_is_told_that_it_is_stale() {
    let mut services = Services::start(Deployment::new());
    let id = services.open("Iris");
    for amount in 1..=20 {
        let token = services.deposit(&id, amount).token();
        assert_eq!(services.view_after(&id, &token)["version"], amount + 1);
    }

    services.projector.terminate();
    let token = services.deposit(&id, 100).token();
    let new = new_id();
    let opened = services.accepted(&new, "open", &json!({"owner": "Iris", "currency": "EUR"})).token();
    let base = "/v1/bank-accounts";
    for (path, token, status) in [
        (format!("{base}/{id}"), &token, 200),
        (format!("{base}/{new}"), &opened, 404),
        (format!("{base}/{id}/history"), &token, 200),
        (base.to_owned(), &token, 200),
        (base.to_owned(), &opened, 200),
        (format!("{base}/stats"), &token, 200),
    ] {
        let answer = services.ask(&format!("{path}?after={token}&wait_ms=100")).send();
        assert_eq!((answer.status, answer.must("millrace-stale")), (status, "true"), "{path}: {answer:?}");
        if status == 404 {
            answer.problem(404, "not-found");
        }
        let answer = services.ask(&format!("{path}?after={token}&wait_ms=0&stale=error")).send();
        answer.problem(503, "stale");
        answer.must("retry-after").parse::<u32>().expect("seconds");
    }
    assert_eq!(services.ask(&format!("{base}/{id}?after={token}&wait_ms=0")).send().json()["version"], 21);

    // Who waits is told as soon as it is there.
    let waiting: Vec<_> = [(&id, &token, 22), (&new, &opened, 1)]
        .into_iter()
        .map(|(id, token, version)| {
            let url = format!("{}{base}/{id}?after={token}&wait_ms=30000", services.query.url());
            std::thread::spawn(move || (get(&url).send(), version))
        })
        .collect();
    services.projector.start_again();
    for thread in waiting {
        let (answer, version) = thread.join().expect("an answer");
        assert_eq!((answer.status, answer.header("millrace-stale")), (200, None), "{answer:?}");
        assert_eq!(answer.json()["version"], version);
    }
}
