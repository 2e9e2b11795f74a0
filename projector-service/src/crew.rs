//! The crew: a worker for each version of each projection, and for the outcomes of each aggregate type.
//!
//! Each has a thread, a reader and a connection to Redis of its own, so that one that is slow or stopped holds up no
//! other. Which versions there are is looked at every second: a rebuild adds one, and takes away what is no longer kept.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use millrace_shared::{
    codec::Codec,
    config::ProjectorSettings,
    domain::{Aggregate, AggregateInfo, Domains, Grouping, Projection, Visitor},
    kafka::{
        bulk::BulkReader,
        reader_config,
        topics::{Names, Topic},
        watcher,
    },
    personal::MasterKeys,
    registry::Registry,
    views::{address::Address, versions},
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::Error,
    board::Board,
    events::{Events, Limits},
    groups::Groups,
    keyring::keyring,
    outcomes::Outcomes,
    projections::Kind,
    roster::Roster,
    scheduled::Scheduled,
    store::Store,
    target::Target,
    worker::{Options, Parts, Worker},
};

/// How often the lists of versions are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the threads are.
const TICK: Duration = Duration::from_millis(100);

/// What workers are made of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Means {
    /// Kafka's addresses.
    pub bootstrap: String,
    /// Partitions of every topic.
    pub partitions: i32,
    /// This process, for Kafka's logs.
    pub instance: String,
    /// Limits of views.
    pub limits: Limits,
    /// Names.
    pub names: Names,
    /// Schemas.
    pub registry: Registry,
    /// What personal data is encrypted with.
    pub master_keys: Option<MasterKeys>,
    /// Redis.
    pub redis: Address,
    /// Longest wait for one answer of it.
    pub redis_timeout: Duration,
    /// Where the registry is asked.
    pub runtime: tokio::runtime::Handle,
    /// Where the workers tell.
    pub board: Board,
    /// Where they are told.
    pub roster: Roster,
}

impl Means {
    /// A connection of one's own.
    pub fn store(&self) -> Store {
        Store::new(self.redis.clone(), self.redis_timeout)
    }

    /// The events of an aggregate type and what becomes of them in a version of its projection.
    pub fn events<A: Aggregate>(&self, version: u32) -> Result<Events<A>, Error> {
        let codec = Arc::new(Codec::reading(self.registry.clone())?);
        let client_id = format!("{}-{}.v{version}-keys", self.instance, A::Projection::NAME);
        let clients = (self.bootstrap.clone(), client_id);
        let keyring = keyring::<A>(&self.names, clients, self.master_keys.as_ref(), &self.registry, &self.runtime)?;
        Ok(Events::new(codec, keyring, self.runtime.clone(), &self.names, version, self.partitions, self.limits))
    }

    /// The events of an aggregate type and what becomes of them in a version of a further projection.
    pub fn groups<G: Grouping>(&self, version: u32) -> Result<Groups<G>, Error> {
        let codec = Arc::new(Codec::reading(self.registry.clone())?);
        Ok(Groups::new(codec, self.runtime.clone(), &self.names, version, self.partitions, self.limits.parked_max))
    }

    fn outcomes<A: Aggregate>(&self, settings: &ProjectorSettings) -> Result<Outcomes, Error> {
        let (window, max_bytes) = (settings.outcomes_window.0, settings.outcomes_max_bytes);
        let codec = Arc::new(Codec::reading(self.registry.clone())?);
        Ok(Outcomes::new(AggregateInfo::of::<A>(), codec, self.runtime.clone(), &self.names, window, max_bytes))
    }

    fn scheduled<A: Aggregate>(&self) -> Result<Scheduled<A>, Error> {
        Ok(Scheduled::new(Codec::reading(self.registry.clone())?, self.runtime.clone(), &self.names))
    }

    /// Puts somebody to work.
    pub fn hire<T: Target>(&self, target: T, options: Options) -> Result<Hired, Error> {
        let (label, topic) = (target.label(), target.topic().to_owned());
        let bootstrap = self.bootstrap.clone();
        let client_id = format!("{}-{label}", self.instance);
        let reader = BulkReader::new(&reader_config(&bootstrap, &client_id))?;
        let worker = Worker::new(Parts {
            target,
            reader,
            watch: Box::new(move || watcher(&bootstrap, &client_id)),
            store: self.store(),
            board: self.board.clone(),
            orders: self.roster.join(&topic, label),
            options,
        });
        let thread = std::thread::Builder::new().name(label.to_owned()).spawn(move || worker.run())?;
        Ok(Hired { label, topic, thread })
    }
}

fn options(settings: &ProjectorSettings) -> Options {
    let session = Duration::from_millis(settings.member.session_timeout_ms);
    Options {
        batch_events: settings.batch_events as usize,
        batch_bytes: usize::MAX,
        patient: false,
        // By then a frozen process has learnt from the group that it is out.
        reclaim_after: session + Duration::from_secs(5),
    }
}

