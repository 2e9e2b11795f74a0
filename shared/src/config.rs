//! The settings of all three services, in one place: each is a flag and an environment variable of the same name.
//!
//! They stand together because a `MILLRACE_` variable that none of the services knows is a mistake that has to be
//! named, and because README's table is checked against them.

use std::{collections::BTreeSet, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgMatches, Args, Command, CommandFactory, Parser, ValueEnum, error::ContextKind, parser::ValueSource};

use crate::{
    domain::{AggregateInfo, Domains},
    http::Sizes,
    kafka::topics::Names,
    personal::{HashSecret, MasterKeys},
    serve::Limits,
    views::address::Address,
};

/// Exit status of a service whose settings are wrong.
pub const EXIT_CONFIG: i32 = 2;
const ENV_PREFIX: &str = "MILLRACE_";

/// Where Kafka is, and which part of it is ours.
#[derive(Args, Clone, Debug)]
pub struct KafkaSettings {
    /// Kafka's bootstrap addresses, comma-separated
    #[arg(long, env = "MILLRACE_KAFKA_BOOTSTRAP", default_value = "127.0.0.1:9092", value_name = "HOST:PORT,…", value_parser = bootstrap)]
    pub kafka_bootstrap: String,
    /// Prefix of topics, groups and Redis keys, so that several deployments share one cluster
    #[arg(long, env = "MILLRACE_TOPIC_PREFIX", default_value = "", value_name = "PREFIX", hide_default_value = true, value_parser = topic_prefix)]
    pub topic_prefix: String,
    /// Partitions of every topic; fixed once the topics are there
    #[arg(long, env = "MILLRACE_PARTITIONS", default_value_t = 12, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=1000))]
    pub partitions: i32,
}

/// Where the schema registry is.
#[derive(Args, Clone)]
pub struct RegistrySettings {
    /// The schema registry, with the path of its Confluent-compatible API; may hold a password
    #[arg(
        long,
        env = "MILLRACE_REGISTRY_URL",
        default_value = "http://127.0.0.1:8090/apis/ccompat/v7",
        value_name = "URL",
        hide_env_values = true
    )]
    pub registry_url: String,
    /// File to read the registry's URL from instead
    #[arg(long, env = "MILLRACE_REGISTRY_URL_FILE", value_name = "FILE")]
    pub registry_url_file: Option<PathBuf>,
}

/// Where Redis is.
#[derive(Args, Clone)]
pub struct RedisSettings {
    /// Redis; may hold a password
    #[arg(
        long,
        env = "MILLRACE_REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        value_name = "URL",
        hide_env_values = true
    )]
    pub redis_url: String,
    /// File to read Redis' URL from instead
    #[arg(long, env = "MILLRACE_REDIS_URL_FILE", value_name = "FILE")]
    pub redis_url_file: Option<PathBuf>,
    /// Redis is a cluster; the URL names some of its nodes, with commas between
    #[arg(long, env = "MILLRACE_REDIS_CLUSTER", default_value_t = false, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub redis_cluster: bool,
    /// Longest wait for an answer of Redis
    #[arg(long, env = "MILLRACE_REDIS_TIMEOUT_MS", default_value_t = 5_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub redis_timeout_ms: u64,
}

/// What is logged and how.
#[derive(Args, Clone, Debug)]
pub struct LogSettings {
    /// What is logged: a tracing filter such as `info` or `info,command_service=debug`
    #[arg(long, env = "MILLRACE_LOG", default_value = "info", value_name = "FILTER", value_parser = log_filter)]
    pub log: String,
    /// How it is logged
    #[arg(long, env = "MILLRACE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Check the settings, print them, and end
    #[arg(long)]
    pub check_config: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Who this process is in its consumer group.
#[derive(Args, Clone, Debug)]
pub struct MemberSettings {
    /// Name of this instance, unique in the deployment and stable across restarts [default: host name]
    #[arg(long, env = "MILLRACE_INSTANCE_ID", value_name = "NAME", value_parser = instance_id)]
    pub instance_id: Option<String>,
    /// A silent instance's partitions go to others after so long
    #[arg(long, env = "MILLRACE_SESSION_TIMEOUT_MS", default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1_000..=300_000))]
    pub session_timeout_ms: u64,
}

impl MemberSettings {
    /// The instance's name.
    pub fn instance(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        self.instance_id
            .clone()
            .or_else(|| host().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()))
            .unwrap_or_else(|| "millrace".to_owned())
    }
}

