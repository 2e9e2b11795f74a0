//! The one task that reads the feeds for all who listen.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_shared::{
    domain::{Aggregate, Projection},
    http,
    problem::Problem,
    views::address::Address,
};
use redis::{
    AsyncConnectionConfig, Client, RedisResult,
    aio::MultiplexedConnection,
    streams::{StreamKey, StreamRangeReply, StreamReadReply},
};

use super::{
    Hub,
    frame::{Batch, Change},
    position::{EntryId, Position},
};
use crate::{edition::Edition, feed::UNWATCHED, store::decoded};

/// Redis answers after so long when nothing has changed.
const BLOCK: Duration = Duration::from_secs(1);
/// Entries of one feed in one answer.
const AT_ONCE: usize = 256;
/// Changes that one who catches up reads at a time.
pub(super) const COUNT: usize = 64;
/// Changes that are handed out at a time, at most.
const BATCH: usize = 256;
/// Whether it is still the same build is looked at so often.
const LOOK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);

/// Reads until shutdown, and only while somebody listens.
pub(super) async fn run<A: Aggregate>(hub: Arc<Hub<A>>) {
    let mut listening = hub.listening.subscribe();
    loop {
        let read = async {
            // The sender is the hub's.
            let _ = listening.wait_for(|listening| *listening > 0).await;
            follow(&hub).await
        };
        let followed = tokio::select! {
            () = hub.means.shutdown.cancelled() => return hub.end(),
            followed = read => followed,
        };
        // Whoever has joined joins again, and sees whether he can go on from where he is.
        hub.end();
        if let Err(problem) = followed {
            tracing::debug!(?problem, "the changes of {} can't be read", A::Projection::NAME);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What came of one answer of Redis.
enum Step {
    /// Everything that there is up to here was handed out.
    On(Arc<Position>),
    /// Some of it may be gone already.
    Gap,
}

/// From now on, until nobody listens, or what was read is no longer what answers.
async fn follow<A: Aggregate>(hub: &Hub<A>) -> Result<(), Problem> {
    let edition = hub.service.editions.look().await?;
    let Some(position) = hub.ends(&edition).await? else {
        tokio::time::sleep(PAUSE).await;
        return Ok(());
    };
    let build = position.build;
    let mut position = Arc::new(position);
    hub.begin(edition.clone(), Position::clone(&position));
    let mut connection = None;
    let mut looked = Instant::now();
    while *hub.listening.borrow() > 0 {
        if looked.elapsed() >= LOOK {
            let same = async {
                let active = hub.service.editions.look().await?.version;
                let ends = hub.ends(&edition).await?;
                Ok::<_, Problem>(active == edition.version && ends.is_some_and(|ends| ends.build == build))
            };
            match same.await {
                Ok(true) => looked = Instant::now(),
                Ok(false) => return Ok(()),
                // Redis will be there again, and then with what comes next, or as another build.
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
        }
        match step(hub, &edition, &mut connection, &position).await {
            Ok(Step::On(now)) => position = now,
            Ok(Step::Gap) => return Ok(()),
            Err(problem) => {
                tracing::debug!(?problem, "the change feed can't be read");
                connection = None;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

async fn step<A: Aggregate>(
    hub: &Hub<A>,
    edition: &Edition,
    connection: &mut Option<MultiplexedConnection>,
    position: &Arc<Position>,
) -> Result<Step, Problem> {
    let read = match &hub.means.redis {
        Address::One(client) => {
            let read = wait(hub, client, edition, connection, position).await;
            read.map_err(|error| crate::store::problem(&error))?
        }
        Address::Cluster(_) => look(hub, edition, position).await?,
    };
    let mut changes = Vec::new();
    let mut pipe = redis::pipe();
    for moved in read {
        let partition = edition.keys.iter().position(|keys| keys.changes() == moved.key);
        let partition = partition.ok_or_else(|| http::internal(&format_args!("nobody asked for {}", moved.key)))?;
        for entry in &moved.ids {
            changes.push(Change::read(partition, entry)?);
        }
        pipe.cmd("XRANGE").arg(moved.key).arg("-").arg("+").arg("COUNT").arg(1);
    }
    if changes.is_empty() {
        return Ok(Step::On(position.clone()));
    }
    let mut partitions: Vec<usize> = changes.iter().map(|change| change.partition).collect();
    partitions.dedup();
    let mut wanted: HashMap<&str, usize> = HashMap::new();
    for change in &changes {
        let next = partitions.len() + wanted.len();
        wanted.entry(&change.id).or_insert_with(|| {
            pipe.cmd("GET").arg(edition.keys[change.partition].view(&change.id));
            next
        });
    }
    let read: Vec<redis::Value> = hub.service.means.store.ask(&pipe).await?;
    for (partition, value) in partitions.iter().zip(&read) {
        // Was anything of what we asked for dropped before we did?
        let first: StreamRangeReply = decoded(value)?;
        let seen = position.at[*partition];
        if super::one_of(&first)? > seen && is_trimmed(hub, edition, *partition).await? {
            return Ok(Step::Gap);
        }
    }
    let mut about: Vec<(&str, String)> = Vec::with_capacity(changes.len());
    for change in &changes {
        match decoded::<Option<String>>(&read[wanted[change.id.as_str()]])? {
            Some(view) => about.push((&change.id, view)),
            // Emptied at this moment.
            None => return Ok(Step::Gap),
        }
    }
    // One that can't be made must not be told in part, or the rest of it would be told again.
    let (mut position, mut batches) = (position.clone(), Vec::new());
    for (changes, about) in changes.chunks(BATCH).zip(about.chunks(BATCH)) {
        let about: Vec<(&str, &str)> = about.iter().map(|(id, view)| (*id, view.as_str())).collect();
        let batch = Batch::new(&hub.ids, position, changes.iter().zip(about.iter().map(|(_, view)| *view)))?;
        position = batch.after.clone();
        batches.push((batch, about));
    }
    for (batch, about) in batches {
        hub.publish(batch, &about);
    }
    Ok(Step::On(position))
}

async fn wait<A: Aggregate>(
    hub: &Hub<A>,
    client: &Client,
    edition: &Edition,
    connection: &mut Option<MultiplexedConnection>,
    position: &Position,
) -> RedisResult<Vec<StreamKey>> {
    let connection = match connection {
        Some(connection) => connection,
        None => {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(Duration::from_secs(2)))
                .set_response_timeout(Some(BLOCK + hub.means.timeout));
            connection.insert(client.get_multiplexed_async_connection_with_config(&config).await?)
        }
    };
    let mut read = redis::cmd("XREAD");
    read.arg("COUNT").arg(AT_ONCE).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
    for keys in &edition.keys {
        read.arg(keys.changes());
    }
    for at in &position.at {
        read.arg(at.to_string());
    }
    let reply: Option<StreamReadReply> = read.query_async(connection).await?;
    Ok(reply.map(|reply| reply.keys).unwrap_or_default())
}

/// No call can wait for streams on several nodes of a cluster: they are looked at again and again.
async fn look<A: Aggregate>(hub: &Hub<A>, edition: &Edition, position: &Position) -> Result<Vec<StreamKey>, Problem> {
    let mut pipe = redis::pipe();
    for (keys, at) in edition.keys.iter().zip(&position.at) {
        pipe.cmd("XREAD").arg("COUNT").arg(AT_ONCE).arg("STREAMS").arg(keys.changes()).arg(at.to_string());
    }
    let replies: Vec<Option<StreamReadReply>> = hub.service.means.store.ask(&pipe).await?;
    let read: Vec<StreamKey> = replies.into_iter().flatten().flat_map(|reply| reply.keys).collect();
    if read.is_empty() {
        tokio::time::sleep(UNWATCHED).await;
    }
    Ok(read)
}

/// Whether old entries of a feed were ever dropped; also when it can't be told (before Redis 7).
pub(super) async fn is_trimmed<A: Aggregate>(
    hub: &Hub<A>,
    edition: &Edition,
    partition: usize,
) -> Result<bool, Problem> {
    let mut pipe = redis::pipe();
    pipe.cmd("XINFO").arg("STREAM").arg(edition.keys[partition].changes());
    let (info,): (HashMap<String, redis::Value>,) = hub.service.means.store.ask(&pipe).await?;
    let number = |name: &str| info.get(name).map(decoded::<u64>).transpose();
    Ok(match (number("entries-added")?, number("length")?) {
        (Some(added), Some(kept)) => added != kept,
        _ => true,
    })
}

/// What one who catches up finds.
pub(super) enum Found {
    /// Changes with their views; fewer than asked for at the end.
    Changes(Vec<(Change, String)>),
    /// What he asked for is no longer kept.
    Gone,
}

/// Changes of a partition behind an entry, up to another.
pub(super) async fn read<A: Aggregate>(
    hub: &Hub<A>,
    edition: &Edition,
    partition: usize,
    (behind, upto): (EntryId, EntryId),
) -> Result<Found, Problem> {
    // Never closed.
    let _permit = hub.catching_up.acquire().await;
    let keys = &edition.keys[partition];
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("XRANGE").arg(keys.changes()).arg("-").arg("+").arg("COUNT").arg(1);
    let behind_text = format!("({behind}");
    pipe.cmd("XRANGE").arg(keys.changes()).arg(behind_text).arg(upto.to_string()).arg("COUNT").arg(COUNT);
    let (first, entries): (StreamRangeReply, StreamRangeReply) = hub.service.means.store.ask(&pipe).await?;
    if super::one_of(&first)? > behind && is_trimmed(hub, edition, partition).await? {
        return Ok(Found::Gone);
    }
    let changes = entries.ids.iter().map(|entry| Change::read(partition, entry)).collect::<Result<Vec<_>, _>>()?;
    if changes.is_empty() {
        return Ok(Found::Changes(Vec::new()));
    }
    let mut pipe = redis::pipe();
    for change in &changes {
        pipe.cmd("GET").arg(keys.view(&change.id));
    }
    let views: Vec<Option<String>> = hub.service.means.store.ask(&pipe).await?;
    let found: Option<Vec<_>> = changes.into_iter().zip(views).map(|(change, view)| Some((change, view?))).collect();
    // A view that is missing: emptied at this moment.
    Ok(found.map_or(Found::Gone, Found::Changes))
}
