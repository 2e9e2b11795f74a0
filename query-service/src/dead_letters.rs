//! The newest dead letters, asked of Kafka when somebody wants to see them.

use std::{
    collections::BTreeMap,
    sync::mpsc::{self, Receiver, SyncSender},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use millrace_shared::{
    envelope::names,
    kafka::{
        Logged,
        bulk::{BulkReader, Item, Record},
        successive_reader_config, watcher, watermarks,
    },
};
use rdkafka::{consumer::BaseConsumer, error::KafkaError};
use serde::Serialize;
use tokio::sync::watch;

use crate::ends::Place;

/// Offsets looked at per partition; markers of transactions are among them.
const LOOKED_AT: i64 = 20;
/// Shown in all.
const SHOWN: usize = 50;
/// Bytes of a reason that are shown.
const MAX_TEXT: usize = 500;
/// What was found is good for so long: however many people look, Kafka is asked no more often.
const FRESH: Duration = Duration::from_secs(5);
/// Longest wait for the end of a partition; an open transaction may hold it up.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait of a caller.
const PATIENCE: Duration = Duration::from_secs(5);
const CLIENT: &str = "millrace-query-dead-letters";

/// A record that could not be handled, without its content.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Letter {
    topic: String,
    partition: i32,
    offset: i64,
    time: Option<Timestamp>,
    key: Option<String>,
    /// Why it could not be handled.
    error: Option<String>,
    /// Where it first lay.
    origin: Option<String>,
    bytes: usize,
}

/// What there is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Found {
    /// The newest ones, newest first.
    pub items: Vec<Letter>,
    /// An upper bound of how many are kept: Kafka's own marks are counted among them.
    pub at_most: i64,
}

/// A thread that looks when asked. It ends with the last clone.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    ask: SyncSender<()>,
    found: watch::Receiver<Option<(Instant, Found)>>,
}

impl DeadLetters {
    /// Starts the thread for these partitions.
    pub fn start(bootstrap: String, places: Vec<Place>) -> std::io::Result<Self> {
        // One question waiting stands for all.
        let (ask, asked) = mpsc::sync_channel(1);
        let (tell, found) = watch::channel(None);
        let thread = Thread { bootstrap, places, known: BTreeMap::new() };
        std::thread::Builder::new().name("dead-letters".into()).spawn(move || thread.run(&asked, &tell))?;
        Ok(Self { ask, found })
    }

    /// What there is, not older than a few seconds; `None` when Kafka can't be asked.
    pub async fn newest(&self) -> Option<Found> {
        let mut found = self.found.clone();
        let fresh = |found: &Option<(Instant, Found)>| found.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
        if !fresh(&found.borrow()) {
            let _ = self.ask.try_send(());
        }
        let found = tokio::time::timeout(PATIENCE, found.wait_for(fresh)).await.ok()?.ok()?;
        found.as_ref().map(|(_, found)| found.clone())
    }
}

/// One partition: its ends when it was read, and what lay there.
type Known = BTreeMap<Place, ((i64, i64), Vec<Letter>)>;

struct Thread {
    bootstrap: String,
    places: Vec<Place>,
    known: Known,
}

struct Clients {
    reader: BulkReader,
    watcher: BaseConsumer<Logged>,
}

impl Thread {
    fn run(mut self, asked: &Receiver<()>, tell: &watch::Sender<Option<(Instant, Found)>>) {
        let mut clients = None;
        while asked.recv().is_ok() {
            if tell.borrow().as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH) {
                continue;
            }
            match self.look(&mut clients) {
                Ok(found) => {
                    tell.send_replace(Some((Instant::now(), found)));
                }
                Err(error) => {
                    tracing::debug!(%error, "dead letters can't be read");
                    clients = None;
                }
            }
        }
    }

    fn look(&mut self, clients: &mut Option<Clients>) -> Result<Found, KafkaError> {
        let clients = match clients {
            Some(clients) => clients,
            None => clients.insert(Clients {
                reader: BulkReader::new(&successive_reader_config(&self.bootstrap, CLIENT))?,
                watcher: watcher(&self.bootstrap, CLIENT)?,
            }),
        };
        for place in &self.places {
            let ends = watermarks(&clients.watcher, &place.0, place.1)?;
            if self.known.get(place).is_none_or(|(known, _)| *known != ends) {
                let letters = read(&mut clients.reader, place, ends)?;
                self.known.insert(place.clone(), (ends, letters));
            }
        }
        Ok(newest(&self.known))
    }
}

