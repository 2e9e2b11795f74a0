//! The service as a whole: what is built in which order, and how it ends.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    sync::{Arc, mpsc::channel},
    thread::JoinHandle,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use millrace_shared::{
    codec::Codec,
    config::{self, CommandSettings, KafkaSettings},
    domain::{AggregateInfo, Domains},
    kafka::{
        self,
        topics::{self, Names, Shape},
    },
    ops::{self, Health},
    outcome::OutcomeRecord,
    registry::{self, Registry},
    serve::{self, Attempt, Limits, blocking, wait_for},
};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, runtime::Handle};
use tokio_util::sync::CancellationToken;

use crate::{
    failpoints::FailPoints,
    follower::{Follower, follower},
    grant::Captures,
    http::{Api, router},
    intake::{Intake, IntakeSettings, TopicIds, topic_ids},
    partition::{Room, StoreSettings},
    store::keeper::Keeper,
    submit::Submitter,
    trimmer::{Deleted, Trimmer},
    types::{CommandType, Secrets, build_all},
    waiters::Waiters,
    writer::{ProducerSettings, Rhythm, Writer},
};

/// How long threads may take to end after HTTP has.
const END_TIMEOUT: Duration = Duration::from_secs(4);

type Types = Arc<[Arc<dyn CommandType>]>;

