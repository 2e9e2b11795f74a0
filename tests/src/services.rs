//! The three services, started as their users start them, on a topic set of their own.

use std::{
    collections::BTreeMap,
    ops::Deref,
    panic,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    Stack,
    account::{Event, fold, partition_of},
    avro::Registry,
    http::{Answer, Request, get, post},
    kafka,
    process::{Ended, Process, binary, command, free_port, tail},
    wait::{PATIENCE, eventually, eventually_within},
};

/// Some tests start thirty at once.
const START_LIMIT: Duration = Duration::from_secs(180);
/// What the services promise for SIGTERM, and a moment for a busy machine.
pub const TERM_LIMIT: Duration = Duration::from_secs(10);

/// A topic set on the shared stack, and the settings of the services on it.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// `MILLRACE_TOPIC_PREFIX`.
    pub prefix: String,
    /// `MILLRACE_PARTITIONS`.
    pub partitions: i32,
    /// All settings, by variable.
    pub env: BTreeMap<String, String>,
    /// Where the programs of the services are, unless it is where our own is.
    pub bin_dir: Option<PathBuf>,
    /// What the programs' names begin with, before `command-service` and so on.
    pub programs: &'static str,
    query_port: u16,
}

impl Default for Deployment {
    fn default() -> Self {
        Self::new()
    }
}

impl Deployment {
    /// A fresh one, of three partitions.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stack = Stack::shared();
        let prefix = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (partitions, query_port) = (3, free_port());
        let env = [
            ("MILLRACE_KAFKA_BOOTSTRAP", stack.kafka.clone()),
            ("MILLRACE_REGISTRY_URL", stack.registry.clone()),
            ("MILLRACE_REDIS_URL", stack.redis.clone()),
            ("MILLRACE_QUERY_URL", format!("http://127.0.0.1:{query_port}")),
            ("MILLRACE_TOPIC_PREFIX", prefix.clone()),
            ("MILLRACE_PARTITIONS", partitions.to_string()),
            // Tests kill services; nobody wants to wait for the usual 10 s then.
            ("MILLRACE_SESSION_TIMEOUT_MS", "6000".to_owned()),
        ];
        let env = env.into_iter().chain(stack.secrets.clone());
        let env = env.map(|(name, value)| (name.to_owned(), value)).collect();
        Self { prefix, partitions, env, bin_dir: None, programs: "", query_port }
    }

    /// A fresh one with the services' own defaults: what is measured is what users get.
    pub fn with_defaults() -> Self {
        let mut deployment = Self { partitions: 12, ..Self::new() };
        for name in ["MILLRACE_PARTITIONS", "MILLRACE_SESSION_TIMEOUT_MS"] {
            deployment.env.remove(name);
        }
        deployment
    }

    /// The same with another setting.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Folder of the local stores.
    pub fn data_dir(&self) -> String {
        Stack::shared().log(&self.prefix).with_extension("data").display().to_string()
    }

    /// A topic's name, e.g. of `events`.
    pub fn topic(&self, suffix: &str) -> String {
        self.topic_of("bank-account", suffix)
    }

    /// A topic of any aggregate type.
    pub fn topic_of(&self, aggregate_type: &str, suffix: &str) -> String {
        format!("{}.{aggregate_type}.{suffix}", self.prefix)
    }

    /// The partition of an aggregate.
    pub fn partition_of(&self, id: &str) -> i32 {
        partition_of(id.as_bytes(), self.partitions)
    }

    /// An id whose aggregate lives in a partition.
    pub fn id_in(&self, partition: i32) -> String {
        (0..1000).map(|_| new_id()).find(|id| self.partition_of(id) == partition).expect("ids spread over partitions")
    }

    /// A command-service, started and ready.
    pub fn command_service(&self, instance: &str) -> Service {
        Service::start(self, "command-service", instance, Some(free_port()))
    }

    /// A command-service that was started, and may never be ready.
    pub fn launched_command_service(&self, instance: &str) -> Service {
        Service::launched(self, "command-service", instance, Some(free_port()))
    }

    /// A projector-service, started and ready.
    pub fn projector_service(&self, instance: &str) -> Service {
        Service::start(self, "projector-service", instance, None)
    }

    /// A query-service, started and ready, at the address that the others give in links.
    pub fn query_service(&self) -> Service {
        self.query_service_at(self.query_port)
    }

    /// A query-service on another port.
    pub fn query_service_at(&self, port: u16) -> Service {
        Service::start(self, "query-service", &format!("q{port}"), Some(port))
    }

    /// The path of a service's program.
    pub fn program(&self, kind: &str) -> PathBuf {
        let name = format!("{}{kind}", self.programs);
        self.bin_dir.as_ref().map_or_else(|| binary(&name), |dir| dir.join(&name))
    }

    /// Everything that is committed in a topic.
    pub fn read(&self, suffix: &str) -> Vec<kafka::Record> {
        kafka::read(&self.topic(suffix), None)
    }

    /// An aggregate's events, decoded.
    pub fn events(&self, id: &str) -> Vec<Event> {
        let records = kafka::read(&self.topic("events"), Some(self.partition_of(id)));
        let of_id = records.into_iter().filter(|record| record.key.as_deref() == Some(id.as_bytes()));
        of_id.map(Event::decode).collect()
    }

    /// All events, decoded, in order within each partition.
    pub fn all_events(&self) -> Vec<Event> {
        self.read("events").into_iter().map(Event::decode).collect()
    }

    /// All outcomes: record and value.
    pub fn outcomes(&self) -> Vec<(kafka::Record, Value)> {
        let decode = |record: kafka::Record| {
            let outcome = decode_outcome(&record);
            (record, outcome)
        };
        self.read("outcomes").into_iter().map(decode).collect()
    }

    /// Waits for the first outcome of a command id, and returns it with its record.
    pub fn outcome(&self, command_id: &str) -> (kafka::Record, Value) {
        eventually(&format!("outcome of {command_id}"), || {
            let found = self.outcomes().into_iter().find(|(_, outcome)| outcome["command_id"] == command_id);
            found.ok_or_else(|| "there is none".to_owned())
        })
    }
}