/// Where local stores lie.
#[derive(Args, Clone, Debug)]
pub struct DataSettings {
    /// Folder of the local stores, which make restarts fast and let states outgrow memory; `none` keeps all in memory
    #[arg(long, env = "MILLRACE_DATA_DIR", default_value = "millrace-data", value_name = "DIR")]
    pub data_dir: PathBuf,
}

impl DataSettings {
    /// Whether there are to be stores.
    pub fn wanted(&self) -> bool {
        self.data_dir.as_os_str() != "none"
    }

    /// Folder of a deployment's stores; each instance has one in it.
    pub fn stores(&self, names: &Names) -> PathBuf {
        self.data_dir.join(names.group("command"))
    }
}

/// Who may call the API.
#[derive(Args, Clone)]
pub struct ApiSettings {
    /// Token that every call of the API must carry (`Authorization: Bearer …`); needed on an address that isn't
    /// loopback
    #[arg(long, env = "MILLRACE_API_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub api_token: Option<String>,
    /// File to read the token from instead
    #[arg(long, env = "MILLRACE_API_TOKEN_FILE", value_name = "FILE")]
    pub api_token_file: Option<PathBuf>,
    /// Serve everybody without a token on an address that isn't loopback
    #[arg(long, env = "MILLRACE_API_OPEN", default_value_t = false, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub api_open: bool,
}

/// What personal data is encrypted with. Needed where a type with personal data is served.
#[derive(Args, Clone)]
pub struct PersonalSettings {
    /// Master keys that people's keys are encrypted with: `<name>:<base64 of 32 bytes>`, separated by commas or lines; the
    /// first one encrypts new ones, the others are still read
    #[arg(long, env = "MILLRACE_MASTER_KEYS", value_name = "KEYS", hide_env_values = true)]
    pub master_keys: Option<String>,
    /// File to read the master keys from instead
    #[arg(long, env = "MILLRACE_MASTER_KEYS_FILE", value_name = "FILE")]
    pub master_keys_file: Option<PathBuf>,
}

/// What personal data is hashed with, where it has to be found again. Needed where a type with personal data is served.
#[derive(Args, Clone)]
pub struct HashSettings {
    /// Secret of hashes of personal data; a change has consequences, which README tells
    #[arg(long, env = "MILLRACE_HASH_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub hash_secret: Option<String>,
    /// File to read that secret from instead
    #[arg(long, env = "MILLRACE_HASH_SECRET_FILE", value_name = "FILE")]
    pub hash_secret_file: Option<PathBuf>,
}

/// What callers may hold of the API.
#[derive(Args, Clone, Copy, Debug)]
pub struct HttpSettings {
    /// Connections of callers at a time; further ones wait
    #[arg(long, env = "MILLRACE_MAX_CONNECTIONS", default_value_t = 12_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Longest wait for a request to be sent whole, for the next one on a connection, and for an answer to be taken
    #[arg(long, env = "MILLRACE_HTTP_TIMEOUT_MS", default_value_t = 30_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub http_timeout_ms: u64,
    /// Longest path with query string
    #[arg(long, env = "MILLRACE_MAX_URI_BYTES", default_value_t = 8_192, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(512..=65_536))]
    pub max_uri_bytes: u32,
    /// Largest sum of the names and values of a request's headers
    #[arg(long, env = "MILLRACE_MAX_HEADER_BYTES", default_value_t = 16_384, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(512..=262_144))]
    pub max_header_bytes: u32,
}

impl HttpSettings {
    /// As the listener takes them.
    pub fn limits(self) -> Limits {
        Limits {
            connections: self.max_connections as usize,
            timeout: Duration::from_millis(self.http_timeout_ms),
            // Somewhat more than is let through, so that the refusal can say why.
            head_bytes: 2 * (self.max_uri_bytes + self.max_header_bytes) as usize,
        }
    }

    /// What is let through.
    pub fn sizes(self) -> Sizes {
        Sizes { uri: self.max_uri_bytes as usize, headers: self.max_header_bytes as usize }
    }
}

