//! Deletes commands that were handled long ago.
//!
//! Kafka counts retention from the time stamps of records, and commands may carry old ones (an import of last year's
//! payments): it would delete them unread. So it keeps commands for ever, and this deletes them. What was handled when
//! is told by the outcome topic: its records are stamped with the time of writing and name the command's offset. The
//! first outcome written within the retention names a command; all before it were handled earlier, so they arrived
//! earlier.
//!
//! Commands with personal data hold it in clear, so these are deleted as soon as they are handled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use millrace_shared::{
    envelope::names,
    kafka::{
        Logged, REQUEST_TIMEOUT,
        bulk::{BulkReader, Item},
        client_config, reader_config,
        topics::Topic,
        watcher, watermarks,
    },
};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio_util::sync::CancellationToken;

use crate::{grant::Slot, intake::TopicIds, types::CommandType, waiters::Waiters};

const INTERVAL: Duration = Duration::from_secs(600);
/// Of those with personal data.
const PERSONAL_INTERVAL: Duration = Duration::from_secs(5);
const FIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Who asks for offsets.
type Asker = Mutex<Option<BaseConsumer<Logged>>>;

/// Up to where partitions were deleted. What could not be is deleted when it is looked at again.
#[derive(Debug, Default)]
pub struct Deleted(Mutex<HashMap<(String, i32), i64>>);

impl Deleted {
    fn lacks(&self, topic: &str, partition: i32, offset: i64) -> bool {
        let deleted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        deleted.get(&(topic.to_owned(), partition)) != Some(&offset)
    }

    /// What became of an order to delete up to an offset.
    fn note(&self, topic: &str, partition: i32, asked: i64, done: Result<(), KafkaError>) {
        match done {
            Ok(()) => {
                let mut deleted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                deleted.insert((topic.to_owned(), partition), asked);
            }
            Err(error) => tracing::warn!(topic, partition, %error, "handled commands can't be deleted at the moment"),
        }
    }
}

/// What the trimmer works with.
pub struct Trimmer {
    /// Kafka.
    pub bootstrap: String,
    /// Aggregate types by index.
    pub types: Arc<[Arc<dyn CommandType>]>,
    /// Knows which partitions are served here: each instance trims its own.
    pub waiters: Waiters,
    /// Handled commands are kept so long.
    pub retention: Duration,
    /// By type.
    pub topic_ids: Vec<TopicIds>,
    /// The consumer group whose offsets tell what was handled.
    pub group: String,
    /// What it has done.
    pub deleted: Deleted,
}

/// Where partitions can be cut.
type Find = Box<dyn Fn() -> Result<TopicPartitionList, KafkaError> + Send + Sync>;

impl Trimmer {
    /// Trims now and then until told to end.
    pub async fn run(self, shutdown: CancellationToken) {
        let this = Arc::new(self);
        let asked = this.clone();
        let old = this.clone().every(INTERVAL, Box::new(move || asked.find()), &shutdown);
        let personal = async {
            if this.types.iter().any(|kind| kind.info().is_personal) {
                let (asked, asker) = (this.clone(), Asker::default());
                let find = Box::new(move || asked.find_personal(&asker));
                this.clone().every(PERSONAL_INTERVAL, find, &shutdown).await;
            }
        };
        tokio::join!(old, personal);
    }

