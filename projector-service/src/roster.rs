//! Who works on a topic: the membership tells them what is theirs, and they come and go meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
};

use crate::worker::Order;

/// All workers, by topic. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    closed: bool,
    topics: BTreeMap<String, Topic>,
}

#[derive(Debug, Default)]
struct Topic {
    assigned: BTreeSet<i32>,
    workers: BTreeMap<&'static str, Sender<Order>>,
}

impl Roster {
    /// Somebody begins to work on a topic; he is told what is ours already.
    pub fn join(&self, topic: &str, label: &'static str) -> Receiver<Order> {
        let (orders, taken) = mpsc::channel();
        let mut entries = self.entries();
        if !entries.closed {
            let topic = entries.topics.entry(topic.to_owned()).or_default();
            // The receiver is at hand.
            let _ = orders.send(Order::Assigned(topic.assigned.iter().copied().collect()));
            topic.workers.insert(label, orders);
        }
        taken
    }

    /// Somebody's work is over: he hears no more, finishes his batch and ends.
    pub fn leave(&self, topic: &str, label: &str) {
        if let Some(topic) = self.entries().topics.get_mut(topic) {
            topic.workers.remove(label);
        }
    }

    /// Everybody's work is over, also of those who come later.
    pub fn close(&self) {
        *self.entries() = Entries { closed: true, topics: BTreeMap::new() };
    }

    /// The group has said something about a topic.
    pub fn pass_on(&self, topic: &str, order: &Order) {
        let mut entries = self.entries();
        let topic = entries.topics.entry(topic.to_owned()).or_default();
        match order {
            Order::Assigned(partitions) => topic.assigned.extend(partitions),
            Order::Revoked(partitions) => topic.assigned.retain(|assigned| !partitions.contains(assigned)),
        }
        for worker in topic.workers.values() {
            // Whoever is gone is missed by the crew.
            let _ = worker.send(order.clone());
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_later_is_told_what_is_ours_and_who_left_hears_nothing() {
        let roster = Roster::default();
        roster.pass_on("t", &Order::Assigned(vec![1, 2]));
        roster.pass_on("t", &Order::Revoked(vec![1]));
        let late = roster.join("t", "a");
        assert!(matches!(late.try_recv(), Ok(Order::Assigned(partitions)) if partitions == [2]));
        roster.pass_on("t", &Order::Revoked(vec![2]));
        assert!(matches!(late.try_recv(), Ok(Order::Revoked(partitions)) if partitions == [2]));
        roster.leave("t", "a");
        roster.pass_on("t", &Order::Assigned(vec![3]));
        assert!(late.recv().is_err());
        roster.close();
        assert!(roster.join("t", "b").recv().is_err());
    }
}
