//! What is not due yet: commands that name a time, and deadlines of processes.
//!
//! It lies in memory whole and in the topic of scheduled commands, record by record, in the transactions of the
//! partition's writer. No I/O here.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use millrace_shared::{envelope::names, fast_hash::FastMap};

use crate::record::CommandRecord;

/// What one that waits takes beside its own bytes, about: a million deposits took 1.1 GB.
const OVERHEAD_BYTES: usize = 750;

/// All that waits in a partition.
#[derive(Default)]
pub(super) struct Schedule {
    /// By key, see [`command_key`]: those of an aggregate stand together.
    waiting: BTreeMap<Box<str>, Waiting>,
    /// Those of one instant in the order in which they came.
    due: BTreeMap<Due, Box<str>>,
    /// Keys of those that wait for an answer, by claim.
    asking: FastMap<Box<str>, Box<str>>,
    next: u64,
    bytes: usize,
    /// What this batch has changed, and what was there before.
    before: Vec<(Box<str>, Option<Waiting>)>,
    /// How many, and bytes of them, the metric and the instance's room know of, once they do.
    told: Option<(usize, usize)>,
}

/// Room for what waits: the partitions of an instance share it, since any of them may need most of it. An instance has
/// room for the partitions that it has, so that one which takes over those of others can hold what they let in.
#[derive(Clone, Debug)]
pub struct Room {
    bytes: i64,
    partitions: i64,
    held: Arc<AtomicI64>,
    taken: Arc<AtomicI64>,
}

impl Room {
    /// Of so many bytes, for all of so many partitions.
    pub fn new(bytes: u64, partitions: usize) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Self { bytes, partitions: partitions.max(1) as i64, held: Arc::default(), taken: Arc::default() }
    }

    fn limit(&self) -> i64 {
        self.bytes / self.partitions * self.held.load(Relaxed).max(1)
    }
}

/// Milliseconds since 1970, and a number that grows.
type Due = (i64, u64);

/// A command that waits, as it will be put into the command topic.
pub(super) struct Waiting {
    due: Due,
    pub(super) record: CommandRecord,
    /// Set when it waits for an answer, and not for its time.
    pub(super) asking: Option<Asking>,
}

/// What a command that waits for an answer has asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asking {
    /// Tells it from all others.
    pub(super) claim: Box<str>,
    /// What it was answered.
    pub(super) answer: Option<Box<str>>,
}

impl Asking {
    fn of(record: &CommandRecord) -> Option<Self> {
        let text = |wanted| {
            let (_, value) = record.headers().find(|(name, _)| *name == wanted)?;
            Some(std::str::from_utf8(value?).ok()?.into())
        };
        Some(Self { claim: text(names::CLAIM)?, answer: text(names::ANSWER) })
    }
}

/// Under what a command waits. Ids of aggregates have no slash.
pub(super) fn command_key(aggregate_id: &str, command_id: &str) -> String {
    format!("{aggregate_id}/{command_id}")
}

/// Whose command or deadline a key stands for.
pub(super) fn aggregate_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(aggregate_id, _)| aggregate_id)
}

impl Schedule {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Partitions share the metric and the room.
    pub(super) fn tell(&mut self, aggregate_type: &'static str, room: &Room) {
        room.taken.fetch_add(self.grown(), Relaxed);
        let len = self.waiting.len();
        let told = self.told.replace((len, self.bytes));
        if told.is_none() {
            room.held.fetch_add(1, Relaxed);
        }
        let (told, _) = told.unwrap_or_default();
        if len != told {
            metrics::gauge!("millrace_scheduled", "type" => aggregate_type).increment(len as f64 - told as f64);
        }
    }

    /// The partition goes.
    pub(super) fn gone(self, aggregate_type: &'static str, room: &Room) {
        if self.told.is_some() {
            Self { told: self.told, ..Self::default() }.tell(aggregate_type, room);
            room.held.fetch_sub(1, Relaxed);
        }
    }

    /// Whether further ones may wait for their time.
    pub(super) fn has(&self, room: &Room) -> bool {
        self.taken(room) < room.limit()
    }

    /// Whether further ones may wait for an answer, for seconds: not even a room that is full for years stops them.
    pub(super) fn has_for_answers(&self, room: &Room) -> bool {
        self.taken(room) < room.limit().saturating_add(room.limit() / 10)
    }

    fn taken(&self, room: &Room) -> i64 {
        room.taken.load(Relaxed) + self.grown()
    }

    fn grown(&self) -> i64 {
        self.bytes as i64 - self.told.map_or(0, |(_, bytes)| bytes as i64)
    }

    /// Bytes that they take, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The one under a key.
    pub(super) fn get(&self, key: &str) -> Option<&Waiting> {
        self.waiting.get(key)
    }

    /// What the one under a key has asked.
    pub(super) fn asking(&self, key: &str) -> Option<&Asking> {
        self.waiting.get(key)?.asking.as_ref()
    }

    /// Key of the one that has asked under this claim.
    pub(super) fn that_asks(&self, claim: &str) -> Option<&str> {
        self.asking.get(claim).map(|key| &**key)
    }

    /// Keys of those of an aggregate.
    pub(super) fn of(&self, aggregate_id: &str) -> Vec<Box<str>> {
        let first: Box<str> = command_key(aggregate_id, "").into();
        let keys = self.waiting.range(first..).map(|(key, _)| key);
        keys.take_while(|key| aggregate_of(key) == aggregate_id).cloned().collect()
    }

    /// When the first one is due, in milliseconds since 1970.
    pub(super) fn first_due_ms(&self) -> Option<i64> {
        self.due.first_key_value().map(|((due_ms, _), _)| *due_ms)
    }