/// How long a command id is known.
#[derive(Args, Clone, Copy, Debug)]
pub struct WindowSettings {
    /// How long the answer to a command id is remembered, e.g. `24h`
    #[arg(long, env = "MILLRACE_IDEMPOTENCY_WINDOW", default_value = "24h", value_name = "TIME", value_parser = duration)]
    pub idempotency_window: Time,
}

/// Settings of command-service.
#[derive(Args, Clone, Debug)]
pub struct CommandSettings {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub kafka: KafkaSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub registry: RegistrySettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub personal: PersonalSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub hash: HashSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub member: MemberSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub api: ApiSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub http: HttpSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub log: LogSettings,
    /// Address of the HTTP API
    #[arg(long, env = "MILLRACE_HTTP_ADDR", default_value = "127.0.0.1:8080", value_name = "IP:PORT")]
    pub http_addr: SocketAddr,
    /// Address of health and metrics
    #[arg(long, env = "MILLRACE_OPS_ADDR", default_value = "127.0.0.1:9080", value_name = "IP:PORT")]
    pub ops_addr: SocketAddr,
    /// Public base URL of query-service, for links
    #[arg(long, env = "MILLRACE_QUERY_URL", default_value = "http://127.0.0.1:8081", value_name = "URL", value_parser = base_url)]
    pub query_url: String,
    /// Replicas of each topic partition; -1 = the brokers' default
    #[arg(long, env = "MILLRACE_REPLICATION_FACTOR", default_value_t = -1, value_name = "COUNT", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1..=100))]
    pub replication_factor: i32,
    /// Threads that write, each with its own transactional producer [default: cores]
    #[arg(long, env = "MILLRACE_WRITERS", value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub writers: Option<u16>,
    /// Commands of one partition in one transaction, at most
    #[arg(long, env = "MILLRACE_BATCH_COMMANDS", default_value_t = 2_048, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch_commands: u32,
    /// Commands waiting in one partition before the consumer waits for its writer; four times as many in all those that are not paused
    #[arg(long, env = "MILLRACE_QUEUE_COMMANDS", default_value_t = 8_192, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub queue_commands: u32,
    /// An open transaction of a lost instance is aborted after so long
    #[arg(long, env = "MILLRACE_TRANSACTION_TIMEOUT_MS", default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1_000..=15_000))]
    pub transaction_timeout_ms: u64,
    /// Longest wait of an HTTP request for its outcome
    #[arg(long, env = "MILLRACE_OUTCOME_TIMEOUT_MS", default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=300_000))]
    pub outcome_timeout_ms: u64,
    /// HTTP commands in flight before further ones are answered 429
    #[arg(long, env = "MILLRACE_MAX_IN_FLIGHT", default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_in_flight: u32,
    /// Folder of fail points, for tests only: where to stall, stop or kill the service
    #[arg(long, env = "MILLRACE_FAIL_POINTS", value_name = "DIR")]
    pub fail_points: Option<PathBuf>,
    /// Decide the commands of this aggregate type alone, for tests only: what processes send to others is lost
    #[arg(long, env = "MILLRACE_ONLY_TYPE", value_name = "TYPE")]
    pub only_type: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub window: WindowSettings,
    /// Commands are deleted from their topic so long after they were handled
    #[arg(long, env = "MILLRACE_COMMANDS_RETENTION", default_value = "7d", value_name = "TIME", value_parser = duration)]
    pub commands_retention: Time,
    /// A destroyed key is to be cleared out of Kafka's files so long after the erasure, but for the brokers' own pace
    #[arg(long, env = "MILLRACE_FORGET_WITHIN", default_value = "10m", value_name = "TIME", value_parser = duration)]
    pub forget_within: Time,
    /// Bytes of remembered answers, when this instance has all partitions; at the limit commands wait until older ones expire
    #[arg(long, env = "MILLRACE_ANSWERS_BYTES", default_value_t = 17_179_869_184, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1_000..))]
    pub answers_bytes: u64,
    /// At that limit the oldest answers are forgotten instead: the idempotency window gets shorter
    #[arg(long, env = "MILLRACE_ANSWERS_FORGET", value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = false)]
    pub answers_forget: bool,
    /// Bytes of commands that wait until they are due, when this instance has all partitions; beyond it further ones are refused
    #[arg(long, env = "MILLRACE_SCHEDULED_BYTES", default_value_t = 1_073_741_824, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1_000..))]
    pub scheduled_bytes: u64,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub data: DataSettings,
    /// How often they are written, when there is anything new; 20,000 new states and answers of one partition don't wait so long
    #[arg(long, env = "MILLRACE_STORE_INTERVAL_MS", default_value_t = 5_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    pub store_interval_ms: u64,
    /// Bytes of states in memory, about, when this instance has all partitions; the others wait in the local stores
    #[arg(long, env = "MILLRACE_STATES_BYTES", default_value_t = 268_435_456, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1_000_000..))]
    pub states_bytes: u64,
    /// Events of one partition after which its changed states are written to the snapshot topic
    #[arg(long, env = "MILLRACE_SNAPSHOT_EVENTS", default_value_t = 100_000, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_events: u64,
    /// Time after which they are, when there were fewer
    #[arg(long, env = "MILLRACE_SNAPSHOT_INTERVAL", default_value = "5m", value_name = "TIME", value_parser = duration)]
    pub snapshot_interval: Time,
    /// A restore that makes no progress for so long starts anew
    #[arg(long, env = "MILLRACE_RESTORE_STALL_MS", default_value_t = 60_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1_000..=240_000))]
    pub restore_stall_ms: u64,
}

