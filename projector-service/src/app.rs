//! The service put together: settings in, threads out.

use std::{io, net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use millrace_shared::{
    config::{self, ProjectorSettings},
    domain::{AggregateInfo, Domains},
    kafka::{topics::Names, watcher},
    ops::{self, Health},
    registry::{self, Registry},
    serve,
    views::address::Address,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    board::Board,
    crew::{Crew, Means},
    events::Limits,
    membership,
    monitor::{self, parts},
    projections::Kind,
    roster::Roster,
    startup,
    store::Store,
};

/// The threads get so long to finish after SIGTERM.
const DRAIN: Duration = Duration::from_secs(8);

/// Why the service can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// What we depend on is not as it must be.
    #[error(transparent)]
    Startup(#[from] startup::Error),
    /// A client of the registry can't be made.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A client of Kafka can't be made.
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// An address, a thread, a signal.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A thread ended that never should.
    #[error("thread {0} has ended; its last words are above")]
    Thread(String),
}

/// The service, ready to run.
pub struct App {
    settings: ProjectorSettings,
    ops: TcpListener,
    metrics: PrometheusHandle,
    redis: Address,
    registry: Registry,
}

impl App {
    /// Checks the settings and binds the address. Waits for nothing yet.
    pub async fn build(settings: ProjectorSettings, metrics: PrometheusHandle) -> Result<Self, Error> {
        let redis = settings.redis.address()?;
        let registry = Registry::new(&settings.registry.url()?)?;
        let ops = serve::bind(settings.ops_addr, "MILLRACE_OPS_ADDR").await?;
        Ok(Self { settings, ops, metrics, redis, registry })
    }

    /// Where health and metrics are served.
    pub fn ops_addr(&self) -> io::Result<SocketAddr> {
        self.ops.local_addr()
    }

    /// Runs until `shutdown`.
    pub async fn run<D: Domains>(self, shutdown: CancellationToken) -> Result<(), Error> {
        let health = Health::default();
        health.expect(parts::KAFKA);
        health.expect(parts::REDIS);
        let board = Board::new(health.clone());
        // Health stays there until the threads are done.
        let served = CancellationToken::new();
        let ops = tokio::spawn(serve::http(
            self.ops,
            ops::router(health.clone(), self.metrics),
            serve::Limits::OPERATIONS,
            served.clone(),
        ));
        let project = Project { settings: self.settings, redis: self.redis, registry: self.registry, health, board };
        let result = project.run::<D>(shutdown).await;
        served.cancel();
        if let Ok(ended) = ops.await {
            ended?;
        }
        result
    }
}

struct Project {
    settings: ProjectorSettings,
    redis: Address,
    registry: Registry,
    health: Health,
    board: Board,
}

impl Project {
    async fn run<D: Domains>(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { settings, redis, registry, health, board } = self;
        let master_keys = settings.personal.keys::<D>()?;
        if let Some(only) = &settings.only_projection {
            Kind::find::<D>(only).ok_or_else(|| {
                config::Error(format!("MILLRACE_ONLY_PROJECTION is {only}, but there is no such projection"))
            })?;
            tracing::warn!(projection = only, "all other projections of this instance's partitions stand still");
        }
        let kafka = &settings.kafka;
        let names = Names::new(&kafka.topic_prefix);
        let types: Vec<&str> = AggregateInfo::all::<D>().iter().map(|info| info.aggregate_type).collect();
        let store = || Store::new(redis.clone(), settings.redis.timeout());
        let there = startup::redis(store, settings.redis.redis_cluster, &shutdown).await?
            && startup::registry(&registry, &shutdown).await?
            && startup::topics(&kafka.kafka_bootstrap, &names, &types, kafka.partitions, &shutdown).await?;
        if !there {
            return Ok(());
        }
        let (ended, roster) = (CancellationToken::new(), Roster::default());
        let means = Means {
            bootstrap: kafka.kafka_bootstrap.clone(),
            partitions: kafka.partitions,
            instance: settings.member.instance(),
            limits: Limits {
                changes_window: settings.views.changes_window,
                history_max: settings.views.history_max_entries.into(),
                parked_max: settings.parked_max as usize,
            },
            names: names.clone(),
            registry,
            master_keys,
            redis: redis.clone(),
            redis_timeout: settings.redis.timeout(),
            runtime: tokio::runtime::Handle::current(),
            board: board.clone(),
            roster: roster.clone(),
        };
        let mut threads = Vec::new();
        let (crew, leaving) = (Crew::new::<D>(means, settings.clone()), shutdown.clone());
        let topics = crew.topics();
        threads.push(thread("crew", &ended, move || crew.run(&leaving))?);

        let instance = settings.member.instance();
        let watcher = Arc::new(watcher(&kafka.kafka_bootstrap, &instance)?);
        let probes = CancellationToken::new();
        let (monitored, monitor_store, told, probing) = (watcher, store(), board.clone(), probes.clone());
        threads.push(thread("monitor", &ended, move || {
            monitor::run(&monitored, monitor_store, &told, &health, &probing);
        })?);
        let options = membership::Options {
            bootstrap: kafka.kafka_bootstrap.clone(),
            group: names.group("projector"),
            client_id: instance,
            session_timeout_ms: settings.member.session_timeout_ms,
        };
        let leaving = shutdown.clone();
        threads.push(thread("membership", &ended, move || {
            membership::run(&options, &topics, &roster, &board, &leaving);
            // Only now that the group is left: the workers finish their batch and end as well.
            roster.close();
        })?);

        tokio::select! {
            () = shutdown.cancelled() => {}
            () = ended.cancelled() => {}
        }
        let crashed = !shutdown.is_cancelled();
        shutdown.cancel();
        probes.cancel();
        let name = threads.iter().find(|(_, thread)| thread.is_finished()).map(|(name, _)| name.clone());
        let (done, drained) = tokio::sync::oneshot::channel();
        // A thread of its own: the runtime would wait for a blocking task without end.
        std::thread::spawn(move || {
            join(threads);
            let _ = done.send(());
        });
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!(
                "not everything could be finished in time; what was not written is read again at the next start"
            );
        }
        if crashed { Err(Error::Thread(name.unwrap_or_default())) } else { Ok(()) }
    }
}

fn join(threads: Vec<(String, JoinHandle<()>)>) {
    for (name, thread) in threads {
        if thread.join().is_err() {
            tracing::error!(name, "thread panicked");
        }
    }
}

/// Starts a thread whose end, however it comes, is noticed.
fn thread(
    name: &str,
    ended: &CancellationToken,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<(String, JoinHandle<()>)> {
    let guard = ended.clone().drop_guard();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = guard;
        work();
    })?;
    Ok((name.to_owned(), thread))
}