    /// Keys of those that are due, the first ones first.
    pub(super) fn due(&self, now_ms: i64, most: usize) -> Vec<Box<str>> {
        self.due.range(..=(now_ms, u64::MAX)).take(most).map(|(_, key)| key.clone()).collect()
    }

    /// Has a command wait, instead of one under the same key.
    pub(super) fn put(&mut self, key: &str, due_ms: i64, record: CommandRecord) {
        let before = self.set(key, due_ms, record);
        self.before.push((key.into(), before));
    }

    /// Takes one out.
    pub(super) fn take(&mut self, key: &str) -> Option<CommandRecord> {
        let waiting = self.remove(key)?;
        let record = waiting.record.clone();
        self.before.push((key.into(), Some(waiting)));
        Some(record)
    }

    /// As [`Schedule::put`], and `None` as [`Schedule::take`], from the topic: there is no way back.
    pub(super) fn read_back(&mut self, key: &str, waiting: Option<(i64, CommandRecord)>) {
        match waiting {
            Some((due_ms, record)) => self.set(key, due_ms, record),
            None => self.remove(key),
        };
    }

    /// The batch is in the log.
    pub(super) fn commit(&mut self) {
        self.before.clear();
    }

    /// The batch is not in the log.
    pub(super) fn rollback(&mut self) {
        for (key, before) in mem::take(&mut self.before).into_iter().rev() {
            self.remove(&key);
            if let Some(waiting) = before {
                self.insert(key, waiting);
            }
        }
    }

    fn set(&mut self, key: &str, due_ms: i64, record: CommandRecord) -> Option<Waiting> {
        let before = self.remove(key);
        self.next += 1;
        let asking = Asking::of(&record);
        self.insert(key.into(), Waiting { due: (due_ms, self.next), record, asking });
        before
    }

    fn insert(&mut self, key: Box<str>, waiting: Waiting) {
        self.bytes += size(&key, &waiting);
        self.due.insert(waiting.due, key.clone());
        if let Some(asking) = &waiting.asking {
            self.asking.insert(asking.claim.clone(), key.clone());
        }
        self.waiting.insert(key, waiting);
    }

    fn remove(&mut self, key: &str) -> Option<Waiting> {
        let waiting = self.waiting.remove(key)?;
        self.due.remove(&waiting.due);
        if let Some(asking) = &waiting.asking {
            self.asking.remove(&asking.claim);
        }
        self.bytes -= size(key, &waiting);
        Some(waiting)
    }
}

fn size(key: &str, waiting: &Waiting) -> usize {
    2 * key.len() + waiting.record.size() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &[u8]) -> CommandRecord {
        CommandRecord::new(0, None, Some(b"a"), Some(value), std::iter::empty())
    }

    #[test]
    fn what_is_due_comes_in_the_order_of_its_time_and_then_of_its_arrival() {
        let mut schedule = Schedule::default();
        for (key, due_ms) in [("a/3", 20), ("a/1", 10), ("a/2", 10), ("a/4", 30)] {
            schedule.put(key, due_ms, record(b""));
        }
        schedule.commit();
        assert_eq!(schedule.first_due_ms(), Some(10));
        assert_eq!(schedule.due(9, 9), [] as [Box<str>; 0]);
        assert_eq!(schedule.due(20, 9), ["a/1", "a/2", "a/3"].map(Box::from));
        assert_eq!(schedule.due(20, 2), ["a/1", "a/2"].map(Box::from));
        assert_eq!(aggregate_of(&command_key("a", "transfer/t/debit")), "a");
    }

    #[test]
    fn g16_partitions_share_the_room_and_give_it_back() {
        let room = Room::new(20_000, 4);
        let [mut one, mut other] = [Schedule::default(), Schedule::default()];
        one.tell("t", &room);
        other.tell("t", &room);
        one.put("a/1", 10, record(&[0; 8_000]));
        assert!(one.has(&room) && other.has(&room));
        one.put("a/2", 10, record(&[0; 1_000]));
        assert!(!one.has(&room) && other.has(&room), "of others it is known what was told");
        assert!(one.has_for_answers(&room));
        one.tell("t", &room);
        one.tell("t", &room);
        assert!(!one.has(&room) && !other.has(&room));
        one.take("a/2");
        assert!(one.has(&room) && !other.has(&room));
        other.put("b/1", 10, record(&[0; 3_000]));
        assert!(!other.has_for_answers(&room));
        other.tell("t", &room);
        one.gone("t", &room);
        assert!(other.has(&room), "its half of the room has gone with it, and all that it held");
        other.put("b/2", 10, record(&[0; 3_000]));
        assert!(!other.has(&room));
        other.gone("t", &room);
        Schedule::default().gone("t", &room);
        assert_eq!((room.taken.load(Relaxed), room.held.load(Relaxed)), (0, 0));
    }

    #[test]
    fn g02_a_batch_that_is_taken_back_leaves_nothing_behind() {
        let mut schedule = Schedule::default();
        schedule.put("a/1", 10, record(b"one"));
        schedule.put("a/2", 20, record(b"two"));
        schedule.commit();
        let bytes = schedule.bytes();
        schedule.put("a/1", 40, record(b"another"));
        schedule.take("a/1");
        schedule.take("a/2");
        schedule.put("a/3", 5, record(b"three"));
        schedule.put("a/2", 7, record(b"two again"));
        schedule.rollback();
        assert_eq!((schedule.len(), schedule.bytes()), (2, bytes));
        assert_eq!(schedule.due(100, 9), ["a/1", "a/2"].map(Box::from));
        assert_eq!(schedule.get("a/1").unwrap().record.value(), Some(&b"one"[..]));
    }
}
