//! What Redis has, read in pipelines.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    thread,
    time::{Duration, Instant},
};

use millrace_shared::{
    domain::{Aggregate, Projection, Sort},
    views::{BY_ID, Keys, Parked, history::Base, meta},
};
use redis::{Pipeline, RedisResult, Value, from_redis_value};

use super::{Error, fold::Expected};
use crate::{
    events::View,
    link::Link,
    store::{self, Store},
};

/// Redis may be away for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// Asks Redis, again and again where that can help.
pub fn ask<T>(store: &mut Store, question: impl Fn(&mut Link) -> RedisResult<T>) -> Result<T, Error> {
    patiently(store, |store| store.ask(&question))
}

/// The same with what is more than a question.
pub fn patiently<T>(
    store: &mut Store,
    mut attempt: impl FnMut(&mut Store) -> Result<T, store::Error>,
) -> Result<T, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt(store) {
            Ok(answer) => return Ok(answer),
            Err(store::Error::Again(_)) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The sorted sets of a partition in which every view stands, and what a view's score in each is.
pub struct Ranks<V: 'static> {
    /// Their keys.
    pub keys: Vec<String>,
    sorts: Vec<(&'static Sort<V>, i64)>,
}

impl<V> Ranks<V> {
    /// Those of a projection.
    pub fn new<P: Projection<View = V>>(keys: &Keys) -> Self {
        let both = P::SORTS.iter().flat_map(|sort| [(sort, 1), (sort, -1)]);
        // Ids alone are read backwards where they are to descend.
        let sorts: Vec<_> = both.filter(|(sort, sign)| *sign == 1 || sort.name != BY_ID).collect();
        Self { keys: sorts.iter().map(|(sort, sign)| keys.sort(sort.name, *sign == -1)).collect(), sorts }
    }

    /// The scores of a view.
    pub fn scores<'a>(&'a self, view: &'a V) -> impl Iterator<Item = f64> + 'a {
        self.sorts.iter().map(|(sort, sign)| ((sort.key)(view) * sign) as f64)
    }
}

/// The filter sets in which a view stands.
pub fn filters<P: Projection>(keys: &Keys, view: &P::View) -> Vec<String> {
    let selective = P::FILTERS.iter().filter(|filter| filter.selective);
    // What has no value is not looked for.
    let values = selective.map(|filter| (filter.name, (filter.value)(view))).filter(|(_, value)| !value.is_empty());
    values.map(|(name, value)| keys.filter(name, value)).collect()
}

/// What a partition says of itself, at one instant.
#[derive(Debug)]
pub struct Captured {
    /// Its checkpoint: the views hold what lies before.
    pub offset: Option<i64>,
    /// Id of the topic.
    pub topic_id: Option<String>,
    /// Whether it has caught up once, is being built, or freed.
    pub state: Option<String>,
    /// How often its counters were mended.
    pub mended: Option<u64>,
    /// Version of the code that folded it.
    pub fold: Option<u32>,
    /// Totals.
    pub counters: BTreeMap<String, String>,
    /// Parked aggregates.
    pub parked: BTreeMap<String, Parked>,
    /// Keys of people.
    pub keys: HashMap<String, Vec<u8>>,
    /// Members of each sorted set.
    pub cards: Vec<u64>,
}

/// Asks a partition.
pub fn capture<V>(store: &mut Store, keys: &Keys, ranks: &Ranks<V>) -> Result<Captured, Error> {
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("HMGET").arg(keys.meta()).arg(&[
        meta::OFFSET,
        meta::TOPIC_ID,
        meta::STATE,
        meta::FOLD,
        meta::MENDED,
    ]);
    pipe.cmd("HGETALL").arg(keys.counters());
    pipe.cmd("HGETALL").arg(keys.parked());
    pipe.cmd("HGETALL").arg(keys.keys());
    for key in &ranks.keys {
        pipe.cmd("ZCARD").arg(key);
    }
    let answer: Vec<Value> = ask(store, |redis| pipe.query(redis))?;
    let mut answers = Answers(answer.into_iter());
    let (offset, topic_id, state, fold, mended): (_, _, Option<String>, _, _) = answers.next()?;
    let counters = answers.next()?;
    let parked: BTreeMap<String, String> = answers.next()?;
    let parked = parked.into_iter().map(|(id, json)| Ok((id, parse_parked(keys, &json)?)));
    let people = answers.next()?;
    Ok(Captured {
        offset,
        topic_id,
        state,
        fold,
        mended,
        counters,
        parked: parked.collect::<Result<_, Error>>()?,
        keys: people,
        cards: ranks.keys.iter().map(|_| answers.next()).collect::<Result<_, _>>()?,
    })
}

fn parse_parked(keys: &Keys, json: &str) -> Result<Parked, Error> {
    serde_json::from_str(json).map_err(|error| Error::Damaged(format!("{}: {error}", keys.parked())))
}

/// What Redis has of one aggregate.
#[derive(Debug)]
pub struct Found {
    /// Checkpoint at that moment.
    pub offset: i64,
    /// The view.
    pub view: Option<Vec<u8>>,
    /// The history.
    pub history: Vec<Vec<u8>>,
    /// Where it begins, when it was trimmed.
    pub base: Option<Vec<u8>>,
    /// Its parking.
    pub parked: Option<Parked>,
    /// The key of the person that it is.
    pub key: Option<Vec<u8>>,
    /// Its score in each sorted set.
    pub scores: Vec<Option<f64>>,
    /// Its score in the filter sets that were asked.
    pub filters: BTreeMap<String, Option<f64>>,
}

/// An aggregate, and the filter sets in which it is or may be.
pub type Wanted<'a> = (&'a str, &'a BTreeSet<String>);

/// The lengths of lists.
pub fn lengths(store: &mut Store, names: &[String]) -> Result<Vec<usize>, Error> {
    let mut pipe = redis::pipe();
    for name in names {
        pipe.cmd("LLEN").arg(name);
    }
    ask(store, |redis| redis.each(&pipe)?.into_iter().map(|length| Ok(from_redis_value(length)?)).collect())
}

/// Up to which versions histories were trimmed, by their bases; 0 where that can't be told.
pub fn bases<P: Projection>(store: &mut Store, names: &[String]) -> Result<Vec<u64>, Error> {
    let found: Vec<Option<Vec<u8>>> = ask(store, |redis| redis::cmd("MGET").arg(names).query(redis))?;
    Ok(found.iter().map(|base| base_at::<P>(base.as_deref())).collect())
}

fn base_at<P: Projection>(json: Option<&[u8]>) -> u64 {
    let base: Option<Base<P::View>> = json.and_then(|json| serde_json::from_slice(json).ok());
    base.map_or(0, |base| P::version(&base.view))
}

/// What Redis has of some aggregates of a partition at one instant.
pub fn aggregates<V>(
    store: &mut Store,
    keys: &Keys,
    ranks: &Ranks<V>,
    wanted: &[Wanted<'_>],
) -> Result<Vec<Found>, Error> {
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("HGET").arg(keys.meta()).arg(meta::OFFSET);
    for (id, filters) in wanted {
        pipe.cmd("GET").arg(keys.view(id));
        pipe.cmd("LRANGE").arg(keys.history(id)).arg(0).arg(-1);
        pipe.cmd("GET").arg(keys.base(id));
        pipe.cmd("HGET").arg(keys.parked()).arg(id);
        pipe.cmd("HGET").arg(keys.keys()).arg(id);
        for key in ranks.keys.iter().chain(*filters) {
            pipe.cmd("ZSCORE").arg(key).arg(id);
        }
    }
    let answer: Vec<Value> = ask(store, |redis| pipe.query(redis))?;
    let mut answers = Answers(answer.into_iter());
    let offset: Option<i64> = answers.next()?;
    let offset = offset.ok_or_else(|| Error::Emptied(keys.meta()))?;
    let mut all = Vec::with_capacity(wanted.len());
    for (_, filters) in wanted {
        all.push(Found {
            offset,
            view: answers.next()?,
            history: answers.bytes_list()?,
            base: answers.next()?,
            parked: answers.next::<Option<String>>()?.map(|json| parse_parked(keys, &json)).transpose()?,
            key: answers.next()?,
            scores: ranks.keys.iter().map(|_| answers.next()).collect::<Result<_, _>>()?,
            filters: filters.iter().map(|key| Ok((key.clone(), answers.next()?))).collect::<Result<_, Error>>()?,
        });
    }
    Ok(all)
}

impl Found {
    /// Up to which version the history was trimmed.
    pub fn base_at<P: Projection>(&self) -> u64 {
        base_at::<P>(self.base.as_deref())
    }
}

/// Looks at aggregates without stopping the world: returns whether each is in Redis as expected. One that is not may
/// have moved on.
pub fn are_as_expected<A: Aggregate>(
    store: &mut Store,
    keys: &Keys,
    ranks: &Ranks<View<A>>,
    expected: &[(&str, &Expected<View<A>>)],
) -> Result<Vec<bool>, Error> {
    let mut pipe = Pipeline::with_capacity(2 + ranks.keys.len() + 2 * expected.len());
    pipe.cmd("MGET").arg(expected.iter().map(|(id, _)| keys.view(id)).collect::<Vec<_>>());
    pipe.cmd("MGET").arg(expected.iter().map(|(id, _)| keys.base(id)).collect::<Vec<_>>());
    for key in &ranks.keys {
        pipe.cmd("ZMSCORE").arg(key).arg(expected.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    }
    for (id, expected) in expected {
        // One more than expected shows that there is more.
        pipe.cmd("LRANGE").arg(keys.history(id)).arg(0).arg(expected.history.len());
        for key in expected.view.iter().flat_map(|view| filters::<A::Projection>(keys, view)) {
            pipe.cmd("ZSCORE").arg(key).arg(id);
        }
    }
    let answer: Vec<Value> = ask(store, |redis| pipe.query(redis))?;
    let mut answers = Answers(answer.into_iter());
    let views: Vec<Option<Vec<u8>>> = answers.optional_bytes_list()?;
    let bases: Vec<Option<Vec<u8>>> = answers.optional_bytes_list()?;
    let scores: Vec<Vec<Option<f64>>> = ranks.keys.iter().map(|_| answers.next()).collect::<Result<_, _>>()?;
    let mut all = Vec::with_capacity(expected.len());
    for (at, (_, expected)) in expected.iter().enumerate() {
        let mut same = super::compare::same_history(&expected.history, answers.take()?);
        same &= expected.same_base(bases[at].as_deref());
        match &expected.view {
            Some(view) => {
                let json = serde_json::to_vec(view).map_err(|error| Error::Damaged(error.to_string()))?;
                same &= views[at].as_ref() == Some(&json);
                same &= ranks.scores(view).zip(&scores).all(|(score, set)| set[at] == Some(score));
                for _ in filters::<A::Projection>(keys, view) {
                    let score: Option<f64> = answers.next()?;
                    same &= score == Some(0.0);
                }
            }
            None => same &= views[at].is_none() && scores.iter().all(|set| set[at].is_none()),
        }
        all.push(same);
    }
    Ok(all)
}

/// The answers of a pipeline, one after another.
struct Answers(std::vec::IntoIter<Value>);

impl Answers {
    fn take(&mut self) -> Result<Value, Error> {
        self.0.next().ok_or_else(|| Error::Damaged("Redis gave fewer answers than there were questions".into()))
    }

    fn next<T: redis::FromRedisValue>(&mut self) -> Result<T, Error> {
        from_redis_value(self.take()?).map_err(|error| Error::Damaged(error.to_string()))
    }

    fn bytes_list(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.optional_bytes_list()?.into_iter().flatten().collect())
    }

    fn optional_bytes_list(&mut self) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let Value::Array(values) = self.take()? else { return Ok(Vec::new()) };
        Ok(values.into_iter().map(bytes).collect())
    }
}

/// The bytes of a string, taken as they are.
pub fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}
