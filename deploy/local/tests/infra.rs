//! Starts the infrastructure for real, as a user would, and checks what `run` promises about it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);

/// A `run` whose standard input this test holds: it ends with the test, whatever happens.
struct Run {
    child: Child,
    input: Option<ChildStdin>,
    output: PathBuf,
}

fn command(data: &Path, offset: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-local"));
    command
        .args(["run", "--infra-only", "--stop-at-eof", "--data"])
        .arg(data)
        .args(["--port-offset", &offset.to_string()])
        .stdin(Stdio::piped());
    command
}

impl Run {
    fn start(data: &Path, offset: u16) -> Run {
        let output = data.with_extension("out");
        let file = File::create(&output).expect("the scratch folder is writable");
        let mut child = command(data, offset)
            .stderr(file.try_clone().expect("a handle can be doubled"))
            .stdout(file)
            .spawn()
            .expect("the program starts");
        let input = child.stdin.take();
        let mut run = Run { child, input, output };
        let env = data.join("env");
        run.until("the env file", || env.exists());
        run
    }

    fn until(&mut self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition() {
            let ended = self.child.try_wait().expect("a child can be asked");
            let output = || fs::read_to_string(&self.output).unwrap_or_default();
            assert!(ended.is_none(), "ended before {what}:\n{}", output());
            assert!(Instant::now() < deadline, "no {what}:\n{}", output());
            sleep(Duration::from_millis(50));
        }
    }

    /// Kafka, the registry and Redis.
    fn parts(&self) -> Vec<u32> {
        let own = self.child.id();
        let list = format!("/proc/{own}/task/{own}/children");
        let pids = fs::read_to_string(list).expect("the run lives");
        pids.split_whitespace().map(|pid| pid.parse().expect("the kernel lists numbers")).collect()
    }

    fn close_input_and_wait(mut self) -> bool {
        drop(self.input.take());
        self.child.wait().expect("a child can be waited for").success()
    }
}

/// Runs to the end; returns whether it went well, and all output.
fn refusal(data: &Path, offset: u16) -> String {
    let ended = command(data, offset).output().expect("the program starts");
    assert!(!ended.status.success());
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

fn redis(port: u16, command: &str) -> String {
    let mut redis = TcpStream::connect(("127.0.0.1", port)).expect("Redis listens");
    write!(redis, "{command}\r\nQUIT\r\n").expect("Redis reads");
    let mut answer = String::new();
    redis.read_to_string(&mut answer).expect("Redis answers");
    answer
}

/// An offset whose ports are free now, away from those that people use by hand.
fn free_offset() -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Below the ports that the kernel hands out.
    let start = 10_500 + u16::try_from(std::process::id() % 2_000).expect("below 2,000");
    (start..start + 1_000)
        .step_by(10)
        .find(|offset| [9092, 19092, 8090, 6379].iter().all(|port| free(port + offset)))
        .expect("some offset is free")
}

fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn infrastructure_starts_refuses_company_ends_with_its_input_and_keeps_its_data() {
    let name = format!("millrace-infra-{}", std::process::id());
    let scratch = std::env::temp_dir().join(name);
    let data = scratch.join("data");
    fs::create_dir_all(&scratch).expect("the temporary folder is writable");
    let offset = free_offset();
    let redis_port = 6379 + offset;

    let run = Run::start(&data, offset);
    let env = fs::read_to_string(data.join("env")).expect("it is there");
    let env: HashMap<_, _> = env.lines().filter_map(|line| line.split_once('=')).collect();
    let expected = HashMap::from([
        ("MILLRACE_KAFKA_BOOTSTRAP", format!("127.0.0.1:{}", 9092 + offset)),
        ("MILLRACE_REDIS_URL", format!("redis://127.0.0.1:{redis_port}")),
        ("MILLRACE_REGISTRY_URL", format!("http://127.0.0.1:{}/apis/ccompat/v7", 8090 + offset)),
        ("MILLRACE_QUERY_URL", format!("http://127.0.0.1:{}", 8081 + offset)),
    ]);
    for (key, value) in &expected {
        assert_eq!(env.get(key), Some(&value.as_str()), "{key}");
    }
    for key in ["MILLRACE_TOPIC_PREFIX", "MILLRACE_PARTITIONS"] {
        assert!(env.contains_key(key), "{key}");
    }
    assert!(redis(redis_port, "SET kept yes").starts_with("+OK"));

    let same_data = refusal(&data, offset + 1_000);
    assert!(same_data.contains("is in use by another run"), "{same_data}");
    let same_ports = refusal(&scratch.join("other"), offset);
    assert!(same_ports.contains(&format!("port {} is needed for Kafka", 9092 + offset)));
    assert!(same_ports.contains("--port-offset"), "{same_ports}");

    let parts = run.parts();
    assert_eq!(parts.len(), 3);
    assert!(run.close_input_and_wait(), "ended with an error");
    assert!(parts.into_iter().all(gone), "something was left running");
    assert!(!data.join("env").exists(), "the env file outlived the run");

    let mut again = Run::start(&data, offset);
    assert!(redis(redis_port, "GET kept").contains("yes"), "data was lost");

    // Not even kill -9 leaves anything behind.
    let parts = again.parts();
    again.child.kill().expect("it lives");
    again.child.wait().expect("a child can be waited for");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !parts.iter().copied().all(gone) {
        assert!(Instant::now() < deadline, "something outlived kill -9");
        sleep(Duration::from_millis(20));
    }
    fs::remove_dir_all(&scratch).expect("the scratch folder can be removed");
}

#[test]
fn a_wrong_setting_is_told_before_anything_is_started() {
    let data = std::env::temp_dir().join(format!("millrace-settings-{}", std::process::id()));
    // Not where the other test looks.
    let offset = free_offset() + 5;
    let output = Command::new(env!("CARGO_BIN_EXE_millrace-local"))
        .args(["run", "--data"])
        .arg(&data)
        .args(["--port-offset", &offset.to_string()])
        .env("MILLRACE_BATCH_COMMANDS", "many")
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("MILLRACE_BATCH_COMMANDS") && said.contains("command-service"), "{said}");
    let logs = fs::read_dir(data.join("logs")).map_or(0, Iterator::count);
    assert_eq!(logs, 0, "something was started");
    fs::remove_dir_all(&data).expect("the scratch folder can be removed");
}
