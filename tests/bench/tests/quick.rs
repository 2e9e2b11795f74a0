//! Keeps the benchmarks alive: one short round of each on real parts. How fast it is says nothing here.

use std::{fs, time::Duration};

use millrace_tests::process::{command, run};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_millrace-bench");
const NAMES: [&str; 28] = [
    "write.throughput",
    "write.cpu",
    "write.exactly-once",
    "store.zipf",
    "store.uniform",
    "transfers.rate",
    "http.p50",
    "http.p99",
    "project.steady",
    "project.rebuild",
    "project.memory",
    "visible.p99",
    "verify.rate",
    "get.view",
    "get.hello",
    "list.p99",
    "asof.p99",
    "sse.rate",
    "sse.memory",
    "visible.after",
    "decode.upcast",
    "decode.personal",
    "deadlines.start",
    "deadlines.memory",
    "takeover.seconds",
    "restart.warm",
    "restart.cold",
    "restart.memory",
];

#[test]
fn every_measure_gives_a_result() {
    let file = std::env::temp_dir().join(format!("millrace-bench-{}.json", std::process::id()));
    let mut bench = command(BENCH);
    bench.args(["--quick", "--json"]).arg(&file);
    let output = run(bench, Duration::from_secs(600));
    let (table, progress) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}\n{progress}");
    assert!(progress.contains("round 1 of 1"), "it says what it does: {progress}");

    let text = fs::read(&file).expect("the results are written");
    fs::remove_file(&file).expect("the file can be removed");
    let figures: Vec<Value> = serde_json::from_slice(&text).expect("the results are a JSON array");
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().expect("a name is a text")).collect();
    assert_eq!(names, NAMES);
    for figure in &figures {
        let number = |of: &Value, member: &str| {
            let value = of[member].as_f64().unwrap_or_else(|| panic!("{member} is a number: {figure}"));
            assert!(value > 0.0 && value.is_finite(), "{member}: {figure}");
            value
        };
        let ratio = number(figure, "ours") / number(figure, "raw");
        assert!((number(figure, "ratio") / ratio - 1.0).abs() < 0.01, "{figure}");
        assert!(figure["unit"].as_str().is_some_and(|unit| !unit.is_empty()), "{figure}");
        assert!(figure["settings"].as_object().is_some_and(|settings| !settings.is_empty()), "{figure}");
        let rounds = figure["rounds"].as_array().expect("rounds are an array");
        assert_eq!(rounds.len(), 1, "{figure}");
        for member in ["ours", "raw", "ratio"] {
            number(&rounds[0], member);
        }
        let name = figure["name"].as_str().expect("a name is a text");
        assert!(table.lines().any(|line| line.starts_with(name)), "no line for {name}:\n{table}");
    }
}

#[test]
fn an_unknown_name_is_told_with_those_that_there_are() {
    let mut bench = command(BENCH);
    bench.args(["write", "wrote.throughput"]);
    let output = run(bench, Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("wrote.throughput"), "{message}");
    for name in NAMES {
        assert!(message.contains(name), "{name} is missing: {message}");
    }
}