/// What is kept beside the views.
#[derive(Args, Clone, Copy, Debug)]
pub struct ViewSettings {
    /// Changes kept per partition for those who resume a stream
    #[arg(long, env = "MILLRACE_CHANGES_WINDOW", default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub changes_window: u32,
    /// Events of an aggregate that are kept for history and as-of queries, at least; the oldest are dropped when there are a tenth more
    #[arg(long, env = "MILLRACE_HISTORY_MAX_ENTRIES", default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub history_max_entries: u32,
}

/// Settings of projector-service.
#[derive(Args, Clone, Debug)]
pub struct ProjectorSettings {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub kafka: KafkaSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub registry: RegistrySettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub personal: PersonalSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub redis: RedisSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub member: MemberSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub log: LogSettings,
    /// Address of health and metrics
    #[arg(long, env = "MILLRACE_OPS_ADDR", default_value = "127.0.0.1:9082", value_name = "IP:PORT")]
    pub ops_addr: SocketAddr,
    /// Events of one partition in one script call, at most
    #[arg(long, env = "MILLRACE_BATCH_EVENTS", default_value_t = 512, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch_events: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub views: ViewSettings,
    /// How long outcomes can be asked for, e.g. `24h`
    #[arg(long, env = "MILLRACE_OUTCOMES_WINDOW", default_value = "24h", value_name = "TIME", value_parser = duration)]
    pub outcomes_window: Time,
    /// Bytes of outcomes kept per partition, at most; the oldest go first
    #[arg(long, env = "MILLRACE_OUTCOMES_MAX_BYTES", default_value_t = 67_108_864, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(65_536..))]
    pub outcomes_max_bytes: u64,
    /// Parked aggregates of one partition before its projection stops
    #[arg(long, env = "MILLRACE_PARKED_MAX", default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub parked_max: u32,
    /// Fold into this projection alone, for tests only: the others stand still, and so does what is kept of outcomes and waiting commands
    #[arg(long, env = "MILLRACE_ONLY_PROJECTION", value_name = "PROJECTION")]
    pub only_projection: Option<String>,
}

