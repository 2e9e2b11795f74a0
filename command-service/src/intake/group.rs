//! The callbacks of the consumer group.
//!
//! They become [`Change`]s, which the consumer's loop reads. What must not wait is done in the callback: captures are
//! renewed first, then writers are asked to let go (for a bounded time), then partitions are given back.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use millrace_shared::kafka::{Logged, topics::Topic};
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    bindings::rd_kafka_resp_err_t,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};

use crate::{
    grant::{Captures, Grant, Slot},
    types::CommandType,
    writer::ToWriter,
};

/// What the group did, as the callbacks said it.
pub(super) enum Change {
    Granted(Vec<Arc<Grant>>),
    Gone(Vec<Arc<Grant>>),
}

/// The callbacks' side.
pub(super) struct Group {
    pub(super) types: Arc<[Arc<dyn CommandType>]>,
    pub(super) writers: Vec<Sender<ToWriter>>,
    pub(super) captures: Captures,
    pub(super) drain: Duration,
    pub(super) state: Mutex<GroupState>,
}

#[derive(Default)]
pub(super) struct GroupState {
    pub(super) next_grant: u64,
    pub(super) grants: HashMap<Slot, Arc<Grant>>,
    pub(super) changes: Vec<Change>,
    /// Whether the group has given us anything yet, be it nothing.
    pub(super) joined: bool,
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Logged.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: rd_kafka_resp_err_t, list: &mut TopicPartitionList) {
        let result = match what {
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, list),
            _ => self.revoked(consumer, list),
        };
        if let Err(error) = result {
            tracing::error!(%error, "a rebalance can't be followed");
        }
    }
}

impl Group {
    pub(super) fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self, list: &TopicPartitionList) -> Vec<(Slot, String)> {
        let slot = |topic: &str, partition| {
            let kind = self.types.iter().position(|kind| kind.topic(Topic::Commands) == topic)?;
            Some((Slot { kind, partition }, topic.to_owned()))
        };
        list.elements().iter().filter_map(|element| slot(element.topic(), element.partition())).collect()
    }

    /// Renews the capture of every grant that is held: called at the top of each callback that is not *lost*.
    fn renew(&self, consumer: &BaseConsumer<Self>, state: &GroupState) {
        if let Some(metadata) = consumer.group_metadata() {
            self.captures.renew(state.grants.values().map(|grant| grant.number), metadata);
        }
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), KafkaError> {
        let mut state = self.state();
        let mut granted = Vec::new();
        for (slot, topic) in self.slots(list) {
            state.next_grant += 1;
            let grant = Arc::new(Grant::new(state.next_grant, slot, &topic));
            state.grants.insert(slot, grant.clone());
            granted.push(grant);
        }
        self.renew(consumer, &state);
        // Where to begin is known after the restore; until then the partitions are paused, so that nothing is fetched.
        // They are assigned at an absolute offset: a logical one (the end, or the committed offset) is looked up by a
        // query, which the pause makes outdated, and librdkafka 2.12 repeats an outdated query after 500 ms and goes
        // where it says, also when there was a seek meanwhile. Commands that came in between were lost (seen here).
        // They are paused after they are assigned: a partition that the client has not met yet can't be paused.
        let mut list = TopicPartitionList::new();
        for grant in &granted {
            list.add_partition_offset(&grant.topic, grant.slot.partition, Offset::Offset(0))?;
        }
        consumer.incremental_assign(&list)?;
        if list.count() > 0 {
            consumer.pause(&list)?;
            tracing::info!(partitions = list.count(), "partitions granted");
        }
        state.joined = true;
        state.changes.push(Change::Granted(granted));
        Ok(())
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), KafkaError> {
        let lost = consumer.assignment_lost();
        let mut state = self.state();
        if !lost {
            // The callback carries the new generation while the partitions are still held: with it, what is under
            // way can be committed instead of aborted.
            self.renew(consumer, &state);
        }
        let gone: Vec<Arc<Grant>> =
            self.slots(list).into_iter().filter_map(|(slot, _)| state.grants.remove(&slot)).collect();
        if lost {
            state.joined = false;
            self.captures.end(gone.iter().map(|grant| grant.number));
        }
        self.drain(&gone);
        self.captures.end(gone.iter().map(|grant| grant.number));
        if !gone.is_empty() {
            tracing::info!(partitions = gone.len(), lost, "partitions taken away");
        }
        state.changes.push(Change::Gone(gone));
        drop(state);
        consumer.incremental_unassign(list)
    }

    /// Waits until no writer has anything under way for these partitions, but not for ever: one that wakes later finds
    /// that its grant has ended.
    fn drain(&self, grants: &[Arc<Grant>]) {
        let deadline = Instant::now() + self.drain;
        let mut drained = Vec::new();
        for (number, writer) in self.writers.iter().enumerate() {
            let slots: Vec<Slot> = grants
                .iter()
                .map(|grant| grant.slot)
                .filter(|slot| slot.partition as usize % self.writers.len() == number)
                .collect();
            if !slots.is_empty() {
                let (done, answer) = channel();
                if writer.send(ToWriter::Release(slots, done)).is_ok() {
                    drained.push(answer);
                }
            }
        }
        for answer in drained {
            if answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_err() {
                tracing::warn!("a writer does not let go in time; its transaction will be refused");
            }
        }
    }
}
