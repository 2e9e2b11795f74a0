//! Transfers: they end well whatever the accounts say, however often their commands come.

use millrace_tests::{
    Deployment, Services, commands, eventually,
    http::post,
    kafka::{self, Draft, Producer},
    services::new_key,
    sse::Stream,
    transfers::{new_transfer, planted_request, request_at},
};
use serde_json::{Value, json};

/// An account with money in it.
fn funded(services: &Services, amount_minor: i64) -> String {
    let id = services.open("Ada");
    services.deposit(&id, amount_minor);
    id
}

fn balance(services: &Services, id: &str) -> Value {
    services.view_is_the_fold_of_the_log(id)["balance_minor"].clone()
}

#[test]
fn g11_a_transfer_moves_money_and_says_how_far_it_is() {
    let services = Services::shared();
    let (from, to) = (funded(&services, 100), services.open("Grace"));
    let id = new_transfer();
    let mut stream = Stream::open(&services.query.url(), "/v1/transfers/changes", None);
    let answer = request_at(&services.command.url(), &id, &from, &to, 60).key("one").send();
    assert_eq!((answer.status, answer.must("etag")), (201, "\"1\""), "{answer:?}");
    assert!(answer.must("location").ends_with(&format!("/v1/transfers/{id}")), "{answer:?}");
    let view = services.ended(&id);
    let expected = [
        ("id", json!(id)),
        ("from", json!(from)),
        ("to", json!(to)),
        ("amount_minor", json!(60)),
        ("currency", json!("EUR")),
        ("reference", json!("rent")),
        ("status", json!("completed")),
        ("reason", Value::Null),
        ("version", json!(3)),
    ];
    for (field, value) in expected {
        assert_eq!(view[field], value, "{field}: {view}");
    }
    assert_eq!((balance(&services, &from), balance(&services, &to)), (json!(40), json!(60)));

    // The same request again is answered as before; another under its id is refused.
    let again = request_at(&services.command.url(), &id, &from, &to, 60).key("one").send();
    assert_eq!((again.status, again.must("idempotency-replayed")), (201, "true"), "{again:?}");
    request_at(&services.command.url(), &id, &from, &to, 60).send().problem(422, "transfer-already-requested");
    let changes: Vec<String> = stream
        .until(&id, 3)
        .iter()
        .filter(|event| event.data["id"] == id)
        .map(|event| event.data["type"].as_str().expect("a type").to_owned())
        .collect();
    assert_eq!(changes, ["TransferRequested", "TransferDebited", "TransferCompleted"]);
    let history = services.ask(&format!("/v1/transfers/{id}/history")).send().json();
    assert_eq!(history["items"][1]["state"]["status"], "debited", "{history}");
    let past = services.ask(&format!("/v1/transfers/{id}?at_version=1")).send().json();
    assert_eq!(past["status"], "requested");
    for filter in [format!("from={from}"), format!("to={to}"), format!("from={from}&status=completed")] {
        let list = services.ask(&format!("/v1/transfers?{filter}&sort=-requested_at")).send().json();
        assert_eq!(list["items"], json!([view]), "{filter}");
    }
    let open = services.ask(&format!("/v1/transfers?from={from}&status=debited")).send().json();
    assert_eq!(open["items"], json!([]), "{open}");
    let stats = services.ask("/v1/transfers/stats").send().json();
    assert!(stats["transfers"]["completed"].as_i64() >= Some(1), "{stats}");
    assert!(stats["currencies"]["EUR"]["completed_minor"].as_i64() >= Some(60), "{stats}");
    // What is over is over: neither account remembers it any more.
    for account in [&from, &to] {
        eventually("settlement", || {
            let events = services.deployment.events(account);
            let last = events.last().expect("there are events");
            if last.kind == "TransferReleased" { Ok(()) } else { Err(format!("{last:?}")) }
        });
    }
    services.withdraw(&from, 40);
    services.accepted(&from, "close", &json!({}));
}