/// Settings of query-service.
#[derive(Args, Clone, Debug)]
pub struct QuerySettings {
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub kafka: KafkaSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub registry: RegistrySettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub personal: PersonalSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub redis: RedisSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub api: ApiSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub http: HttpSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "documented at its type")]
    pub log: LogSettings,
    /// Address of the HTTP API
    #[arg(long, env = "MILLRACE_HTTP_ADDR", default_value = "127.0.0.1:8081", value_name = "IP:PORT")]
    pub http_addr: SocketAddr,
    /// Address of health and metrics
    #[arg(long, env = "MILLRACE_OPS_ADDR", default_value = "127.0.0.1:9081", value_name = "IP:PORT")]
    pub ops_addr: SocketAddr,
    /// Items of a page of a list, at most
    #[arg(long, env = "MILLRACE_MAX_LIST_ITEMS", default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub max_list_items: u32,
    /// Items of a page of a history, at most
    #[arg(long, env = "MILLRACE_MAX_HISTORY_ITEMS", default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_history_items: u32,
    /// Entries of a statement, at most; it is put together in memory
    #[arg(long, env = "MILLRACE_MAX_STATEMENT_ENTRIES", default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_statement_entries: u32,
    /// Longest wait that a query can ask for (`wait_ms`)
    #[arg(long, env = "MILLRACE_MAX_WAIT_MS", default_value_t = 30_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=300_000))]
    pub max_wait_ms: u64,
    /// Streams of changes that are open at a time; further ones are answered 503. Keep it below MILLRACE_MAX_CONNECTIONS
    #[arg(long, env = "MILLRACE_MAX_STREAMS", default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_streams: u32,
    /// Streams of changes that are open to one address; further ones are answered 429. Behind a proxy all have its address
    #[arg(long, env = "MILLRACE_MAX_STREAMS_PER_CALLER", default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_streams_per_caller: u32,
    /// Web origin whose pages may call the API, or `*`; none by default
    #[arg(long, env = "MILLRACE_CORS_ORIGIN", value_name = "ORIGIN", value_parser = origin)]
    pub cors_origin: Option<String>,
}

macro_rules! hides_secrets {
    ($($settings:ident { $($secret:ident),+ ; $($plain:ident),+ })+) => { $(
        impl fmt::Debug for $settings {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($settings))
                    $( .field(stringify!($secret), &"<hidden>") )+
                    $( .field(stringify!($plain), &self.$plain) )+
                    .finish()
            }
        }
    )+ };
}
hides_secrets! {
    RegistrySettings { registry_url; registry_url_file }
    RedisSettings { redis_url; redis_url_file, redis_cluster, redis_timeout_ms }
    ApiSettings { api_token; api_token_file, api_open }
    PersonalSettings { master_keys; master_keys_file }
    HashSettings { hash_secret; hash_secret_file }
}

/// A time such as `24h`, `7d`, `90s`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

/// Reads such a time.
///
/// # Errors
/// Says what it must look like.
pub fn duration(text: &str) -> Result<Time, String> {
    let help = || "must be a time such as 24h, 7d or 90s".to_owned();
    let span: jiff::Span = text.parse().map_err(|_| help())?;
    let relative = jiff::SpanRelativeTo::days_are_24_hours();
    let time = span.to_duration(relative).map_err(|_| help())?;
    Duration::try_from(time).ok().filter(|time| *time >= Duration::from_secs(1)).map(Time).ok_or_else(help)
}

fn log_filter(text: &str) -> Result<String, String> {
    let filter = tracing_subscriber::EnvFilter::try_new(text).map_err(|error| format!("is no tracing filter: {error}"));
    filter.map(|_| text.to_owned())
}

fn bootstrap(text: &str) -> Result<String, String> {
    let is_address = |address: &str| {
        let (host, port) = address.trim().rsplit_once(':')?;
        (!host.is_empty() && port.parse::<u16>().ok()? > 0).then_some(())
    };
    if text.split(',').all(|address| is_address(address).is_some()) {
        return Ok(text.to_owned());
    }
    Err("must be addresses such as broker-1:9092,broker-2:9092".to_owned())
}

fn topic_prefix(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.len() <= 100 && text.bytes().all(allowed) && !text.ends_with('.') && !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    Err("must be up to 100 of A-Z a-z 0-9 . _ - and neither begin nor end with a dot".to_owned())
}

fn instance_id(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=100).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 100 of A-Z a-z 0-9 . _ -".to_owned())
}

fn base_url(text: &str) -> Result<String, String> {
    let url: reqwest::Url = text.parse().map_err(|error| format!("is no URL: {error}"))?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err("must be an http or https URL".to_owned())
}

fn origin(text: &str) -> Result<String, String> {
    // As browsers send it: an origin that is spelled in another way would never match.
    let is_origin = |url: reqwest::Url| url.has_host() && url.origin().ascii_serialization() == text;
    if text == "*" || text.parse().is_ok_and(is_origin) {
        return Ok(text.to_owned());
    }
    Err("must be an origin as browsers name it, such as https://dashboard.example, or *".to_owned())
}

/// A setting that is wrong in a way that clap can't see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

