//! `command-service import` and `export`.

use std::{path::PathBuf, process::Output, time::Duration};

use millrace_tests::{
    Deployment, Stack, account, eventually,
    process::{binary, command, run},
    services::new_id,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(180);

fn file(name: &str, lines: &[String]) -> PathBuf {
    let path = Stack::shared().dir.join(format!("{name}.ndjson"));
    std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
        .expect("the folder is writable");
    path
}

/// What a run printed: exit status, standard output, standard error.
type Printed = (Option<i32>, String, String);

fn command_service(deployment: &Deployment, args: &[&str]) -> Printed {
    let mut program = command(binary("command-service"));
    program.args(args).envs(&deployment.env);
    let Output { status, stdout, stderr } = run(program, LIMIT);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

fn import(deployment: &Deployment, path: &std::path::Path, flags: &[&str]) -> Printed {
    let path = path.to_string_lossy();
    command_service(deployment, &[&["import", &path], flags].concat())
}

/// The number behind a word of the summary.
#[track_caller]
fn figure(printed: &Printed, word: &str) -> u64 {
    let line = printed.1.lines().find(|line| line.trim_start().starts_with(word) || line.trim_end().ends_with(word));
    let line = line.unwrap_or_else(|| panic!("the summary has no {word}: {printed:?}"));
    let digits = line.split_whitespace().find_map(|part| part.parse().ok());
    digits.unwrap_or_else(|| panic!("no figure: {line}"))
}

fn line(id: &str, command: &str, day: u32, data: &Value) -> String {
    let time = format!("1993-01-{day:02}T12:00:00Z");
    json!({"aggregate": "bank-account", "id": id, "command": command, "time": time, "data": data}).to_string()
}

#[test]
fn an_import_keeps_its_dates_and_run_twice_has_no_second_effect() {
    let deployment = Deployment::new();
    let service = deployment.command_service("c1");
    let ids: Vec<_> = (0..5).map(|_| new_id()).collect();
    let mut lines = Vec::new();
    for (id, owner) in ids.iter().zip(["Ada", "Basil", "Chidi", "Dalia", "Emre"]) {
        lines.push(line(id, "open", 1, &json!({"owner": owner, "currency": "CZK"})));
    }
    for day in 2..=30 {
        for id in &ids {
            lines.push(line(id, "deposit", day, &json!({"amount_minor": 100, "reference": "interest"})));
        }
    }
    // Equal lines are different commands; the last one is refused.
    for _ in 0..2 {
        lines.push(line(&ids[0], "withdraw", 31, &json!({"amount_minor": 1_450})));
    }
    lines.push(line(&ids[0], "withdraw", 31, &json!({"amount_minor": 1})));
    let with_id = json!({
        "aggregate": "bank-account", "id": ids[1], "command": "withdraw", "command_id": "by-hand",
        "data": {"amount_minor": 2_900},
    });
    lines.push(with_id.to_string());
    let path = file("history", &lines);

    let first = import(&deployment, &path, &[]);
    assert_eq!(first.0, Some(0), "{first:?}");
    assert_eq!(figure(&first, "lines"), lines.len() as u64);
    assert_eq!(figure(&first, "accepted"), lines.len() as u64 - 1);
    assert_eq!(figure(&first, "rejected"), 1);
    assert_eq!(figure(&first, "insufficient-funds"), 1);
    assert_eq!(figure(&first, "bad lines"), 0);

    let logs = || ids.iter().map(|id| deployment.events(id)).collect::<Vec<_>>();
    let imported = logs();
    for (at, (id, events)) in ids.iter().zip(&imported).enumerate() {
        let view = account::fold(id, events).expect("it was opened");
        let balance = if at <= 1 { 0 } else { 2_900 };
        assert_eq!(view["balance_minor"], balance, "{view}");
        for event in &events[..30] {
            assert_eq!(event.time, format!("1993-01-{:02}T12:00:00.000000Z", event.sequence), "{event:?}");
        }
    }
    let by_hand = imported[1].last().expect("events");
    assert_eq!(by_hand.command_id, "by-hand");
    assert!(by_hand.time.starts_with("20"), "without a time it is the present: {by_hand:?}");

    let second = import(&deployment, &path, &[]);
    assert_eq!(second.0, Some(0), "{second:?}");
    assert_eq!(logs(), imported, "the second run had an effect");
    // Lines added at the end are new, the others stay what they were.
    lines.push(line(&ids[2], "deposit", 31, &json!({"amount_minor": 5})));
    let third = import(&deployment, &file("history", &lines), &[]);
    assert_eq!((third.0, figure(&third, "accepted")), (Some(0), 1), "{third:?}");
    assert_eq!(deployment.events(&ids[2]).len(), imported[2].len() + 1);
    assert_eq!(deployment.events(&ids[3]), imported[3]);

    // Export gives all of it back.
    let exported = command_service(&deployment, &["export", "--aggregate", "bank-account"]);
    assert_eq!(exported.0, Some(0), "{exported:?}");
    let exported: Vec<Value> = exported.1.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for id in &ids {
        let of_id: Vec<_> = exported.iter().filter(|line| line["id"] == **id).cloned().collect();
        let expected: Vec<_> = deployment
            .events(id)
            .into_iter()
            .map(|event| {
                json!({
                    "aggregate": "bank-account", "id": id, "event": event.kind, "sequence": event.sequence,
                    "command_id": event.command_id, "time": event.time, "data": event.fields,
                })
            })
            .collect();
        assert_eq!(of_id, expected);
    }
    drop(service);
}

#[test]
fn g13_bad_lines_are_reported_by_number_and_the_rest_goes_on() {
    let deployment = Deployment::new();
    let _service = deployment.command_service("c1");
    let id = new_id();
    let good = |command: &str, data: Value| line(&id, command, 1, &data);
    let deposit = || good("deposit", json!({"amount_minor": 1}));
    let twist = |name: &str, value: Value| {
        let mut line: Value = serde_json::from_str(&deposit()).expect("JSON");
        line[name] = value;
        line.to_string()
    };
    let bad = [
        "{".to_owned(),
        "[]".into(),
        "not JSON".into(),
        twist("aggregate", json!("pirate-ship")),
        twist("id", json!("two words")),
        twist("command", json!("fly")),
        twist("command_id", json!("two words")),
        twist("time", json!("yesterday")),
        twist("data", json!({"amount_minor": 0})),
        twist("data", json!({"amount_minor": 10.0})),
        twist("data", json!({"amount_minor": 1, "colour": "red"})),
        twist("data", json!([])),
        twist("colour", json!("red")),
        format!("{{\"aggregate\": \"{}\"}}", "x".repeat(300_000)),
    ];
    let mut lines = vec![good("open", json!({"owner": "Ada", "currency": "EUR"}))];
    for bad in &bad {
        lines.push(bad.clone());
        lines.push(deposit());
    }
    lines.push(String::new());
    lines.push(good("close", json!({})));
    let path = file("bad-lines", &lines);

    // Stops before anything after the first bad line.
    let strict = import(&deployment, &path, &["--strict"]);
    assert_eq!(strict.0, Some(1), "{strict:?}");
    assert!(strict.2.contains("line 2:"), "{strict:?}");
    assert_eq!(deployment.events(&id).len(), 1);

    let lenient = import(&deployment, &path, &[]);
    assert_eq!(lenient.0, Some(1), "{lenient:?}");
    for at in 0..bad.len() {
        assert!(
            lenient.2.contains(&format!("line {}:", 2 * at + 2)),
            "line {} is not reported: {lenient:?}",
            2 * at + 2
        );
    }
    assert_eq!(figure(&lenient, "bad lines"), bad.len() as u64);
    assert_eq!(figure(&lenient, "balance-not-zero"), 1);
    let events = deployment.events(&id);
    assert_eq!(account::fold(&id, &events).expect("it was opened")["balance_minor"], bad.len());

    let missing = command_service(&deployment, &["import", "/nowhere/at/all"]);
    assert!(missing.0.is_some_and(|code| code != 0) && missing.2.contains("/nowhere/at/all"), "{missing:?}");
    let unknown = command_service(&deployment, &["export", "--aggregate", "pirate-ship"]);
    assert!(unknown.0.is_some_and(|code| code != 0) && unknown.2.contains("pirate-ship"), "{unknown:?}");
    let empty = import(&deployment, &file("empty", &[]), &[]);
    assert_eq!((empty.0, figure(&empty, "lines")), (Some(0), 0), "{empty:?}");
}

#[test]
fn an_import_waits_for_a_service_that_is_restarted() {
    let deployment = Deployment::new();
    let mut service = deployment.command_service("c1");
    let id = new_id();
    let mut lines = vec![line(&id, "open", 1, &json!({"owner": "Ada", "currency": "EUR"}))];
    lines.extend((0..3_000).map(|_| line(&id, "deposit", 2, &json!({"amount_minor": 1}))));
    let path = file("restarted", &lines);
    let importing = {
        let deployment = deployment.clone();
        std::thread::spawn(move || import(&deployment, &path, &[]))
    };
    eventually("first events", || if deployment.events(&id).is_empty() { Err("none yet".into()) } else { Ok(()) });
    service.kill();
    service.start_again();
    let printed = importing.join().expect("the import ended");
    assert_eq!(printed.0, Some(0), "{printed:?}");
    assert_eq!(figure(&printed, "accepted"), 3_001, "{printed:?}");
    assert_eq!(account::fold(&id, &deployment.events(&id)).expect("it was opened")["balance_minor"], 3_000);
}
