//! The service put together: settings in, listeners out.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, header},
};
use metrics_exporter_prometheus::PrometheusHandle;
use millrace_shared::{
    auth,
    config::{self, QuerySettings},
    domain::{Aggregate, AggregateInfo, Domains, Grouping, GroupingVisitor, Visitor},
    http,
    kafka::topics::{self, Names, Said, Topic},
    ops::{self, Health, PROBE_INTERVAL},
    registry::{self, Registry},
    serve,
    views::address::Address,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{
    caching::Asked,
    changes::{self, Hub, places::Places as Streams},
    dead_letters::DeadLetters,
    ends::{self, Ends, Place},
    feed::Feed,
    openapi,
    routes::{self, Described, Projections},
    service::{Limits, Means, Service},
    store::Store,
};

/// Name of the part that [`Health`] knows.
const REDIS: &str = "redis";
const REGISTRY: &str = "registry";
/// The registry is asked only so that people can be told: more rarely than what queries need.
const REGISTRY_INTERVAL: Duration = Duration::from_secs(5);

/// Why the service can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A client of Redis can't be made.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// A client of Kafka can't be made.
    #[error(transparent)]
    Ends(#[from] ends::Error),
    /// The topics have another number of partitions than the settings say: views would be missing.
    #[error(transparent)]
    Topics(#[from] topics::Error),
    /// Our own schemas can't be used.
    #[error(transparent)]
    Codec(#[from] registry::Error),
    /// The API's description.
    #[error("{0}")]
    Description(#[from] serde_json::Error),
    /// An address, a signal.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The service, ready to run.
pub struct App {
    settings: QuerySettings,
    http: TcpListener,
    ops: TcpListener,
    metrics: PrometheusHandle,
    redis: Address,
    registry: Registry,
    token: Option<String>,
    cors: Option<CorsLayer>,
}

impl App {
    /// Checks the settings and binds the addresses. Waits for nothing.
    pub async fn build(settings: QuerySettings, metrics: PrometheusHandle) -> Result<Self, Error> {
        let redis = settings.redis.address()?;
        let registry = Registry::new(&settings.registry.url()?)?;
        let token = settings.api.token(settings.http_addr)?;
        let cors = settings.cors_origin.as_deref().map(cors).transpose()?;
        let http = serve::bind(settings.http_addr, "MILLRACE_HTTP_ADDR").await?;
        let ops = serve::bind(settings.ops_addr, "MILLRACE_OPS_ADDR").await?;
        Ok(Self { settings, http, ops, metrics, redis, registry, token, cors })
    }

    /// Where queries are served.
    pub fn http_addr(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Where health and metrics are served.
    pub fn ops_addr(&self) -> io::Result<SocketAddr> {
        self.ops.local_addr()
    }

    /// Runs until `shutdown`. Queries are answered from the start; without Redis by `unavailable`.
    pub async fn run<D: Domains>(self, shutdown: CancellationToken) -> Result<(), Error> {
        let health = Health::default();
        health.expect(REDIS);
        let kafka = &self.settings.kafka;
        let names = Names::new(&kafka.topic_prefix);
        let mut places =
            Places { names: &names, partitions: kafka.partitions, topics: Vec::new(), letters: Vec::new() };
        D::visit_all(&mut places);
        let timeout = self.settings.redis.timeout();
        let store = Store::new(self.redis.clone(), timeout)?;
        let feed = Arc::new(Feed::new(matches!(self.redis, Address::One(_))));
        let ends = Ends::start(&kafka.kafka_bootstrap, places.topics, health.clone())?;
        let letters = DeadLetters::start(kafka.kafka_bootstrap.clone(), places.letters)?;
        let means = Means {
            store: store.clone(),
            ends,
            feed: feed.clone(),
            names: names.clone(),
            partitions: kafka.partitions,
            limits: Limits {
                list: self.settings.max_list_items.into(),
                history: self.settings.max_history_items.into(),
                wait: Duration::from_millis(self.settings.max_wait_ms),
                statement: self.settings.max_statement_entries as usize,
            },
            master_keys: self.settings.personal.keys::<D>()?,
        };
        let (most, per_caller) = (self.settings.max_streams, self.settings.max_streams_per_caller);
        let streams = changes::Means {
            redis: self.redis.clone(),
            timeout,
            places: Streams::new(most as usize, per_caller as usize),
            shutdown: shutdown.clone(),
        };
        let system = (health.clone(), letters);
        let router =
            router::<D>(&means, &streams, system, (self.token.as_deref(), self.cors), self.settings.http.sizes())?;

        if let Address::One(client) = self.redis {
            tokio::spawn(feed.run(client, timeout, shutdown.clone()));
        }
        tokio::spawn(probe(store, health.clone(), shutdown.clone()));
        tokio::spawn(probe_registry(self.registry, health.clone(), shutdown.clone()));
        let ops = serve::http(self.ops, ops::router(health, self.metrics), serve::Limits::OPERATIONS, shutdown.clone());
        let shape = check_shape::<D>(kafka.kafka_bootstrap.clone(), names, kafka.partitions, shutdown.clone());
        let queries = serve::http(self.http, router, self.settings.http.limits(), shutdown);
        tokio::try_join!(async { Ok(ops.await?) }, async { Ok(queries.await?) }, shape)?;
        Ok(())
    }
}

/// All routes, with everything around them.
fn router<D: Domains>(
    means: &Means,
    streams: &changes::Means,
    (health, letters): (Health, DeadLetters),
    (token, cors): (Option<&str>, Option<CorsLayer>),
    sizes: http::Sizes,
) -> Result<Router, Error> {
    let mut routes = Routes { means, streams, router: Router::new(), described: Vec::new(), failed: None };
    D::visit_all(&mut routes);
    D::visit_groupings(&mut routes);
    if let Some(error) = routes.failed {
        return Err(error.into());
    }
    let general = routes::general::<D>(Projections { means: means.clone(), all: routes.described }, health, letters);
    let description = millrace_shared::openapi::router(&openapi::describe::<D>(token.is_some(), means.limits))?;
    let router = routes.router.merge(general).merge(description);
    let router = http::complete_with(auth::require(router, token), "query", sizes, |request| {
        let asked = Asked::of(request);
        |response| asked.complete(response)
    });
    // Outside of everything: a browser's preflight carries no token.
    Ok(match cors {
        Some(cors) => router.layer(cors),
        None => router,
    })
}

/// Compares the number of partitions with that of the topics, as soon as Kafka can be asked; queries go on meanwhile.
async fn check_shape<D: Domains>(
    bootstrap: String,
    names: Names,
    partitions: i32,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let types: Vec<_> = AggregateInfo::all::<D>().iter().map(|info| info.aggregate_type).collect();
    while !shutdown.is_cancelled() {
        let (bootstrap, names, types) = (bootstrap.clone(), names.clone(), types.clone());
        let check = move || topics::check(&bootstrap, &names, &types, partitions, |_| Said::Configured);
        let checked = tokio::select! {
            checked = serve::blocking(check) => checked,
            // A question to Kafka that nobody answers must not hold up the end.
            () = shutdown.cancelled() => return Ok(()),
        };
        match checked {
            Ok(()) => return Ok(()),
            Err(error @ topics::Error::Partitions { .. }) => return Err(error.into()),
            Err(error) => tracing::debug!(%error, "the number of partitions can't be checked yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(PROBE_INTERVAL) => {}
            () = shutdown.cancelled() => {}
        }
    }
    Ok(())
}

async fn probe(store: Store, health: Health, shutdown: CancellationToken) {
    loop {
        health.set(REDIS, store.ping().await);
        tokio::select! {
            () = tokio::time::sleep(PROBE_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn probe_registry(registry: Registry, health: Health, shutdown: CancellationToken) {
    loop {
        health.note(REGISTRY, registry.ping().await.map_err(|error| error.to_string()));
        tokio::select! {
            () = tokio::time::sleep(REGISTRY_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn cors(origin: &str) -> Result<CorsLayer, config::Error> {
    let allowed = if origin == "*" {
        AllowOrigin::any()
    } else {
        let value = HeaderValue::from_str(origin)
            .map_err(|_| config::Error(format!("MILLRACE_CORS_ORIGIN {origin:?} is no origin")))?;
        AllowOrigin::exact(value)
    };
    let ours = ["millrace-stale", "millrace-parked"].map(HeaderName::from_static);
    Ok(CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers([header::AUTHORIZATION, header::IF_NONE_MATCH, HeaderName::from_static("last-event-id")])
        .expose_headers(ours.into_iter().chain([header::ETAG, header::RETRY_AFTER]).collect::<Vec<_>>()))
}

/// Collects what is to be watched.
struct Places<'a> {
    names: &'a Names,
    partitions: i32,
    topics: Vec<Place>,
    letters: Vec<Place>,
}

impl Visitor for Places<'_> {
    fn visit<A: Aggregate>(&mut self) {
        for topic in [Topic::Events, Topic::Outcomes, Topic::Scheduled] {
            let name = self.names.topic(A::TYPE, topic);
            self.topics.extend((0..self.partitions).map(|partition| (name.clone(), partition)));
        }
        let name = self.names.topic(A::TYPE, Topic::DeadLetters);
        self.letters.extend((0..self.partitions).map(|partition| (name.clone(), partition)));
    }
}

/// Collects the routes.
struct Routes<'a> {
    means: &'a Means,
    streams: &'a changes::Means,
    router: Router,
    described: Vec<Described>,
    failed: Option<registry::Error>,
}

impl Visitor for Routes<'_> {
    fn visit<A: Aggregate>(&mut self) {
        match Service::<A>::new(self.means.clone()) {
            Ok(service) => {
                let router = std::mem::take(&mut self.router);
                let service = Arc::new(service);
                let hub = Hub::start(service.clone(), self.streams.clone());
                self.router = router.merge(routes::of(service)).merge(routes::changes_of(hub));
                self.described.extend(Described::of::<A>(self.means));
            }
            Err(error) => self.failed = Some(error),
        }
    }
}

impl GroupingVisitor for Routes<'_> {
    fn visit<G: Grouping>(&mut self) {
        let router = std::mem::take(&mut self.router);
        self.router = router.merge(routes::of_groups(routes::Groups::<G>::new(self.means.clone())));
        self.described.push(Described::grouping::<G>(self.means));
    }
}
