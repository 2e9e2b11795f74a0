//! Statements: what moved a balance in a time.

use millrace_tests::{
    Deployment, Services,
    http::Answer,
    kafka::{Draft, Producer},
    services::{new_id, new_key, open_at},
};
use serde_json::{Value, json};

#[track_caller]
fn statement(services: &Services, id: &str, query: &str) -> Value {
    let answer = services.ask(&format!("/v1/bank-accounts/{id}/statement?{query}")).send();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// An account with a payment in each of January, February and March 2020, and the times of these payments.
fn three_months(services: &Services) -> String {
    let (id, producer) = (new_id(), Producer::new("murmur2_random"));
    let topic = services.deployment.topic("commands");
    let months = [
        ("2020-01-01T00:00:00Z", millrace_tests::commands::open("Ada", "EUR")),
        ("2020-01-31T12:00:00Z", millrace_tests::commands::deposit_for(10_000, Some("salary, \"net\""))),
        ("2020-02-01T00:00:00Z", millrace_tests::commands::withdraw(2_500, Some("rent"))),
        ("2020-03-15T08:30:00Z", millrace_tests::commands::deposit(10)),
    ];
    for (time, value) in months {
        let time: jiff::Timestamp = time.parse().expect("it is a time");
        let draft = Draft::new(&id, value).header("ce_id", new_key());
        producer.send(&topic, &Draft { timestamp_ms: Some(time.as_millisecond()), ..draft });
    }
    millrace_tests::eventually("three payments", || {
        let view = services.ask(&format!("/v1/bank-accounts/{id}")).try_send()?.json();
        if view["version"] == 4 { Ok(()) } else { Err(view.to_string()) }
    });
    id
}

fn figures(statement: &Value) -> (i64, Vec<(i64, i64)>, i64) {
    let number = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("no number in {statement}"));
    let entries = statement["entries"].as_array().expect("a list");
    let entries = entries.iter().map(|entry| (number(&entry["amount_minor"]), number(&entry["balance_minor"])));
    (number(&statement["opening_balance_minor"]), entries.collect(), number(&statement["closing_balance_minor"]))
}

#[test]
fn g08_a_statement_has_the_balances_before_between_and_after() {
    let services = Services::shared();
    let id = three_months(&services);
    let of = |query: &str| figures(&statement(&services, &id, query));
    let all = (0, vec![(10_000, 10_000), (-2_500, 7_500), (10, 7_510)], 7_510);
    assert_eq!(of(""), all);
    assert_eq!(of("from=2020-01-01T00:00:00Z"), all);
    // A month from its first moment to before that of the next: each payment is in one.
    assert_eq!(of("from=2020-01-01T00:00:00Z&to=2020-02-01T00:00:00Z"), (0, vec![(10_000, 10_000)], 10_000));
    assert_eq!(of("from=2020-02-01T00:00:00Z&to=2020-03-01T00:00:00Z"), (10_000, vec![(-2_500, 7_500)], 7_500));
    assert_eq!(of("from=2020-02-02T00:00:00Z&to=2020-03-01T00:00:00Z"), (7_500, vec![], 7_500));
    assert_eq!(of("to=2019-01-01T00:00:00Z"), (0, vec![], 0));
    assert_eq!(of("from=2030-01-01T01:00:00%2B01:00"), (7_510, vec![], 7_510));
    let january = statement(&services, &id, "to=2020-02-01T00:00:00Z");
    assert_eq!((&january["id"], &january["currency"], &january["from"]), (&json!(id), &json!("EUR"), &Value::Null));
    assert_eq!(january["to"], "2020-02-01T00:00:00.000000Z");
    let entry = &january["entries"][0];
    assert_eq!((&entry["sequence"], &entry["type"]), (&json!(2), &json!("MoneyDeposited")), "{entry}");
    assert_eq!(
        (&entry["reference"], &entry["time"]),
        (&json!("salary, \"net\""), &json!("2020-01-31T12:00:00.000000Z"))
    );
    // Not older than one's own last write.
    let token = services.withdraw(&id, 510).token();
    assert_eq!(
        of(&format!("from=2021-01-01T00:00:00Z&after={token}&wait_ms=20000")),
        (7_510, vec![(-510, 7_000)], 7_000)
    );
}

#[test]
fn a_statement_comes_as_csv_for_those_who_ask_for_it() {
    let services = Services::shared();
    let id = three_months(&services);
    let ask = services.ask(&format!("/v1/bank-accounts/{id}/statement?to=2020-03-01T00:00:00Z"));
    let answer = ask.clone().header("Accept", "text/csv").send();
    assert_eq!(answer.must("content-type"), "text/csv; charset=utf-8; header=present");
    assert!(answer.must("vary").contains("accept"), "{answer:?}");
    let text = answer.text();
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert_eq!(lines[0], "time,sequence,type,amount_minor,balance_minor,currency,reference,command_id");
    assert_eq!(lines[1], ",,opening,,0,EUR,,");
    let deposit = "2020-01-31T12:00:00.000000Z,2,MoneyDeposited,10000,10000,EUR,\"salary, \"\"net\"\"\",\"cmd-";
    assert!(lines[2].starts_with(deposit), "{text}");
    assert!(lines[3].starts_with("2020-02-01T00:00:00.000000Z,3,MoneyWithdrawn,-2500,7500,EUR,\"rent\","), "{text}");
    assert_eq!(lines[4], "2020-03-01T00:00:00.000000Z,,closing,,7500,EUR,,");
    assert_eq!(lines.len(), 5);
    assert_eq!(ask.header("Accept", "application/json").send().must("content-type"), "application/json");
}

#[test]
fn g13_statements_that_there_are_none_of_are_refused() {
    let services = Services::shared();
    let id = services.open("Ada");
    let ask =
        |id: &str, query: &str| -> Answer { services.ask(&format!("/v1/bank-accounts/{id}/statement?{query}")).send() };
    ask(&new_id(), "").problem(404, "not-found");
    for query in
        ["from=yesterday", "to=2020-13-01T00:00:00Z", "from=2021-01-01T00:00:00Z&to=2020-01-01T00:00:00Z", "x=1"]
    {
        ask(&id, query).problem(400, "malformed-request");
    }
    // Of a past that is no longer kept.
    let services = Services::start(Deployment::new().with("MILLRACE_HISTORY_MAX_ENTRIES", "10"));
    let id = new_id();
    open_at(&services.command, &id, "Ada");
    let mut token = String::new();
    for _ in 0..14 {
        token = services.deposit(&id, 1).token();
    }
    services.view_after(&id, &token);
    let trimmed = services.ask(&format!("/v1/bank-accounts/{id}/statement")).send().problem(410, "history-trimmed");
    let since = trimmed["kept_since"]["time"].as_str().expect("a time").to_owned();
    let kept = trimmed["kept_since"]["version"].as_i64().expect("a version");
    services.ask(&format!("/v1/bank-accounts/{id}/statement?from={since}")).send().problem(410, "history-trimmed");
    let after = services.ask(&format!("/v1/bank-accounts/{id}/history?after_sequence={kept}&limit=1")).send().json();
    let first = after["items"][0]["time"].as_str().expect("a time");
    let (opening, entries, closing) = figures(&statement(&services, &id, &format!("from={first}")));
    assert_eq!((opening, closing, entries.len()), (kept - 1, 14, (15 - kept) as usize));
}
