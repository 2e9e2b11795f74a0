//! Beginning again: all present views, and what changes meanwhile.
//!
//! Partition by partition, page by page in the order of ids. After each page the feeds of the partitions read so far are
//! caught up with, so that a long reset never falls out of their window; and what is in a view already, or will be in one
//! that is still to come, is left out. So each aggregate's changes come once, and nothing but the present page is kept.

use std::{collections::HashSet, sync::Arc};

use millrace_shared::{
    domain::{Aggregate, Projection},
    problem::Problem,
    views::{BY_ID, Keys},
};
use redis::streams::StreamRangeReply;

use super::{
    Hub, Topic,
    frame::{self, write_id},
    one_of,
    position::{EntryId, Position},
    reader::{self, Found},
};
use crate::{edition::Edition, store::decoded};

/// Views of a page.
const COUNT: usize = reader::COUNT;

/// How far it is.
pub(super) struct Reset {
    edition: Arc<Edition>,
    position: Position,
    /// Being read; those before it are done.
    partition: usize,
    /// Ids up to this one are done, in that partition.
    done: Option<String>,
    page: Page,
}

/// The last page of views.
#[derive(Default)]
struct Page {
    ids: HashSet<String>,
    /// Each of its views has everything up to here.
    upto: EntryId,
    /// The feeds are to be caught up with until here.
    targets: Vec<EntryId>,
}

impl Reset {
    /// At the beginning: `first` is the first partition that counts, `position` where the feeds are at present.
    pub(super) fn new(edition: Arc<Edition>, position: Position, first: usize) -> Self {
        Self { edition, position, partition: first, done: None, page: Page::default() }
    }

    /// Does one thing, all of it or nothing: what is to be sent, and how far the listener is, when that was all. When what
    /// was told is not enough to go on from, that is nowhere.
    pub(super) async fn step<A: Aggregate>(
        &mut self,
        hub: &Hub<A>,
        topic: &Topic,
    ) -> Result<(Vec<u8>, Option<Position>), Problem> {
        let mut read = hub.partitions(topic).start..=self.partition;
        let behind = |one: &usize| self.page.targets.get(*one).is_some_and(|target| self.position.at[*one] < *target);
        match read.find(behind) {
            Some(partition) => self.pass(hub, topic, partition).await,
            None => self.page(hub, topic).await,
        }
    }

    /// The next page of views.
    async fn page<A: Aggregate>(
        &mut self,
        hub: &Hub<A>,
        topic: &Topic,
    ) -> Result<(Vec<u8>, Option<Position>), Problem> {
        // Never closed.
        let _permit = hub.catching_up.acquire().await;
        let edition = self.edition.clone();
        let keys = &edition.keys[self.partition];
        let ids = self.ids(hub, topic, keys).await?;
        // Where it is not complete, the task notices as well, and all of it begins again.
        let ends = hub.ends(&edition).await?.map_or_else(|| self.position.at.clone(), |ends| ends.at);
        let Some(last) = ids.last() else {
            let next = self.partition + 1;
            if !hub.partitions(topic).contains(&next) {
                return Ok((Vec::new(), Some(self.position.clone())));
            }
            // There, what counts begins now.
            self.position.at[next] = ends[next];
            (self.partition, self.done, self.page) = (next, None, Page::default());
            return Ok((Vec::new(), None));
        };
        let mut pipe = redis::pipe();
        // As of one moment.
        pipe.atomic();
        pipe.cmd("XREVRANGE").arg(keys.changes()).arg("+").arg("-").arg("COUNT").arg(1);
        for id in &ids {
            pipe.cmd("GET").arg(keys.view(id));
        }
        let read: Vec<redis::Value> = hub.service.means.store.ask(&pipe).await?;
        let newest: StreamRangeReply = decoded(&read[0])?;
        let mut page = Page { ids: HashSet::new(), upto: one_of(&newest)?, targets: ends };
        let mut out = Vec::new();
        for (id, view) in ids.iter().zip(&read[1..]) {
            let Some(json) = decoded::<Option<String>>(view)? else { continue };
            let (json, view) = hub.service.parse(id, json)?;
            write_id(&mut out, &hub.ids, &hub.unfinished);
            frame::write(&mut out, id, A::Projection::version(&view), None, &json)?;
            page.ids.insert(id.clone());
        }
        page.targets[self.partition] = page.upto;
        self.done = Some(last.clone());
        self.page = page;
        Ok((out, None))
    }

    /// The next ids.
    async fn ids<A: Aggregate>(&self, hub: &Hub<A>, topic: &Topic, keys: &Keys) -> Result<Vec<String>, Problem> {
        let key = match topic {
            Topic::All => keys.sort(BY_ID, false),
            Topic::With(filter, value) => keys.filter(A::Projection::FILTERS[*filter].name, value),
            Topic::Of(id) => return Ok(if self.done.is_none() { vec![id.clone()] } else { Vec::new() }),
        };
        let begin = self.done.as_ref().map_or_else(|| "-".to_owned(), |done| format!("({done}"));
        let mut pipe = redis::pipe();
        pipe.cmd("ZRANGEBYLEX").arg(key).arg(begin).arg("+").arg("LIMIT").arg(0).arg(COUNT);
        let (ids,): (Vec<String>,) = hub.service.means.store.ask(&pipe).await?;
        Ok(ids)
    }

    /// What has changed in a partition of which views were told.
    async fn pass<A: Aggregate>(
        &mut self,
        hub: &Hub<A>,
        topic: &Topic,
        partition: usize,
    ) -> Result<(Vec<u8>, Option<Position>), Problem> {
        let target = self.page.targets[partition];
        let range = (self.position.at[partition], target);
        let changes = match reader::read(hub, &self.edition, partition, range).await? {
            Found::Changes(changes) => changes,
            Found::Gone => return Ok((Vec::new(), Some(hub.unfinished.clone()))),
        };
        let mut out = Vec::new();
        for (change, view) in &changes {
            let reading = partition == self.partition;
            let to_come = reading && self.done.as_ref().is_none_or(|done| change.id > *done);
            let told = reading && change.at <= self.page.upto && self.page.ids.contains(&change.id);
            if !to_come && !told && hub.is_about(topic, &change.id, view) {
                write_id(&mut out, &hub.ids, &hub.unfinished);
                change.write(&mut out, view)?;
            }
        }
        let last = changes.last().filter(|_| changes.len() == COUNT);
        self.position.at[partition] = last.map_or(target, |(change, _)| change.at);
        Ok((out, None))
    }
}
