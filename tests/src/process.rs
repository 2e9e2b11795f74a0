//! Programs that are started, watched, hurt and ended by tests, and that never outlive them.

use std::{
    fs,
    io::{self, Write},
    net::TcpListener,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::eventually_within;

/// The path of a program of this workspace.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its own path");
    // target/release/deps/pipeline-<hash> or target/release/millrace-bench → target/release
    let mut folder = own.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("a program's folder has a parent");
    }
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing, and these tests start it. `cargo test --release --workspace` and deploy/local/test build it; \
         `cargo test -p millrace-tests` does not: run `cargo build --release --workspace --bins` first, with the same \
         profile and target folder",
        path.display()
    );
    path
}

/// A port that nobody listens on, below those that the kernel hands out.
pub fn free_port() -> u16 {
    const FIRST: u16 = 28_000;
    const COUNT: u16 = 4_500;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let start = std::process::id().wrapping_mul(37) % u32::from(COUNT);
        AtomicU16::new(u16::try_from(start).expect("below the count"))
    });
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} to {} is free", FIRST + COUNT - 1);
}

/// A command whose environment says nothing about Millrace yet.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MILLRACE_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs a short-lived program to its end.
///
/// # Panics
/// When it can't be started or does not end within `limit`; then it is killed.
#[track_caller]
pub fn run(mut command: Command, limit: Duration) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap_or_else(|error| {
        panic!("{command:?} can't be started: {error} (deploy/local/install installs what is needed)");
    });
    let pid = pid(&child);
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(limit) {
        Ok(output) => output.expect("a child can be waited for"),
        Err(_) => {
            let _ = kill(pid, Signal::SIGKILL);
            let output = ended.recv().ok().and_then(Result::ok);
            let said = output.map(|o| (o.stdout, o.stderr)).unwrap_or_default();
            panic!(
                "{command:?} did not end within {limit:?}\n{}\n{}",
                String::from_utf8_lossy(&said.0),
                String::from_utf8_lossy(&said.1)
            );
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// From the signal to the end.
    pub took: Duration,
}

/// A program that runs until it is told to end; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it with its output in `log` (appended). The kernel kills it when this test program ends, however that
    /// comes.
    pub fn start(command: &Command, log: &Path) -> Self {
        // The kernel means the end of the *thread* that started a child, so one that never ends starts all.
        static STARTER: LazyLock<Sender<(Command, Sender<io::Result<Child>>)>> = LazyLock::new(|| {
            let (sender, receiver) = mpsc::channel::<(Command, Sender<io::Result<Child>>)>();
            thread::spawn(move || {
                for (mut command, answer) in receiver {
                    let _ = answer.send(command.spawn());
                }
            });
            sender
        });
        let mut output = fs::File::options().create(true).append(true).open(log).expect("the log can be written");
        writeln!(output, "--- {command:?}").expect("the log can be written");
        let mut tied = Command::new(binary("millrace-local"));
        tied.arg("exec").arg(std::process::id().to_string()).arg("--").arg(command.get_program());
        tied.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => tied.env(name, value),
                None => tied.env_remove(name),
            };
        }
        tied.stdin(Stdio::null()).stdout(output.try_clone().expect("a handle can be doubled")).stderr(output);
        tied.process_group(0);
        let (answer, started) = mpsc::channel();
        STARTER.send((tied, answer)).expect("the starting thread lives");
        let child = started.recv().expect("the starting thread answers").expect("the program starts");
        Self { child, ended: None }
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be asked");
        }
        self.ended
    }

    /// Sends a signal and waits for the end, at most `limit`.
    #[track_caller]
    pub fn end(&mut self, signal: Signal, limit: Duration) -> Ended {
        let since = Instant::now();
        self.signal(signal);
        let status = eventually_within(limit, &format!("end after {signal}"), || {
            self.status().ok_or_else(|| "it still runs".to_owned())
        });
        Ended { code: status.code(), signal: status.signal(), took: since.elapsed() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            kill(pid(&self.child), signal).expect("a child can be signalled");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"))
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
