//! What the routes of one aggregate type share: its keys, and how a view is read.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, AggregateId, Projection},
    http,
    kafka::{
        partition_of,
        topics::{Names, Topic},
    },
    personal::MasterKeys,
    problem::{NOT_FOUND, Problem, REBUILDING, STALE},
    registry,
    views::{Keys, meta, people::Opener},
};

use crate::{
    edition::{Edition, Editions, State, live},
    ends::Ends,
    feed::Feed,
    params::After,
    store::Store,
    view_reader::Read,
};

/// The view of an aggregate type.
pub type View<A> = <<A as Aggregate>::Projection as Projection>::View;

const STALE_HEADER: HeaderName = HeaderName::from_static("millrace-stale");
const PARKED_HEADER: HeaderName = HeaderName::from_static("millrace-parked");

/// What all types share.
#[derive(Clone, Debug)]
pub struct Means {
    /// Redis.
    pub store: Store,
    /// Kafka's ends.
    pub ends: Ends,
    /// Changes.
    pub feed: Arc<Feed>,
    /// Names.
    pub names: Names,
    /// Partitions of every topic.
    pub partitions: i32,
    /// What callers may ask for.
    pub limits: Limits,
    /// What personal data is encrypted with.
    pub master_keys: Option<MasterKeys>,
}

/// What callers may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Items of a page of a list.
    pub list: u64,
    /// Items of a page of a history.
    pub history: u64,
    /// Wait for a token.
    pub wait: Duration,
    /// Entries of a statement.
    pub statement: usize,
}

impl Means {
    /// Whose tokens can be waited for, and how long.
    pub fn waits(&self) -> (&str, Duration) {
        (self.names.redis_prefix(), self.limits.wait)
    }

    /// The versions of a projection.
    pub fn editions(&self, projection: &'static str) -> Editions {
        Editions::new(projection, self.names.clone(), self.partitions, self.store.clone(), self.feed.clone())
    }

    /// Of each partition whether it has caught up once, and its checkpoint.
    pub async fn checkpoints(&self, edition: &Edition) -> Result<Vec<(bool, Option<i64>)>, Problem> {
        let mut pipe = redis::pipe();
        for keys in &edition.keys {
            pipe.cmd("HMGET").arg(keys.meta()).arg(&[meta::STATE, meta::OFFSET]);
        }
        let metas: Vec<(Option<String>, Option<i64>)> = self.store.ask(&pipe).await?;
        Ok(metas.into_iter().map(|(state, offset)| (state.as_deref() == Some(meta::LIVE), offset)).collect())
    }

    /// There are no complete views; says how far they are.
    pub async fn rebuilding(&self, projection: &str, topic: &str, edition: &Edition) -> Problem {
        let checkpoints = match self.checkpoints(edition).await {
            Ok(checkpoints) => checkpoints,
            Err(problem) => return problem,
        };
        let live = checkpoints.iter().filter(|(live, _)| *live).count();
        let done: i64 = checkpoints.iter().filter_map(|(_, offset)| *offset).sum();
        let ends = self.ends.all().await;
        let all: Option<i64> =
            ends.map(|ends| ends.iter().filter(|((of, _), _)| of == topic).map(|(_, end)| end).sum());
        let partitions = edition.keys.len();
        let progress = BTreeMap::from([
            ("version", serde_json::json!(edition.version)),
            ("partitions_live", serde_json::json!(live)),
            ("partitions", serde_json::json!(partitions)),
            ("records_read", serde_json::json!(done)),
            ("records", serde_json::json!(all)),
        ]);
        Problem::new(&REBUILDING, format!("{live} of {partitions} partitions of {projection} are built"))
            .with("progress", serde_json::json!(progress))
            .retry_after(2)
    }
}

/// One aggregate type.
pub struct Service<A: Aggregate> {
    /// What all types share.
    pub means: Means,
    /// Versions of the views.
    pub editions: Editions,
    /// Keys of the outcomes, by partition.
    pub outcome_keys: Vec<Keys>,
    /// Keys of what is scheduled, by partition.
    pub scheduled_keys: Vec<Keys>,
    /// Unpacks history.
    pub codec: Codec<A::Event>,
    /// Opens it, where it has personal data.
    pub opener: Option<Opener>,
    aggregate: PhantomData<fn() -> A>,
}