fn secret(value: Option<&str>, file: Option<&PathBuf>, name: &str) -> Result<Option<String>, Error> {
    let Some(file) = file else {
        // A variable that is set to nothing is no secret, and must not pass for one.
        return Ok(value.filter(|value| !value.is_empty()).map(str::to_owned));
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| Error(format!("{name}_FILE: {} can't be read: {error}", file.display())))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Error(format!("{name}_FILE: {} is empty", file.display())));
    }
    Ok(Some(text.to_owned()))
}

impl RegistrySettings {
    /// The URL, read from its file where one is named.
    pub fn url(&self) -> Result<String, Error> {
        let url = secret(Some(&self.registry_url), self.registry_url_file.as_ref(), "MILLRACE_REGISTRY_URL")?;
        base_url(&url.unwrap_or_default()).map_err(|reason| Error(format!("MILLRACE_REGISTRY_URL {reason}")))
    }
}

impl RedisSettings {
    /// The clients' settings, read from the URL or its file.
    pub fn address(&self) -> Result<Address, Error> {
        let url = secret(Some(&self.redis_url), self.redis_url_file.as_ref(), "MILLRACE_REDIS_URL")?;
        Address::new(&url.unwrap_or_default(), self.redis_cluster)
            .map_err(|error| Error(format!("MILLRACE_REDIS_URL is no URL of Redis: {error}")))
    }

    /// Longest wait for an answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.redis_timeout_ms)
    }
}

impl PersonalSettings {
    /// The master keys, where there are any.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn given(&self) -> Result<Option<MasterKeys>, Error> {
        let text = secret(self.master_keys.as_deref(), self.master_keys_file.as_ref(), "MILLRACE_MASTER_KEYS")?;
        let parsed = text.map(|text| MasterKeys::parse(&text)).transpose();
        parsed.map_err(|reason| Error(format!("MILLRACE_MASTER_KEYS: {reason}")))
    }

    /// The master keys, which must be there when a type with personal data is served.
    ///
    /// # Errors
    /// When they are missing or malformed: says how to make one.
    pub fn keys<D: Domains>(&self) -> Result<Option<MasterKeys>, Error> {
        let keys = self.given()?;
        match AggregateInfo::all::<D>().iter().find(|info| info.is_personal) {
            Some(info) if keys.is_none() => Err(Error(format!(
                "{} have personal data, which is encrypted: set MILLRACE_MASTER_KEYS_FILE (or MILLRACE_MASTER_KEYS) to \
                 what `echo \"k1:$(openssl rand -base64 32)\"` prints, the same for all services, and keep it: without it \
                 that data is lost",
                info.collection
            ))),
            _ => Ok(keys),
        }
    }
}

impl HashSettings {
    /// The secret, where there is one.
    ///
    /// # Errors
    /// When it is too short.
    pub fn given(&self) -> Result<Option<HashSecret>, Error> {
        let text = secret(self.hash_secret.as_deref(), self.hash_secret_file.as_ref(), "MILLRACE_HASH_SECRET")?;
        let secret = text.map(|text| HashSecret::new(&text)).transpose();
        secret.map_err(|reason| Error(format!("MILLRACE_HASH_SECRET {reason}")))
    }

    /// The secret, which must be there when a type with personal data is served.
    ///
    /// # Errors
    /// When it is missing or too short: says how to make one.
    pub fn secret<D: Domains>(&self) -> Result<Option<HashSecret>, Error> {
        let secret = self.given()?;
        match AggregateInfo::all::<D>().iter().find(|info| info.is_personal) {
            Some(info) if secret.is_none() => Err(Error(format!(
                "{} have personal data, of which hashes are kept: set MILLRACE_HASH_SECRET_FILE (or \
                 MILLRACE_HASH_SECRET) to what `openssl rand -base64 32` prints, and keep it",
                info.collection
            ))),
            _ => Ok(secret),
        }
    }
}

impl ApiSettings {
    /// The token that calls must carry; `None`: everybody may call.
    ///
    /// # Errors
    /// When the address isn't loopback and nobody has decided who may call.
    pub fn token(&self, http_addr: SocketAddr) -> Result<Option<String>, Error> {
        let token = secret(self.api_token.as_deref(), self.api_token_file.as_ref(), "MILLRACE_API_TOKEN")?;
        if token.is_none() && !http_addr.ip().is_loopback() && !self.api_open {
            return Err(Error(format!(
                "MILLRACE_HTTP_ADDR {http_addr} is not loopback, so calls must be authenticated: set \
                 MILLRACE_API_TOKEN_FILE (or MILLRACE_API_TOKEN), or MILLRACE_API_OPEN=true where something in front \
                 of the service does it"
            )));
        }
        Ok(token)
    }
}