#[test]
fn g11_a_transfer_that_cannot_arrive_gives_the_money_back() {
    let services = Services::start(Deployment::new());
    let from = funded(&services, 100);
    let closed = services.open("Grace");
    services.accepted(&closed, "close", &json!({}));
    let dollars = new_key();
    let body = json!({"owner": "Ada", "currency": "USD"});
    services.accepted(&dollars, "open", &body);
    let full = funded(&services, 1_000_000_000_000_000);
    for _ in 0..8 {
        services.deposit(&full, 1_000_000_000_000_000);
    }
    let nobody = new_key();
    let poor = services.open("Ada");
    let to = services.open("Grace");
    for (from, to, amount, status, reason) in [
        (&poor, &to, 1, "refused", "insufficient-funds"),
        (&nobody, &to, 1, "refused", "account-not-found"),
        (&closed, &to, 1, "refused", "account-closed"),
        (&dollars, &to, 1, "refused", "currency-mismatch"),
        (&from, &nobody, 1, "compensated", "account-not-found"),
        (&from, &closed, 100, "compensated", "account-closed"),
        (&from, &dollars, 100, "compensated", "currency-mismatch"),
        (&from, &full, 1, "compensated", "balance-limit-exceeded"),
    ] {
        let view = services.transfer(from, to, amount);
        assert_eq!((&view["status"], &view["reason"]), (&json!(status), &json!(reason)), "{view}");
    }
    assert_eq!(balance(&services, &from), json!(100));
    let (transfers, sum) = services.deployment.money_is_where_transfers_say();
    assert_eq!((transfers.len(), sum), (8, 100 + 9_000_000_000_000_000));
    services.deployment.check_log();
    services.deployment.verify_all();
    services.deployment.verify_transfers();
}

#[test]
fn g02_g11_commands_of_transfers_that_come_again_move_nothing() {
    let services = Services::start(Deployment::new());
    let (rich, to) = (funded(&services, 1_000), services.open("Grace"));
    for (from, to, amount) in [(&rich, &to, 10), (&rich, &"nobody".to_owned(), 20), (&to, &rich, 5_000)] {
        services.transfer(from, to, amount);
    }
    let deployment = &services.deployment;
    let before = deployment.money_is_where_transfers_say();
    // Everything that was ever sent, once more: as when a topic is copied onto itself.
    let producer = Producer::new("murmur2_random");
    for topic in [deployment.topic("commands"), deployment.transfer_topic("commands")] {
        for record in kafka::read(&topic, None) {
            let id = record.header("ce_id").expect("commands over HTTP and of transfers have ids");
            let mut draft = Draft { key: record.key, value: record.value, ..Draft::default() };
            draft = draft.header("ce_id", id);
            producer.send(&topic, &draft);
        }
    }
    // A last one in each partition tells that they were handled.
    let mut ids = vec![rich.clone()];
    ids.extend((0..deployment.partitions).map(|partition| deployment.id_in(partition)));
    for id in &ids[1..] {
        services.accepted(id, "open", &json!({"owner": "Ada", "currency": "EUR"}));
    }
    let last = services.transfer(&rich, &to, 1);
    assert_eq!(last["status"], "completed", "{last}");
    for id in &ids[1..] {
        services.transfer(&rich, id, 1);
    }
    let (transfers, sum) = deployment.money_is_where_transfers_say();
    assert_eq!(sum, before.1);
    for (id, told) in &before.0 {
        assert_eq!(transfers[id], *told, "{id}");
    }
    assert_eq!(balance(&services, &rich), json!(1_000 - 10 - 1 - 3));
    deployment.check_log();
    deployment.verify_all();
    deployment.verify_transfers();
}

#[test]
fn g11_an_account_with_a_debit_under_way_cannot_be_closed() {
    let services = Services::start(Deployment::new());
    let from = funded(&services, 60);
    // Of a transfer that is none: nobody will ever settle it.
    let producer = Producer::new("murmur2_random");
    let send = |value: Vec<u8>, id: &str| {
        producer.send(&services.deployment.topic("commands"), &Draft::new(&from, value).header("ce_id", id));
        services.deployment.outcome(id).1
    };
    let debited = send(commands::debit_transfer("none", 60, "EUR"), "transfer/none/debit");
    assert_eq!(debited["outcome"], "accepted", "{debited}");
    let refused = services.command(&from, "close", &json!({})).send().problem(422, "transfer-pending");
    assert_eq!(refused["pending"], 1, "{refused}");
    let refunded = send(commands::refund_transfer("none"), "transfer/none/refund");
    assert_eq!(refunded["outcome"], "accepted", "{refunded}");
    assert_eq!(balance(&services, &from), json!(60));
    services.withdraw(&from, 60);
    services.accepted(&from, "close", &json!({}));
    // What came of it was told to a transfer that does not exist, and did no harm.
    let told = |record: &kafka::Record| record.header("ce_id").as_deref() == Some("transfer/none/debit-accepted");
    eventually("answer to the debit", || {
        let found = kafka::read(&services.deployment.transfer_topic("commands"), None).iter().any(told);
        if found { Ok(()) } else { Err("not yet".to_owned()) }
    });
    services.deployment.check_log();
}

