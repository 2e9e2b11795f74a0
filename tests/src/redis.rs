//! Redis: asked and changed behind the services' backs, and one of one's own that may be hurt.

use std::{fs, path::PathBuf, process::Command};

use nix::sys::signal::Signal;
use redis::{ConnectionLike, FromRedisValue, ToRedisArgs, cluster::ClusterClient};

use crate::{
    Deployment, Stack,
    process::{self, Process, free_port},
    wait::{PATIENCE, eventually},
};

/// A Redis of one's own, that may be hurt.
#[derive(Debug)]
pub struct Redis {
    /// Where it is.
    pub url: String,
    /// Its data.
    pub dir: PathBuf,
    command: Command,
    log: PathBuf,
    process: Process,
}

impl Redis {
    /// One that writes down what it is told, and is ready.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with other settings.
    pub fn start_with(args: &[&str]) -> Self {
        let (stack, port) = (Stack::shared(), free_port());
        let dir = stack.dir.join(format!("redis-{port}"));
        fs::create_dir_all(&dir).expect("the scratch folder is writable");
        let mut command = process::command("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--appendonly", "yes", "--save", ""]);
        command.args(["--maxmemory-policy", "noeviction", "--dir"]).arg(&dir).args(args);
        let log = stack.log(&format!("redis-{port}"));
        let process = Process::start(&command, &log);
        let redis = Self { url: format!("redis://127.0.0.1:{port}"), dir, command, log, process };
        redis.wait_ready();
        redis
    }

    /// kill -9.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.end(Signal::SIGKILL, PATIENCE);
    }

    /// Starts it again after its end, on the same data; waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.process = Process::start(&self.command, &self.log);
        self.wait_ready();
    }

    /// A connection to it.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    #[track_caller]
    fn wait_ready(&self) {
        eventually("Redis that is ready", || {
            let client = redis::Client::open(self.url.as_str()).map_err(|error| error.to_string())?;
            let mut connection = client.get_connection().map_err(|error| error.to_string())?;
            redis::cmd("PING").query::<()>(&mut connection).map_err(|error| error.to_string())
        });
    }
}

/// A connection to some Redis, or to a cluster.
pub struct Client(Box<dyn ConnectionLike + Send>);

impl Client {
    /// To an address.
    #[track_caller]
    pub fn new(url: &str) -> Self {
        let client = redis::Client::open(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        Self(Box::new(client.get_connection().unwrap_or_else(|error| panic!("{url}: {error}"))))
    }

    /// To a cluster; patient while another node takes over.
    #[track_caller]
    pub fn of_cluster(urls: &str) -> Self {
        let client = ClusterClient::builder(urls.split(',')).retries(40).min_retry_wait(100).max_retry_wait(500);
        let connection = client.build().and_then(|client| client.get_connection());
        Self(Box::new(connection.unwrap_or_else(|error| panic!("{urls}: {error}"))))
    }

    /// Runs a command.
    #[track_caller]
    pub fn run<T: FromRedisValue>(&mut self, name: &str, words: &[impl ToRedisArgs]) -> T {
        redis::cmd(name).arg(words).query(&mut *self.0).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

impl Deployment {
    /// A connection to its Redis.
    #[track_caller]
    pub fn redis(&self) -> Client {
        let url = &self.env["MILLRACE_REDIS_URL"];
        if self.env.contains_key("MILLRACE_REDIS_CLUSTER") { Client::of_cluster(url) } else { Client::new(url) }
    }

    /// Name of a key of an aggregate's partition: `kind` is what README's table names it, e.g. `counters`.
    pub fn view_key(&self, partition: i32, kind: &str) -> String {
        format!("{{{}.bank-accounts.v1:{partition}}}:{kind}", self.prefix)
    }
}