/// Why the service can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is wrong.
    #[error("{0}")]
    Config(#[from] config::Error),
    /// A listener or a thread.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The topics are not as they should be.
    #[error("{0}")]
    Topics(#[from] topics::Error),
    /// The registry refuses our schemas.
    #[error("{0}")]
    Registry(#[from] registry::Error),
    /// Kafka.
    #[error("{0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// The API's description.
    #[error("{0}")]
    Description(#[from] serde_json::Error),
    /// Another process has this instance id.
    #[error(
        "another process on this machine runs as instance {0:?}; two with one id would fence each other for ever: give \
         this one its own MILLRACE_INSTANCE_ID"
    )]
    InstanceTaken(String),
}

/// A service with its listeners bound.
pub struct App {
    settings: CommandSettings,
    health: Health,
    registry: Registry,
    token: Option<String>,
    http: TcpListener,
    ops: TcpListener,
    metrics: PrometheusHandle,
    /// Held for as long as the process lives.
    _instance: Option<File>,
}

impl App {
    /// Checks what can be checked without Kafka, and binds the listeners.
    pub async fn build(settings: CommandSettings, metrics: PrometheusHandle) -> Result<Self, Error> {
        let token = settings.api.token(settings.http_addr)?;
        let registry = Registry::new(&settings.registry.url()?)?;
        let instance = lock_instance(&settings.kafka, &settings.member.instance())?;
        let health = Health::default();
        for part in ["kafka", "schemas", "partitions"] {
            health.expect(part);
        }
        Ok(Self {
            http: serve::bind(settings.http_addr, "MILLRACE_HTTP_ADDR").await?,
            ops: serve::bind(settings.ops_addr, "MILLRACE_OPS_ADDR").await?,
            settings,
            health,
            registry,
            token,
            metrics,
            _instance: instance,
        })
    }

    /// Address of the command API.
    pub fn http_addr(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Address of health and metrics.
    pub fn ops_addr(&self) -> io::Result<SocketAddr> {
        self.ops.local_addr()
    }

    /// Serves until told to end.
    pub async fn run<D: Domains>(self, shutdown: CancellationToken) -> Result<(), Error> {
        let names = Names::new(&self.settings.kafka.topic_prefix);
        let secrets = Secrets::of::<D>(&self.settings)?;
        // Health is answered from the start, and until the very end.
        let ops_end = CancellationToken::new();
        let ops_router = ops::router(self.health.clone(), self.metrics.clone());
        let ops = tokio::spawn(serve::http(self.ops, ops_router, Limits::OPERATIONS, ops_end.clone()));
        tokio::spawn(probe_kafka(self.settings.kafka.kafka_bootstrap.clone(), self.health.clone(), shutdown.clone()));

        let prepared = prepare::<D>(&self.settings, &names, &self.registry, &secrets, &shutdown).await?;
        let Some((types, topic_ids)) = prepared else { return Ok(()) };
        self.health.set("schemas", Ok(()));
        let outcomes = Codec::<OutcomeRecord>::reading(self.registry.clone())?;
        let end = CancellationToken::new();
        let ends = Ends { end: end.clone(), shutdown: shutdown.clone() };
        let pipeline = Pipeline::start(
            &self.settings,
            &names,
            types.clone(),
            outcomes,
            self.health.clone(),
            topic_ids.clone(),
            ends,
        )?;
        let api = Api {
            types: types.clone(),
            submitter: pipeline.submitter(&self.settings, shutdown.clone())?,
            query_url: self.settings.query_url.clone(),
            deployment: names.redis_prefix().to_owned(),
            token: self.token,
            body_timeout: self.settings.http.limits().timeout,
            sizes: self.settings.http.sizes(),
        };
        let trimmer = Trimmer {
            bootstrap: self.settings.kafka.kafka_bootstrap.clone(),
            types,
            waiters: pipeline.waiters.clone(),
            retention: self.settings.commands_retention.0,
            topic_ids,
            group: names.group("command"),
            deleted: Deleted::default(),
        };
        tokio::spawn(trimmer.run(shutdown.clone()));
        tracing::info!(http = %self.http.local_addr()?, "serving");
        // The listener ends first: requests that wait are still answered. Then the threads.
        let served = serve::http(self.http, router::<D>(api)?, self.settings.http.limits(), shutdown.clone()).await;
        shutdown.cancel();
        end.cancel();
        let ended = tokio::time::timeout(END_TIMEOUT, blocking(move || pipeline.join())).await;
        ops_end.cancel();
        ops.abort();
        served?;
        match ended {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!("the writers don't end in time; what they have under way will be aborted");
                Ok(())
            }
        }
    }
}

/// What ends the pipeline, and what the pipeline ends when it can't go on.
#[derive(Clone)]
struct Ends {
    end: CancellationToken,
    shutdown: CancellationToken,
}

/// The threads between the command topics and the outcomes.
struct Pipeline {
    types: Arc<[Arc<dyn CommandType>]>,
    waiters: Waiters,
    follower: Follower,
    intake: JoinHandle<Result<(), rdkafka::error::KafkaError>>,
    others: Vec<JoinHandle<()>>,
}

impl Pipeline {
    fn start(
        settings: &CommandSettings,
        names: &Names,
        types: Arc<[Arc<dyn CommandType>]>,
        outcomes: Codec<OutcomeRecord>,
        health: Health,
        topic_ids: Vec<TopicIds>,
        ends: Ends,
    ) -> Result<Self, Error> {
        let bootstrap = settings.kafka.kafka_bootstrap.clone();
        let (waiters, captures) = (Waiters::default(), Captures::default());
        let (follower, followed) =
            follower(bootstrap.clone(), types.clone(), outcomes, waiters.clone(), Handle::current());
        let mut others = vec![spawn("follower", &ends, move || {
            if let Err(error) = followed.run() {
                tracing::error!(%error, "outcomes of other instances can't be followed any more");
            }
        })?];
        let producer = ProducerSettings {
            bootstrap: bootstrap.clone(),
            names: names.clone(),
            instance: settings.member.instance(),
            transaction_timeout: Duration::from_millis(settings.transaction_timeout_ms),
        };
        let fail_points = FailPoints::new(settings.fail_points.as_ref());
        let count = settings.writers.map(usize::from).unwrap_or_else(cores);
        let all = types.len() * settings.kafka.partitions.unsigned_abs() as usize;
        let store = match settings.data.wanted() {
            false => None,
            true => {
                let dir = settings.data.stores(names).join(settings.member.instance());
                let (keeper, keeping) = Keeper::new(dir, fail_points.clone());
                // Not waited for at the end: a commit that is cut off is none.
                spawn("store", &ends, move || keeping.run())?;
                Some(StoreSettings { keeper, states_bytes: settings.states_bytes as usize / all.max(1) })
            }
        };
        let (to_intake, from_writers) = channel();
        let mut to_writers = Vec::new();
        for number in 0..count {
            let (to_writer, inbox) = channel();
            to_writers.push(to_writer);
            let writer = Writer {
                number,
                types: types.clone(),
                captures: captures.clone(),
                producer: producer.clone(),
                batch_commands: settings.batch_commands as usize,
                rhythm: Rhythm {
                    snapshot_events: settings.snapshot_events,
                    snapshot_interval: settings.snapshot_interval.0,
                    store_interval: Duration::from_millis(settings.store_interval_ms),
                },
                inbox,
                intake: to_intake.clone(),
                fail_points: fail_points.clone(),
            };
            others.push(spawn(&format!("writer-{number}"), &ends, move || writer.run())?);
        }
        let intake = Intake::new(
            IntakeSettings {
                bootstrap: bootstrap.clone(),
                group: names.group("command"),
                instance: settings.member.instance(),
                session_timeout: Duration::from_millis(settings.member.session_timeout_ms),
                queue_commands: settings.queue_commands as usize,
                restore_stall: Duration::from_millis(settings.restore_stall_ms),
                partitions: settings.kafka.partitions,
                window: settings.window.idempotency_window.0,
                answers_bytes: settings.answers_bytes / all.max(1) as u64,
                answers_forget: settings.answers_forget,
                forget_within: settings.forget_within.0,
                room: Room::new(settings.scheduled_bytes, all),
                store,
                topic_ids,
                fail_points,
            },
            types.clone(),
            to_writers,
            captures,
            waiters.clone(),
            follower.clone(),
            health,
            (to_intake, from_writers),
        )?;
        let (runtime, end) = (Handle::current(), ends.end.clone());
        let intake = spawn("intake", &ends, move || intake.run(&runtime, &end))?;
        Ok(Self { types, waiters, follower, intake, others })
    }

    fn submitter(&self, settings: &CommandSettings, shutdown: CancellationToken) -> Result<Submitter, Error> {
        Ok(Submitter::new(
            &settings.kafka.kafka_bootstrap,
            self.types.clone(),
            self.waiters.clone(),
            self.follower.clone(),
            settings.kafka.partitions,
            Duration::from_millis(settings.outcome_timeout_ms),
            settings.max_in_flight as usize,
            shutdown,
        )?)
    }

    fn join(self) -> Result<(), Error> {
        let result = self.intake.join();
        self.follower.end();
        let panicked = || Error::Io(io::Error::other("a thread panicked"));
        for thread in self.others {
            thread.join().map_err(|_| panicked())?;
        }
        Ok(result.map_err(|_| panicked())??)
    }
}

/// Starts a thread. The process is of no use without any of them: when one ends before its time, be it by a panic, the
/// process ends, to be started again.
fn spawn<T: Send + 'static>(
    name: &str,
    ends: &Ends,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let guard = EndsTogether { name: name.to_owned(), ends: ends.clone() };
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = guard;
        work()
    })
}