/// The value of a record of an outcomes topic.
#[track_caller]
pub fn decode_outcome(record: &kafka::Record) -> Value {
    let datum = Registry::shared().decode(record.value.as_deref().expect("outcomes have values"));
    assert_eq!(datum.record, "millrace.Outcome");
    datum.fields
}

/// One running service.
#[derive(Debug)]
pub struct Service {
    /// `command-service` and so on.
    pub kind: &'static str,
    /// Its log.
    pub log: PathBuf,
    http: Option<u16>,
    ops: u16,
    env: BTreeMap<String, String>,
    program: PathBuf,
    process: Process,
}

impl Service {
    fn start(deployment: &Deployment, kind: &'static str, instance: &str, http: Option<u16>) -> Self {
        let mut service = Self::launched(deployment, kind, instance, http);
        service.wait_ready();
        service
    }

    fn launched(deployment: &Deployment, kind: &'static str, instance: &str, http: Option<u16>) -> Self {
        let ops = free_port();
        let mut env = deployment.env.clone();
        let mut set = |name: &str, value: String| {
            env.entry(name.to_owned()).or_insert(value);
        };
        if let Some(http) = http {
            set("MILLRACE_HTTP_ADDR", format!("127.0.0.1:{http}"));
        }
        set("MILLRACE_OPS_ADDR", format!("127.0.0.1:{ops}"));
        set("MILLRACE_INSTANCE_ID", instance.to_owned());
        if kind == "command-service" && !deployment.env.contains_key("MILLRACE_DATA_DIR") {
            set("MILLRACE_DATA_DIR", deployment.data_dir());
        }
        let log = Stack::shared().log(&format!("{}-{kind}-{instance}", deployment.prefix));
        let program = deployment.program(kind);
        let process = Self::spawn(&program, &env, &log);
        Self { kind, log, http, ops, env, program, process }
    }

    fn spawn(program: &Path, env: &BTreeMap<String, String>, log: &Path) -> Process {
        let mut command = command(program);
        command.envs(env);
        Process::start(&command, log)
    }

    /// Base URL of the public listener.
    pub fn url(&self) -> String {
        let port = self.http.unwrap_or_else(|| panic!("{} has no public listener", self.kind));
        format!("http://127.0.0.1:{port}")
    }