/// Reads a service's settings from flags and environment, and lists them. Ends the process with status 2 and a
/// message that names the setting when one is malformed, and with 0 after `--help` and `--version`.
pub fn parse<S: Parser>() -> (S, String) {
    if let Err(error) = check_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
        exit_with(&error);
    }
    let mut command = S::command();
    let parsed = command.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        let listed = list(&command, &matches);
        Ok((S::from_arg_matches(&matches)?, listed))
    });
    match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let name = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
            let _ = error.print();
            let variable = variable_of(&name);
            if error.exit_code() != 0 && std::env::var_os(&variable).is_some() {
                eprintln!("The value comes from the environment variable {variable}.");
            }
            std::process::exit(if error.exit_code() == 0 { 0 } else { EXIT_CONFIG });
        }
    }
}

/// The settings that count, one a line, as environment variables; those that are not set, as comments. What may hold a
/// secret is shown only where it is the default.
fn list(command: &Command, matches: &ArgMatches) -> String {
    let mut lines = String::new();
    for argument in command.get_arguments() {
        let Some(name) = argument.get_env().map(|name| name.to_string_lossy()) else { continue };
        let id = argument.get_id().as_str();
        let given = matches.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
        let line = match matches.get_raw(id) {
            Some(_) if given && argument.is_hide_env_values_set() => format!("{name}=<hidden>"),
            Some(values) => {
                let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
                format!("{name}={}", values.join(","))
            }
            None => format!("# {name} is not set"),
        };
        lines = lines + &line + "\n";
    }
    lines
}

/// Says what is wrong with a setting and ends the process with status 2.
pub fn exit_with(error: &dyn fmt::Display) -> ! {
    eprintln!("error: {error}\n\nFor more information, try '--help'.");
    std::process::exit(EXIT_CONFIG)
}

/// `--kafka-bootstrap <HOST:PORT,…>` → `MILLRACE_KAFKA_BOOTSTRAP`.
fn variable_of(flag: &str) -> String {
    let name = flag.split_whitespace().next().unwrap_or_default().trim_start_matches('-');
    format!("{ENV_PREFIX}{}", name.replace('-', "_").to_ascii_uppercase())
}

/// Refuses variables that begin like ours and belong to no service.
fn check_variables(names: impl Iterator<Item = String>) -> Result<(), Error> {
    let known = known_variables();
    for name in names.filter(|name| name.starts_with(ENV_PREFIX)) {
        if !known.contains(&name) && !is_service_link(&name) {
            return Err(Error(format!("{name} is set, but no service of Millrace has such a setting")));
        }
    }
    Ok(())
}