/// What Redis knows of an aggregate.
#[derive(Debug)]
pub struct Found<V> {
    /// Its view as stored, and taken apart.
    pub view: Option<(String, V)>,
    /// What its partition was when it was read.
    pub seen: Seen,
    /// Why its events wait, where they do.
    pub parked: bool,
    /// Whether it had not got where it should in time.
    pub stale: bool,
}

/// Which build of which partition was read. Another build has begun when Redis was emptied meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    partition: usize,
    born: u64,
}

/// How often a projection that is being built is looked at again.
const BUILDING_PAUSE: Duration = Duration::from_millis(100);

/// The keys of all partitions of a type's outcomes.
pub fn outcome_keys<A: Aggregate>(names: &Names, partitions: i32) -> Vec<Keys> {
    (0..partitions).map(|partition| Keys::outcomes(names.redis_prefix(), A::TYPE, partition)).collect()
}

/// The same of what is scheduled.
pub fn scheduled_keys<A: Aggregate>(names: &Names, partitions: i32) -> Vec<Keys> {
    (0..partitions).map(|partition| Keys::scheduled(names.redis_prefix(), A::TYPE, partition)).collect()
}

impl<A: Aggregate> Service<A> {
    /// Of one deployment.
    pub fn new(means: Means) -> Result<Self, registry::Error> {
        Ok(Self {
            editions: means.editions(A::Projection::NAME),
            outcome_keys: outcome_keys::<A>(&means.names, means.partitions),
            scheduled_keys: scheduled_keys::<A>(&means.names, means.partitions),
            codec: Codec::datums()?,
            opener: means.master_keys.clone().filter(|_| A::IS_PERSONAL).map(Opener::new).transpose()?,
            means,
            aggregate: PhantomData,
        })
    }

    /// The partition of an aggregate.
    pub fn partition(&self, id: &str) -> usize {
        partition_of(id.as_bytes(), self.means.partitions).unsigned_abs() as usize
    }