/// Somebody at work.
#[derive(Debug)]
pub struct Hired {
    label: &'static str,
    topic: String,
    thread: JoinHandle<()>,
}

impl Hired {
    /// Waits for the end, which must have been asked for. Returns whether it was one in order.
    pub fn join(self) -> bool {
        let ended = self.thread.join().is_ok();
        if !ended {
            tracing::error!(name = self.label, "thread panicked");
        }
        ended
    }
}

type Hire = Box<dyn Fn(&Means, &ProjectorSettings, u32) -> Result<Hired, Error> + Send>;

/// What there is to do, and who does it.
struct Post {
    /// The projection whose versions these are; without one there is the first version.
    projection: Option<&'static str>,
    topic: String,
    hire: Hire,
    at_work: BTreeMap<u32, Hired>,
}

/// See the module.
pub struct Crew {
    means: Means,
    settings: ProjectorSettings,
    posts: Vec<Post>,
    dismissed: Vec<Hired>,
}

impl Visitor for Crew {
    fn visit<A: Aggregate>(&mut self) {
        let once = |topic, hire| Post {
            projection: None,
            topic: self.means.names.topic(A::TYPE, topic),
            hire,
            at_work: BTreeMap::new(),
        };
        self.posts.push(once(
            Topic::Outcomes,
            Box::new(|means, settings, _| means.hire(means.outcomes::<A>(settings)?, options(settings))),
        ));
        self.posts.push(once(
            Topic::Scheduled,
            Box::new(|means, settings, _| means.hire(means.scheduled::<A>()?, options(settings))),
        ));
    }
}

impl Crew {
    /// Nobody works yet.
    pub fn new<D: Domains>(means: Means, settings: ProjectorSettings) -> Self {
        let only = settings.only_projection.clone();
        let mut crew = Self { means, settings, posts: Vec::new(), dismissed: Vec::new() };
        for kind in Kind::all::<D>().into_iter().filter(|kind| only.as_deref().is_none_or(|only| kind.name == only)) {
            crew.posts.push(Post {
                projection: Some(kind.name),
                topic: crew.means.names.topic(kind.aggregate_type, Topic::Events),
                hire: Box::new(move |means, settings, version| (kind.hire)(means, version, options(settings))),
                at_work: BTreeMap::new(),
            });
        }
        if only.is_none() {
            D::visit_all(&mut crew);
        }
        crew
    }

    /// What is read.
    pub fn topics(&self) -> Vec<String> {
        let mut topics: Vec<String> = self.posts.iter().map(|post| post.topic.clone()).collect();
        topics.sort();
        topics.dedup();
        topics
    }

    /// Works until `shutdown`, and until the roster is closed thereafter; ends early when somebody gave up unasked.
    pub fn run(mut self, shutdown: &CancellationToken) {
        let mut store = self.means.store();
        let mut looked: Option<Instant> = None;
        while !shutdown.is_cancelled() {
            if looked.is_none_or(|at| at.elapsed() >= LOOK) {
                looked = Some(Instant::now());
                self.look(&mut store);
            }
            let (gone, rest) = self.dismissed.into_iter().partition(|hired| hired.thread.is_finished());
            self.dismissed = rest;
            let given_up =
                self.posts.iter().flat_map(|post| post.at_work.values()).find(|hired| hired.thread.is_finished());
            if let Some(hired) = given_up {
                tracing::error!(name = hired.label, "thread has ended");
                return;
            }
            if !Vec::into_iter(gone).all(Hired::join) {
                return;
            }
            std::thread::sleep(TICK);
        }
        let at_work = self.posts.into_iter().flat_map(|post| post.at_work.into_values());
        self.dismissed.into_iter().chain(at_work).for_each(|hired| {
            hired.join();
        });
    }

    fn look(&mut self, store: &mut Store) {
        let Self { means, settings, posts, dismissed } = self;
        for post in posts {
            let wanted: Vec<u32> = match post.projection.map(|name| store.versions(means.names.redis_prefix(), name)) {
                None => vec![versions::FIRST],
                Some(Ok(versions)) => versions.projected().collect(),
                Some(Err(error)) => {
                    // Those at work go on.
                    tracing::debug!(post.projection, "{error}");
                    continue;
                }
            };
            let unwanted: Vec<u32> = post.at_work.keys().copied().filter(|version| !wanted.contains(version)).collect();
            for hired in unwanted.into_iter().filter_map(|version| post.at_work.remove(&version)) {
                tracing::info!(projection = hired.label, "is no longer projected");
                means.roster.leave(&hired.topic, hired.label);
                dismissed.push(hired);
            }
            for version in wanted {
                if post.at_work.contains_key(&version) {
                    continue;
                }
                match (post.hire)(means, settings, version) {
                    Ok(hired) => drop(post.at_work.insert(version, hired)),
                    Err(error) => tracing::warn!(topic = post.topic, version, "can't be projected yet: {error}"),
                }
            }
        }
    }
}