    /// Base URL of the operations listener.
    pub fn ops_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ops)
    }

    /// Whether it says that it is ready; the error is its reason.
    pub fn ready(&self) -> Result<(), String> {
        let answer = get(&format!("{}/health/ready", self.ops_url())).try_send()?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    }

    /// Waits until it is ready.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        eventually_within(START_LIMIT, &format!("ready {}", self.kind), || {
            if let Some(status) = self.process.status() {
                panic!("{} ended with {status}:\n{}", self.kind, tail(&self.log, 30));
            }
            self.ready()
        });
    }

    /// Waits until query-service answers queries: before everything was read for the first time it says `rebuilding`.
    #[track_caller]
    pub fn wait_for_views(&self) {
        eventually("complete projection", || {
            let answer = get(&format!("{}/v1/bank-accounts", self.url())).try_send()?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.process.status().is_none()
    }

    /// SIGTERM; fails when it is not followed by exit status 0 in time.
    #[track_caller]
    pub fn terminate(&mut self) -> Ended {
        let ended = self.process.end(Signal::SIGTERM, TERM_LIMIT + Duration::from_secs(20));
        assert_eq!(ended.code, Some(0), "{} ended with {ended:?}:\n{}", self.kind, tail(&self.log, 30));
        assert!(ended.took <= TERM_LIMIT, "{} took {:?} to end:\n{}", self.kind, ended.took, tail(&self.log, 30));
        ended
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// kill -9.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.end(Signal::SIGKILL, PATIENCE);
    }

    /// SIGSTOP: none of its threads runs until [`Service::thaw`].
    #[track_caller]
    pub fn freeze(&mut self) {
        self.process.signal(Signal::SIGSTOP);
        self.wait_frozen();
    }

    /// Waits until none of its threads runs.
    #[track_caller]
    pub fn wait_frozen(&self) {
        eventually(&format!("{} that is frozen", self.kind), || match self.status("State:") {
            state if state.starts_with('T') => Ok(()),
            state => Err(state),
        });
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// SIGTERM, without waiting.
    pub fn tell_to_end(&mut self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended, by whatever.
    #[track_caller]
    pub fn wait_ended(&mut self) {
        eventually(&format!("end of {}", self.kind), || {
            self.process.status().map(|_| ()).ok_or_else(|| "it still runs".to_owned())
        });
    }

    /// Bytes of physical memory that it has taken at most so far.
    #[track_caller]
    pub fn peak_memory(&self) -> u64 {
        let text = self.status("VmHWM:");
        let kilobytes: u64 = text.trim_end_matches("kB").trim().parse().expect("the kernel writes a number");
        kilobytes << 10
    }

    /// A line of what the kernel says about the process.
    #[track_caller]
    fn status(&self, name: &str) -> String {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_else(|| panic!("{path} has no {name}")).trim().to_owned()
    }

    /// A metric's value, by its name with its labels; 0 while it isn't there.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = get(&format!("{}/metrics", self.ops_url())).send().text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.trim().parse().expect("metrics are numbers"))
    }

    /// Starts it again after its end, with the same settings; does not wait.
    pub fn launch(&mut self) {
        assert!(!self.runs(), "{} still runs", self.kind);
        self.process = Self::spawn(&self.program, &self.env, &self.log);
    }

    /// Starts it again after its end and waits until it is ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Waits until its log has a text.
    #[track_caller]
    pub fn wait_logged(&self, text: &str) {
        eventually(&format!("{text:?} in the log of {}", self.kind), || {
            let log = std::fs::read_to_string(&self.log).map_err(|error| error.to_string())?;
            if log.contains(text) { Ok(()) } else { Err(tail(&self.log, 30)) }
        });
    }

    /// The end of the log, for messages.
    pub fn tail(&self) -> String {
        format!("--- end of {}\n{}", self.log.display(), tail(&self.log, 30))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

/// One of each service on a topic set.
#[derive(Debug)]
pub struct Services {
    /// Their topics and settings.
    pub deployment: Deployment,
    /// command-service.
    pub command: Service,
    /// projector-service.
    pub projector: Service,
    /// query-service.
    pub query: Service,
}

/// The services that tests share; shows their logs when the test fails.
#[derive(Debug)]
pub struct Shared(&'static Services);

impl Deref for Shared {
    type Target = Services;
    fn deref(&self) -> &Services {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if thread::panicking() {
            for service in [&self.0.command, &self.0.projector, &self.0.query] {
                eprintln!("{}", service.tail());
            }
        }
    }
}

impl Shared {
    /// Others that some tests share.
    pub fn new(services: &'static Services) -> Self {
        Self(services)
    }
}

impl Services {
    /// Those that tests share which hurt nobody and use ids of their own.
    pub fn shared() -> Shared {
        static SHARED: OnceLock<Result<Services, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| {
            panic::catch_unwind(|| Self::start(Deployment::new())).map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                text.unwrap_or_else(|| "the shared services can't be started".to_owned())
            })
        });
        Shared(started.as_ref().unwrap_or_else(|reason| panic!("{reason}")))
    }

    /// Starts one of each. command-service first: it makes the topics.
    pub fn start(deployment: Deployment) -> Self {
        let command = deployment.command_service("c1");
        let (projector, query) = thread::scope(|scope| {
            let projector = scope.spawn(|| deployment.projector_service("p1"));
            let query = deployment.query_service();
            (projector.join(), query)
        });
        let projector = projector.unwrap_or_else(|failure| panic::resume_unwind(failure));
        query.wait_for_views();
        Self { deployment, command, projector, query }
    }

    /// The request of a command.
    pub fn command(&self, id: &str, command: &str, body: &Value) -> Request {
        command_at(&self.command, id, command, body)
    }

    /// Opens an account with a new id, and returns the id.
    #[track_caller]
    pub fn open(&self, owner: &str) -> String {
        let id = new_id();
        open_at(&self.command, &id, owner);
        id
    }

    /// Sends a command that must be accepted.
    #[track_caller]
    pub fn accepted(&self, id: &str, command: &str, body: &Value) -> Answer {
        let answer = self.command(id, command, body).send();
        assert!(matches!(answer.status, 200 | 201), "{command} {body}: {answer:?}");
        answer
    }

    /// Pays in.
    #[track_caller]
    pub fn deposit(&self, id: &str, amount_minor: i64) -> Answer {
        self.accepted(id, "deposit", &serde_json::json!({"amount_minor": amount_minor}))
    }

    /// Takes out.
    #[track_caller]
    pub fn withdraw(&self, id: &str, amount_minor: i64) -> Answer {
        self.accepted(id, "withdraw", &serde_json::json!({"amount_minor": amount_minor}))
    }

    /// A request to query-service.
    pub fn ask(&self, path: &str) -> Request {
        get(&format!("{}{path}", self.query.url()))
    }

    /// The view once a token is reached.
    #[track_caller]
    pub fn view_after(&self, id: &str, token: &str) -> Value {
        eventually(&format!("view of {id} with what was told"), || {
            let answer = self.ask(&format!("/v1/bank-accounts/{id}?after={token}&wait_ms=30000")).send();
            if answer.header("millrace-stale").is_some() {
                return Err(format!("{answer:?}"));
            }
            assert_eq!(answer.status, 200, "{answer:?}");
            Ok(answer.json())
        })
    }

    /// Waits until the view is what a fold of the log alone says.
    #[track_caller]
    pub fn view_is_the_fold_of_the_log(&self, id: &str) -> Value {
        eventually(&format!("view of {id} that equals the fold of its log"), || {
            // What follows on a transfer's end may come while we look.
            let folded = fold(id, &self.deployment.events(id)).expect("the account was opened");
            let answer = self.ask(&format!("/v1/bank-accounts/{id}")).try_send()?;
            if answer.status != 200 {
                return Err(format!("{answer:?}"));
            }
            crate::wait::same(&answer.json(), &folded).map(|()| folded)
        })
    }
}

/// The request of a command to one instance.
pub fn command_at(service: &Service, id: &str, command: &str, body: &Value) -> Request {
    post(&format!("{}/v1/bank-accounts/{id}/{command}", service.url())).json(body)
}

/// Opens an account at one instance.
#[track_caller]
pub fn open_at(service: &Service, id: &str, owner: &str) {
    let body = serde_json::json!({"owner": owner, "currency": "EUR"});
    let answer = command_at(service, id, "open", &body).send();
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// An aggregate id that nobody else uses.
pub fn new_id() -> String {
    format!("acc-{}", Uuid::now_v7().simple())
}

/// A command id that nobody else uses.
pub fn new_key() -> String {
    format!("cmd-{}", Uuid::now_v7())
}