    /// Reads an aggregate, once what is asked for is reached or the time is up.
    ///
    /// # Errors
    /// `rebuilding` while there is no complete view; `stale` when the caller prefers an error.
    pub async fn find(&self, edition: &Edition, id: &str, after: &After) -> Result<Found<View<A>>, Problem> {
        let sequence = after.sequence(id);
        let reached = |found: &Found<View<A>>| {
            let view = found.view.as_ref().map(|(_, view)| view);
            let has_ended = || view.zip(A::Projection::IS_FINAL).is_some_and(|(view, is_final)| is_final(view));
            view.map_or(0, A::Projection::version) >= sequence && (!after.r#final || has_ended())
        };
        // With a token the caller is ready to wait, also for a projection that is about to have its first views.
        let may_wait = |problem: &Problem| after.is_asked_for() && problem.is(&REBUILDING);
        match self.look(edition, id).await {
            Ok(found) if reached(&found) => return Ok(found),
            Err(problem) if !may_wait(&problem) => return Err(problem),
            Ok(_) | Err(_) => {}
        }
        let mut waiter = self.means.feed.wait_for(&edition.keys[self.partition(id)].changes());
        loop {
            // Before the first wait as well: it may have come while we were not yet listening.
            let found = self.look(edition, id).await;
            let left = after.until.saturating_duration_since(Instant::now());
            match found {
                Ok(found) if reached(&found) => return Ok(found),
                Ok(_) if left.is_zero() && after.strict => return Err(stale()),
                Ok(found) if left.is_zero() => return Ok(Found { stale: true, ..found }),
                Err(problem) if left.is_zero() || !may_wait(&problem) => return Err(problem),
                Err(problem) if self.editions.now().await?.version != edition.version => return Err(problem),
                Ok(_) => drop(tokio::time::timeout(left, waiter.moved()).await),
                // No change is announced when the last partition gets there.
                Err(_) => tokio::time::sleep(left.min(BUILDING_PAUSE)).await,
            }
        }
    }

    /// Waits until all tokens are reached; returns whether what follows is stale.
    pub async fn wait(&self, edition: &Edition, after: &After) -> Result<bool, Problem> {
        let mut stale = false;
        for token in &after.tokens {
            stale |= self.find(edition, &token.aggregate_id, after).await?.stale;
        }
        Ok(stale)
    }

    /// Reads an aggregate, once all tokens are reached, those of others as well, or the time is up.
    pub async fn find_after_all(&self, edition: &Edition, id: &str, after: &After) -> Result<Found<View<A>>, Problem> {
        let stale = self.wait(edition, after).await?;
        let found = self.find(edition, id, after).await?;
        Ok(Found { stale: stale || found.stale, ..found })
    }

    async fn look(&self, edition: &Edition, id: &str) -> Result<Found<View<A>>, Problem> {
        let partition = self.partition(id);
        let Read { view, parked, state } = edition.reader(partition, &self.means.store).read(id).await?;
        let Some(born) = live(&state) else { return Err(self.rebuilding(edition).await) };
        let view = view.map(|json| self.parse(id, json)).transpose()?;
        Ok(Found { view, seen: Seen { partition, born }, parked, stale: false })
    }

    /// There are no complete views; says how far they are.
    pub async fn rebuilding(&self, edition: &Edition) -> Problem {
        let topic = self.means.names.topic(A::TYPE, Topic::Events);
        self.means.rebuilding(A::Projection::NAME, &topic, edition).await
    }

    /// Takes a stored view apart.
    pub fn parse(&self, id: &str, json: String) -> Result<(String, View<A>), Problem> {
        match serde_json::from_str(&json) {
            Ok(view) => Ok((json, view)),
            // Without the error's own words, which quote values: they may be personal.
            Err(error) => {
                let at = error.column();
                Err(http::internal(&format_args!("the view of {} {id} can't be read at byte {at}", A::TYPE)))
            }
        }
    }

    /// Makes sure that every partition has complete views.
    pub async fn require_live(&self, edition: &Edition) -> Result<Vec<Seen>, Problem> {
        let mut pipe = redis::pipe();
        for partition in 0..edition.keys.len() {
            pipe.add_command(edition.state(partition));
        }
        let states: Vec<State> = self.means.store.ask(&pipe).await?;
        match all_live(&states) {
            Some(seen) => Ok(seen),
            None => Err(self.rebuilding(edition).await),
        }
    }

    /// Makes sure that what was read by several questions was whole all the time: to be asked after the last of them.
    pub async fn require_unchanged(&self, edition: &Edition, seen: &[Seen]) -> Result<(), Problem> {
        let mut pipe = redis::pipe();
        for seen in seen {
            pipe.add_command(edition.state(seen.partition));
        }
        let states: Vec<State> = self.means.store.ask(&pipe).await?;
        let unchanged = states.iter().zip(seen).all(|(state, seen)| live(state) == Some(seen.born));
        if unchanged { Ok(()) } else { Err(self.rebuilding(edition).await) }
    }
}

/// What was read of all partitions, when all of them are complete.
pub fn all_live(states: &[State]) -> Option<Vec<Seen>> {
    let seen = |(partition, state)| live(state).map(|born| Seen { partition, born });
    states.iter().enumerate().map(seen).collect()
}

/// Nothing has happened to this id, or nothing yet at the time that is asked for.
pub fn not_found<A: Aggregate>(id: &AggregateId) -> Problem {
    Problem::new(&NOT_FOUND, format!("there is no {} {id}, or not yet", A::TYPE))
}

/// What was asked for has not been reached in time.
pub fn stale() -> Problem {
    Problem::new(&STALE, "the projection has not got there within the time").retry_after(1)
}

/// The headers that say what is amiss with an answer.
pub fn caveats(stale: bool, parked: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if stale || parked {
        // What is kept keeps its headers, also when they are no longer true.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    for (name, set) in [(STALE_HEADER, stale), (PARKED_HEADER, parked)] {
        if set {
            headers.insert(name, HeaderValue::from_static("true"));
        }
    }
    headers
}