#[test]
fn g13_what_only_transfers_send_is_believed_of_nobody_else() {
    let services = Services::start(Deployment::new());
    let from = funded(&services, 60);
    let producer = Producer::new("murmur2_random");
    // Without an id, under another one, and under that of another transfer.
    for (at, id) in [None, Some("my-own"), Some("transfer/another/debit")].iter().enumerate() {
        let mut draft = Draft::new(&from, commands::debit_transfer("none", 60, "EUR"));
        if let Some(id) = id {
            draft = draft.header("ce_id", id);
        }
        producer.send(&services.deployment.topic("commands"), &draft);
        eventually("dead letter", || {
            let letters = services.deployment.read("dead-letters");
            if letters.len() > at { Ok(()) } else { Err(letters.len().to_string()) }
        });
    }
    let letter = services.deployment.read("dead-letters").pop().expect("there is one");
    assert!(letter.header("millrace_error").is_some_and(|why| why.contains("only a process")), "{letter:?}");
    assert_eq!(balance(&services, &from), json!(60));
    // What anybody may send is no step of a transfer, under whatever id: nothing is concluded from it.
    let deposit = Draft::new(&from, commands::deposit(1)).header("ce_id", "transfer/some/credit");
    producer.send(&services.deployment.topic("commands"), &deposit);
    assert_eq!(services.deployment.outcome("transfer/some/credit").1["outcome"], "accepted");
    // An id as long as can be makes command ids that are longer than those of callers.
    let (to, id) = (services.open("Grace"), "t".repeat(128));
    let asked = request_at(&services.command.url(), &id, &from, &to, 60).send();
    assert_eq!(asked.status, 201, "{asked:?}");
    assert_eq!(services.ended(&id)["status"], "completed");
    let outcome = services.ask(&format!("/v1/bank-accounts/{to}/commands/transfer%2F{id}%2Fcredit")).send();
    assert_eq!(outcome.json()["outcome"], "accepted", "{outcome:?}");
    let sent = kafka::read(&services.deployment.transfer_topic("commands"), None);
    let about = |id: &str| sent.iter().filter(|record| record.key.as_deref() == Some(id.as_bytes())).count();
    assert_eq!((about(&id), about("some")), (3, 0), "request, debit and credit of the one; nothing of the other");
    services.deployment.check_log();
}