fn newest(known: &Known) -> Found {
    let mut items: Vec<Letter> = known.values().flat_map(|(_, letters)| letters.clone()).collect();
    items.sort_by_key(|letter| std::cmp::Reverse((letter.time, letter.offset)));
    items.truncate(SHOWN);
    Found { items, at_most: known.values().map(|((low, high), _)| high - low).sum() }
}

fn read(
    reader: &mut BulkReader,
    (topic, partition): &Place,
    (low, high): (i64, i64),
) -> Result<Vec<Letter>, KafkaError> {
    let mut letters = Vec::new();
    if low >= high {
        return Ok(letters);
    }
    reader.meet(&[topic])?;
    reader.add(&[(topic, *partition, low.max(high - LOOKED_AT))])?;
    let begun = Instant::now();
    let mut reached = false;
    let read = loop {
        let read = reader.read(Duration::from_millis(100), |item| match item {
            Item::Record(record) if record.topic() == topic && record.partition() == *partition => {
                letters.push(letter(&record));
            }
            Item::End { topic: of, partition: at, offset } if of == topic && at == *partition => {
                reached |= offset >= high;
            }
            Item::Record(_) | Item::End { .. } | Item::Failed { .. } => {}
        });
        if read.is_err() || reached || begun.elapsed() > READ_LIMIT {
            break read;
        }
    };
    reader.remove(&[(topic, *partition)])?;
    read.map(|_| letters)
}

fn letter(record: &Record<'_>) -> Letter {
    let header = |name: &str| {
        let (_, value) = record.headers().find(|(known, _)| *known == name)?;
        value.map(shown)
    };
    Letter {
        topic: record.topic().to_owned(),
        partition: record.partition(),
        offset: record.offset(),
        time: record.timestamp_ms().and_then(|millis| Timestamp::from_millisecond(millis).ok()),
        key: record.key().map(shown),
        error: header(names::ERROR),
        origin: header(names::ORIGIN),
        bytes: record.value().map_or(0, <[u8]>::len),
    }
}

/// Whatever bytes it is, as text of a bounded length.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_TEXT)]);
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(offset: i64, second: i64) -> Letter {
        let time = Timestamp::from_second(second).ok();
        let (key, error, origin) = (None, None, None);
        Letter { topic: "t".into(), partition: 0, offset, time, key, error, origin, bytes: 0 }
    }

    #[test]
    fn the_newest_come_first_and_are_not_too_many() {
        let of = |partition, seconds: Vec<i64>| {
            let letters: Vec<_> = seconds.into_iter().enumerate().map(|(at, s)| one(at as i64, s)).collect();
            (("t".to_owned(), partition), ((10, 10 + 2 * letters.len() as i64), letters))
        };
        let found = newest(&BTreeMap::from([of(0, vec![5, 6]), of(1, (0..100).map(|at| at * 3).collect())]));
        assert_eq!(found.items.len(), SHOWN);
        assert!(found.items.is_sorted_by_key(|letter| std::cmp::Reverse(letter.time)));
        assert_eq!(found.items[0], one(99, 297));
        assert_eq!(found.at_most, 204);
    }

    #[test]
    fn g13_whatever_a_header_holds_is_shown_shortly() {
        assert_eq!(shown(b"no \xff UTF-8"), "no \u{fffd} UTF-8");
        assert_eq!(shown("ä".repeat(10_000).as_bytes()).chars().count(), MAX_TEXT);
    }
}