/// Kubernetes puts the addresses of all services into every container: `MILLRACE_QUERY_SERVICE_HOST`,
/// `MILLRACE_QUERY_PORT_8081_TCP_ADDR` and the like.
fn is_service_link(name: &str) -> bool {
    let after_port = name.rsplit_once("_PORT").map(|(_, rest)| rest);
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || after_port.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        || name.split_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[derive(Parser)]
struct AllOfCommand {
    #[command(flatten)]
    _settings: CommandSettings,
}
#[derive(Parser)]
struct AllOfProjector {
    #[command(flatten)]
    _settings: ProjectorSettings,
}
#[derive(Parser)]
struct AllOfQuery {
    #[command(flatten)]
    _settings: QuerySettings,
}

/// The variables of all services.
pub fn known_variables() -> BTreeSet<String> {
    [AllOfCommand::command(), AllOfProjector::command(), AllOfQuery::command()]
        .iter()
        .flat_map(|command| command.get_arguments())
        .filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_a_flag_and_a_variable_of_the_same_name() {
        for command in [AllOfCommand::command(), AllOfProjector::command(), AllOfQuery::command()] {
            for argument in command.get_arguments().filter(|a| !["help", "check_config"].contains(&a.get_id().as_str()))
            {
                let flag = argument.get_long().unwrap();
                assert_eq!(argument.get_env().unwrap().to_str().unwrap(), variable_of(&format!("--{flag} <X>")));
                assert!(argument.get_help().is_some(), "{flag}");
            }
        }
    }

    #[test]
    fn unknown_variables_are_named_and_service_links_ignored() {
        let check = |name: &str| check_variables(std::iter::once(name.to_owned()));
        assert!(check("MILLRACE_KAFKA_BOOTSTRAPS").unwrap_err().to_string().contains("MILLRACE_KAFKA_BOOTSTRAPS"));
        for fine in [
            "MILLRACE_KAFKA_BOOTSTRAP",
            "PATH",
            "MILLRACE_QUERY_SERVICE_HOST",
            "MILLRACE_QUERY_SERVICE_PORT_HTTP",
            "MILLRACE_QUERY_PORT",
            "MILLRACE_QUERY_PORT_8081_TCP_ADDR",
        ] {
            assert!(check(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn an_open_api_on_a_public_address_is_refused() {
        let api = ApiSettings { api_token: None, api_token_file: None, api_open: false };
        assert!(api.token("0.0.0.0:8080".parse().unwrap()).unwrap_err().0.contains("MILLRACE_API_TOKEN"));
        assert_eq!(api.token("127.0.0.1:8080".parse().unwrap()).unwrap(), None);
        let empty = ApiSettings { api_token: Some(String::new()), ..api };
        assert!(empty.token("0.0.0.0:8080".parse().unwrap()).is_err());
    }

    #[test]
    fn personal_data_is_not_served_without_keys() {
        struct Users;
        impl Domains for Users {
            fn visit_all(visitor: &mut impl crate::domain::Visitor) {
                visitor.visit::<crate::domain::user::UserAccount>();
            }
        }
        struct Nobody;
        impl Domains for Nobody {
            fn visit_all(_: &mut impl crate::domain::Visitor) {}
        }
        let personal = PersonalSettings { master_keys: None, master_keys_file: None };
        assert!(personal.keys::<Nobody>().unwrap().is_none());
        assert!(personal.keys::<Users>().unwrap_err().0.contains("openssl rand -base64 32"));
        let malformed = PersonalSettings { master_keys: Some("k1:c2VjcmV0".into()), ..personal };
        let error = malformed.keys::<Nobody>().unwrap_err().0;
        assert!(error.contains("MILLRACE_MASTER_KEYS") && !error.contains("c2VjcmV0"), "{error}");
        let hash = HashSettings { hash_secret: None, hash_secret_file: None };
        assert!(hash.secret::<Nobody>().unwrap().is_none());
        assert!(hash.secret::<Users>().unwrap_err().0.contains("MILLRACE_HASH_SECRET"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let api = ApiSettings { api_token: Some("s3cret".into()), api_token_file: None, api_open: false };
        assert!(!format!("{api:?}").contains("s3cret"));
    }

    #[test]
    fn settings_are_listed_as_variables_and_secrets_are_not() {
        let mut command = AllOfQuery::command();
        let args = ["q", "--partitions", "7", "--redis-url", "redis://:s3cret@r:1", "--log", "a=debug"];
        let matches = command.try_get_matches_from_mut(args).unwrap();
        let listed = list(&command, &matches);
        let lines: Vec<_> = listed.lines().collect();
        for line in ["MILLRACE_PARTITIONS=7", "MILLRACE_REDIS_URL=<hidden>", "MILLRACE_LOG=a=debug"] {
            assert!(lines.contains(&line), "{listed}");
        }
        assert!(lines.contains(&"MILLRACE_HTTP_ADDR=127.0.0.1:8081"), "defaults as well: {listed}");
        assert!(lines.contains(&"# MILLRACE_CORS_ORIGIN is not set") && !listed.contains("s3cret"), "{listed}");
    }

    #[test]
    fn an_origin_is_what_browsers_send() {
        for good in ["*", "https://dashboard.example", "http://127.0.0.1:3000", "http://[::1]:3000"] {
            assert_eq!(origin(good).as_deref(), Ok(good));
        }
        let bad = ["", "foo", "dashboard.example", "https://a.example/", "https://A.example", "http://a:80", "null"];
        for bad in bad {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("24h"), Ok(Time(Duration::from_secs(86_400))));
        assert_eq!(duration("7d"), Ok(Time(Duration::from_secs(604_800))));
        for bad in ["", "24", "-1h", "1x", "0s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