struct EndsTogether {
    name: String,
    ends: Ends,
}

impl Drop for EndsTogether {
    fn drop(&mut self) {
        if !self.ends.end.is_cancelled() {
            tracing::error!(thread = self.name, "a thread ended before its time; the service ends");
            self.ends.shutdown.cancel();
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Waits for Kafka and the registry, creates topics and registers schemas; `None` when told to end meanwhile.
async fn prepare<D: Domains>(
    settings: &CommandSettings,
    names: &Names,
    registry: &Registry,
    secrets: &Secrets,
    shutdown: &CancellationToken,
) -> Result<Option<(Types, Vec<TopicIds>)>, Error> {
    let shape = Shape {
        partitions: settings.kafka.partitions,
        replication_factor: settings.replication_factor,
        idempotency_window: settings.window.idempotency_window.0,
        commands_retention: settings.commands_retention.0,
        forget_within: settings.forget_within.0,
    };
    let types = AggregateInfo::all::<D>();
    let ensured = wait_for("Kafka", shutdown, || {
        let (bootstrap, names, types) = (settings.kafka.kafka_bootstrap.clone(), names.clone(), types.clone());
        let shape = shape.clone();
        async move {
            match blocking(move || topics::ensure(&bootstrap, &names, &types, &shape)).await {
                Ok(()) => Ok(()),
                Err(topics::Error::Unavailable(reason)) => Err(Attempt::Again(reason)),
                Err(error @ topics::Error::Missing(_)) => Err(Attempt::Again(error.to_string())),
                Err(error @ (topics::Error::Partitions { .. } | topics::Error::Settings(_))) => {
                    Err(Attempt::Fatal(error))
                }
            }
        }
    });
    if ensured.await?.is_none() {
        return Ok(None);
    }
    let registered = wait_for("the schema registry", shutdown, || async {
        build_all::<D>(registry, names, secrets).await.map_err(|error| match error {
            registry::Error::Unavailable(reason) => Attempt::Again(reason),
            error => Attempt::Fatal(error),
        })
    });
    let Some(mut types) = registered.await? else { return Ok(None) };
    if let Some(only) = &settings.only_type {
        types.retain(|kind| kind.info().aggregate_type == only);
    }
    let types: Types = types.into();
    let identified = wait_for("Kafka", shutdown, || {
        let (bootstrap, types) = (settings.kafka.kafka_bootstrap.clone(), types.clone());
        async move {
            let ids = blocking(move || topic_ids(&bootstrap, &types)).await;
            ids.map_err(|error| Attempt::<Error>::Again(format!("a topic's id is not known: {error}")))
        }
    });
    Ok(identified.await?.map(|ids| (types, ids)))
}

/// Keeps `kafka` in the health report true.
async fn probe_kafka(bootstrap: String, health: Health, shutdown: CancellationToken) {
    let watcher = blocking(move || kafka::watcher(&bootstrap, "millrace-probe")).await;
    let watcher = match watcher {
        Ok(watcher) => Arc::new(watcher),
        Err(error) => {
            health.set("kafka", Err(error.to_string()));
            return;
        }
    };
    while !shutdown.is_cancelled() {
        let asked = watcher.clone();
        let answer = blocking(move || kafka::ping(&asked, Duration::from_secs(3))).await;
        health.set("kafka", answer.map_err(|error| format!("Kafka does not answer: {error}")));
        tokio::select! {
            () = tokio::time::sleep(ops::PROBE_INTERVAL) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Sees that no other process on this machine has the same instance id, at the same Kafka.
fn lock_instance(kafka: &KafkaSettings, instance: &str) -> Result<Option<File>, Error> {
    let group = Names::new(&kafka.topic_prefix).group("command");
    let cluster: String =
        Sha256::digest(&kafka.kafka_bootstrap)[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let path = std::env::temp_dir().join(format!("{group}.{cluster}.{instance}.lock"));
    let file = match File::options().create(true).truncate(false).write(true).open(&path) {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no lock file: see to it yourself that instance ids are unique");
            return Ok(None);
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InstanceTaken(instance.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}