    async fn every(self: Arc<Self>, interval: Duration, find: Find, shutdown: &CancellationToken) {
        let find = Arc::new(find);
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = shutdown.cancelled() => return,
            }
            let find = find.clone();
            let found = millrace_shared::serve::blocking(move || find()).await;
            let result = match found {
                Ok(list) if list.count() > 0 => self.delete(&list).await,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::warn!(%error, "handled commands can't be deleted at the moment");
            }
        }
    }

    /// Up to where commands with personal data are handled, in the partitions that are served here.
    fn find_personal(&self, asker: &Asker) -> Result<TopicPartitionList, KafkaError> {
        let mut asker = asker.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = self.waiters.slots_served().into_iter().filter(|slot| self.types[slot.kind].info().is_personal);
        let mut asked = TopicPartitionList::new();
        for slot in slots {
            asked.add_partition(self.types[slot.kind].topic(Topic::Commands), slot.partition);
        }
        if asked.count() == 0 {
            return Ok(asked);
        }
        let group = match &mut *asker {
            Some(group) => group,
            none => {
                // It never joins, it only asks. Not for stable offsets: those of a busy service are hardly ever stable.
                let group = client_config(&self.bootstrap, "millrace-trimmer")
                    .set("group.id", &self.group)
                    .set("enable.auto.commit", "false")
                    .set("isolation.level", "read_uncommitted")
                    .create_with_context(Logged)?;
                none.insert(group)
            }
        };
        let mut list = TopicPartitionList::new();
        for found in group.committed_offsets(asked, REQUEST_TIMEOUT)?.elements() {
            if let Offset::Offset(offset) = found.offset()
                && self.deleted.lacks(found.topic(), found.partition(), offset)
            {
                list.add_partition_offset(found.topic(), found.partition(), Offset::Offset(offset))?;
            }
        }
        Ok(list)
    }

    /// Where each partition that is served here can be cut.
    fn find(&self) -> Result<TopicPartitionList, KafkaError> {
        let watcher = watcher(&self.bootstrap, "millrace-trimmer")?;
        let before = Timestamp::now().as_millisecond().saturating_sub(self.retention.as_millis() as i64);
        let mut list = TopicPartitionList::new();
        for slot in self.waiters.slots_served() {
            if self.types[slot.kind].info().is_personal {
                continue;
            }
            let commands = self.types[slot.kind].topic(Topic::Commands);
            let (first, _) = watermarks(&watcher, commands, slot.partition)?;
            if let Some(offset) = self.first_handled_since(&watcher, slot, before)?
                && offset > first
            {
                list.add_partition_offset(commands, slot.partition, Offset::Offset(offset))?;
            }
        }
        Ok(list)
    }

    /// Offset of the command that the first outcome since then answers.
    fn first_handled_since(
        &self,
        watcher: &BaseConsumer<Logged>,
        slot: Slot,
        since_ms: i64,
    ) -> Result<Option<i64>, KafkaError> {
        let outcomes = self.types[slot.kind].topic(Topic::Outcomes);
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(outcomes, slot.partition, Offset::Offset(since_ms))?;
        let found = watcher.offsets_for_times(asked, REQUEST_TIMEOUT)?;
        let Some(Offset::Offset(from)) = found.find_partition(outcomes, slot.partition).map(|found| found.offset())
        else {
            return Ok(None);
        };
        let mut reader = BulkReader::new(&reader_config(&self.bootstrap, "millrace-trimmer"))?;
        reader.add(&[(outcomes, slot.partition, from)])?;
        let deadline = std::time::Instant::now() + FIND_TIMEOUT;
        let (mut offset, mut done) = (None, false);
        while !done && std::time::Instant::now() < deadline {
            reader.read(Duration::from_millis(100), |item| match item {
                Item::Record(record) if !done => {
                    let position = record.headers().find(|(name, _)| *name == names::POSITION);
                    let text = position.and_then(|(_, value)| std::str::from_utf8(value?).ok());
                    // Offsets of a topic of the same name that was deleted mean nothing.
                    let here = format!("{}/{}/", self.topic_ids[slot.kind].commands, slot.partition);
                    offset = text.and_then(|text| text.strip_prefix(&here)?.parse().ok());
                    done = offset.is_some();
                }
                Item::End { .. } | Item::Failed { .. } => done = true,
                Item::Record(_) => {}
            })?;
        }
        Ok(offset)
    }

    async fn delete(&self, list: &TopicPartitionList) -> Result<(), KafkaError> {
        let admin: AdminClient<DefaultClientContext> = client_config(&self.bootstrap, "millrace-trimmer").create()?;
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let answered = admin.delete_records(list, &options).await?;
        for asked in list.elements() {
            let (topic, partition) = (asked.topic(), asked.partition());
            let done = answered.find_partition(topic, partition).map_or(Err(KafkaError::Canceled), |done| done.error());
            if let Offset::Offset(offset) = asked.offset() {
                self.deleted.note(topic, partition, offset, done);
            }
        }
        tracing::debug!(partitions = list.count(), "commands that were handled are deleted");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g14_what_could_not_be_deleted_is_asked_for_again() {
        let deleted = Deleted::default();
        assert!(deleted.lacks("user.commands", 1, 7));
        deleted.note("user.commands", 1, 7, Err(KafkaError::Canceled));
        assert!(deleted.lacks("user.commands", 1, 7), "it is still there");
        deleted.note("user.commands", 1, 7, Ok(()));
        assert!(!deleted.lacks("user.commands", 1, 7));
        assert!(deleted.lacks("user.commands", 1, 9), "more was handled");
        assert!(deleted.lacks("user.commands", 2, 7));
    }
}
