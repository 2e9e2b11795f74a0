//! Kafka, the schema registry and Redis, shared by all tests of a program. What they look like depends on the program.

use std::{
    collections::HashMap,
    fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ChildStdin, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::process::{binary, command, tail};

const START_LIMIT: Duration = Duration::from_secs(120);

/// Bytes of the disk of the program `disk`.
pub const DISK_BYTES: u64 = 512 << 20;

/// What may be missing on a machine where that disk can't be mounted.
const SMALL_DISK_NEEDS: &str = "\nthis test mounts a tmpfs in a user namespace: where the kernel forbids that (sysctl \
                                kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, \
                                user.max_user_namespaces), run it as root";

/// What a program's stack looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// One broker.
    Single,
    /// Three brokers, which can also be reached through a [`crate::proxy::Proxy`].
    Cluster,
    /// One broker, and all data on a small disk.
    SmallDisk,
}

impl Shape {
    /// That of this program, told by its name.
    fn of_this_program() -> Self {
        let path = std::env::current_exe().expect("a program knows its own path");
        let name = path.file_stem().and_then(|name| name.to_str()).expect("programs have names");
        // `cluster-<hash>`
        match name.rsplit_once('-').map_or(name, |(name, _)| name) {
            "cluster" => Self::Cluster,
            "disk" => Self::SmallDisk,
            _ => Self::Single,
        }
    }

    fn brokers(self) -> u16 {
        if self == Self::Cluster { 3 } else { 1 }
    }
}

/// What the services need, running on this machine.
#[derive(Debug)]
pub struct Stack {
    /// Kafka's bootstrap address.
    pub kafka: String,
    /// The registry with its API path.
    pub registry: String,
    /// Redis.
    pub redis: String,
    /// Where the secrets of personal data lie, by variable.
    pub secrets: [(&'static str, String); 2],
    /// Logs and data of this test run.
    pub dir: PathBuf,
    /// Data of Kafka and Redis, as this program sees it.
    pub data: PathBuf,
    // Everything stops when this pipe closes, which the kernel does for us however we end.
    _input: ChildStdin,
}

impl Stack {
    /// The one of this program, started by the first test that asks.
    ///
    /// # Panics
    /// When it can't be started, in every test that needs it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Result<Stack, String>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Where logs of what runs on this stack go.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn start() -> Result<Self, String> {
        let shape = Shape::of_this_program();
        let local = binary("millrace-local");
        let dir = scratch();
        let (data, log) = (dir.join("data"), dir.join("millrace-local.log"));
        let output = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        // A shell around it removes the data afterwards and leaves the logs.
        let script = r#"data=$1; shift; "$@"; find "$data" -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf {} +"#;
        let mut shell = command("sh");
        if shape == Shape::SmallDisk {
            // A mount that nobody else sees, and that ends with the last of its processes.
            shell = command("unshare");
            shell.args(["--map-root-user", "--mount", "sh"]);
        }
        shell.arg("-c").arg(match shape {
            Shape::SmallDisk => format!(
                "data=$1; mkdir \"$data\"; mount -t tmpfs -o size={DISK_BYTES} tmpfs \"$data\" || exit; shift; \"$@\"; \
                 cp -r \"$data/logs\" \"$data.logs\""
            ),
            _ => script.to_owned(),
        });
        shell.arg("sh").arg(&data).arg(local);
        shell.args(["run", "--infra-only", "--stop-at-eof", "--port-offset", &free_offset(shape).to_string()]);
        shell.args(["--brokers", &shape.brokers().to_string()]);
        if shape == Shape::Cluster {
            shell.arg("--proxied");
        }
        shell.arg("--data").arg(&data);
        shell.stdin(Stdio::piped()).stdout(output.try_clone().map_err(|e| e.to_string())?).stderr(output);
        // Ctrl-C at a terminal ends this program; the rest follows by the pipe, once.
        shell.process_group(0);
        let mut child = shell.spawn().map_err(|error| format!("a shell can't be started: {error}"))?;
        let input = child.stdin.take().ok_or("the shell has no input")?;

        let deadline = Instant::now() + START_LIMIT;
        let seen = match shape {
            Shape::SmallDisk => PathBuf::from(format!("/proc/{}/root{}", child.id(), data.display())),
            _ => data.clone(),
        };
        let env = seen.join("env");
        while !env.exists() {
            let hint = match shape {
                Shape::SmallDisk => SMALL_DISK_NEEDS,
                _ => "",
            };
            let failed = |what| format!("Kafka, the registry and Redis {what}:\n{}{hint}", tail(&log, 40));
            if child.try_wait().map_err(|error| error.to_string())?.is_some() {
                return Err(failed("ended while starting"));
            }
            if Instant::now() > deadline {
                return Err(failed("are not ready in time"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        let text = fs::read_to_string(&env).map_err(|error| format!("{}: {error}", env.display()))?;
        let variables: HashMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let get = |name: &str| {
            variables.get(name).map(|value| (*value).to_owned()).ok_or(format!("{name} is missing in {text}"))
        };
        Ok(Self {
            kafka: get("MILLRACE_KAFKA_BOOTSTRAP")?,
            registry: get("MILLRACE_REGISTRY_URL")?,
            redis: get("MILLRACE_REDIS_URL")?,
            // As the folder is seen from here.
            secrets: [("MILLRACE_MASTER_KEYS_FILE", "master-keys"), ("MILLRACE_HASH_SECRET_FILE", "hash-secret")]
                .map(|(name, file)| (name, seen.join(file).display().to_string())),
            dir,
            data: seen,
            _input: input,
        })
    }
}

/// A folder of this run; those of runs that have ended are removed.
fn scratch() -> PathBuf {
    const NAME: &str = "millrace-tests-";
    let temp = std::env::temp_dir();
    for entry in fs::read_dir(&temp).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(NAME)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            // Another run may be removing it as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = temp.join(format!("{NAME}{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}

/// An offset whose ports are free, away from those that people use by hand.
fn free_offset(shape: Shape) -> u16 {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = 2_000 + u16::try_from(std::process::id() % 500).expect("below 500") * 10;
    // A broker listens twice, and its proxy a hundred ports above.
    let own = 0..2 * shape.brokers();
    let ports = own.flat_map(|at| [9092 + at, 9192 + at, 19092 + at]).chain([8090, 6379]);
    let ports: Vec<u16> = ports.collect();
    (start..start + 1_000)
        .step_by(10)
        .find(|offset| ports.iter().all(|port| free(port + offset)))
        .expect("some port offset is free")
}