#[test]
fn g13_a_malformed_transfer_is_refused() {
    let services = Services::shared();
    let url = |id: &str| format!("{}/v1/transfers/{id}/request", services.command.url());
    let good = json!({"from": "a", "to": "b", "amount_minor": 1, "currency": "EUR"});
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    for (body, pointer) in [
        (with("amount_minor", json!(0)), "/amount_minor"),
        (with("amount_minor", json!(1.5)), "/amount_minor"),
        (with("currency", json!("ZZZ")), "/currency"),
        (with("from", json!("not an id")), "/from"),
        (with("to", json!("stats")), "/to"),
        (with("reference", json!("x".repeat(141))), "/reference"),
        (with("fee", json!(1)), "/fee"),
    ] {
        let problem = post(&url(&new_transfer())).json(&body).send().problem(400, "malformed-request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    post(&url(&new_transfer())).json(&with("to", json!("a"))).send().problem(422, "same-account");
    // What only Millrace says to a transfer, and to accounts, is no command over HTTP.
    for path in ["transfers/t-1/record-debit", "transfers/t-1/retry", "bank-accounts/a/refund-transfer"] {
        let answer = post(&format!("{}/v1/{path}", services.command.url())).json(&json!({})).send();
        answer.problem(404, "unknown-command");
    }
    let reserved = post(&url(&new_transfer())).json(&good).key("transfer/t-1/debit").send();
    reserved.problem(400, "malformed-request");
    services.ask("/v1/transfers/t-1?until=never").send().problem(400, "malformed-request");
    services.ask("/v1/bank-accounts/acc-1?until=final").send().problem(400, "malformed-request");
    let none = services.ask("/v1/transfers/t-none?until=final&wait_ms=10").send();
    assert_eq!(none.must("millrace-stale"), "true");
    none.problem(404, "not-found");
    services.ask("/v1/transfers/changes?status=debited").send().problem(400, "malformed-request");
}

#[test]
fn g11_a_transfer_that_is_stuck_is_shown_and_moved() {
    let deployment = Deployment::new();
    let mut services = Services::start(deployment.clone());
    let (from, to) = (funded(&services, 100), services.open("Grace"));
    // Millrace does not take over a partition with events of which no command was ever handled.
    let first = services.transfer(&to, &from, 1);
    let partition = |id: &str| deployment.partition_of(id);
    let id = std::iter::repeat_with(new_transfer)
        .find(|id| partition(id) == partition(first["id"].as_str().expect("an id")))
        .expect("ids spread over partitions");
    services.command.terminate();
    // A request whose debit was lost: no command of it is in any topic.
    let planted = planted_request(&id, &from, &to, 70, deployment.partitions);
    Producer::new("murmur2_random").send(&deployment.transfer_topic("events"), &planted);
    services.command.start_again();
    let list = |flags: &[&str]| deployment.run_tool(&[&["transfers", "list"], flags].concat());
    let young = list(&["--older-than", "1h"]);
    assert_eq!((young.code, young.output.as_str()), (Some(0), "0 transfers not ended\n"), "{}", young.errors);
    let shown = eventually("transfer that is a second old", || {
        let shown = list(&["--older-than", "1s", "--json"]);
        assert_eq!(shown.code, Some(0), "{}", shown.errors);
        shown.json_lines().pop().ok_or_else(|| "none yet".to_owned())
    });
    assert_eq!((&shown["id"], &shown["waits_for"]), (&json!(id), &json!("debit")), "{shown}");
    assert!(shown["age_seconds"].as_i64() >= Some(1), "{shown}");
    let retried = deployment.run_tool(&["transfers", "retry", "--older-than", "1s"]);
    assert_eq!(retried.code, Some(0), "{}", retried.errors);
    assert!(retried.output.contains(&id) && retried.output.ends_with("1 transfers sent once more\n"), "{retried:?}");
    let view = services.ended(&id);
    assert_eq!((&view["status"], &view["version"]), (&json!("completed"), &json!(4)), "{view}");
    assert_eq!((balance(&services, &from), balance(&services, &to)), (json!(30), json!(70)));
    let over = deployment.run_tool(&["transfers", "retry", "--id", "t-none"]);
    assert_eq!(over.code, Some(1));
    assert!(over.errors.contains("no transfer \"t-none\" that waits"), "{}", over.errors);
    deployment.wait_settled();

    // Another one has completed, and its target never heard of it: the credit is planted, and what follows is lost with it.
    let planted = commands::credit_transfer(&id, 5, "EUR");
    let place = Draft::new(&to, planted).header("ce_id", format!("transfer/{id}/again"));
    Producer::new("murmur2_random").send(&deployment.topic("commands"), &place);
    deployment.outcome(&format!("transfer/{id}/again"));
    let unsettled = || {
        let shown = list(&["--older-than", "1s", "--settlements", "--json"]);
        assert_eq!(shown.code, Some(0), "{}", shown.errors);
        shown.json_lines()
    };
    let shown = eventually("transfer that is not settled", || unsettled().pop().ok_or_else(|| "none".to_owned()));
    assert_eq!((&shown["id"], &shown["waits_for"]), (&json!(id), &json!("settle")), "{shown}");
    assert_eq!(list(&["--older-than", "1s", "--json"]).output, "", "it has ended");
    let again = deployment.run_tool(&["transfers", "retry", "--older-than", "1s", "--settlements"]);
    assert!(again.code == Some(0) && again.output.ends_with("1 transfers sent once more\n"), "{again:?}");
    deployment.verify_transfers();
}
