//! Where the topics end, asked of Kafka: for lag, and for questions whose answer is "not yet".
//!
//! librdkafka's questions block, so one thread asks them, one after the other; who waits for the same answer shares it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use millrace_shared::{
    kafka::{Logged, watcher},
    ops::{Health, PROBE_INTERVAL},
};
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use tokio::sync::oneshot;

/// Name of the part that [`Health`] knows.
pub const PART: &str = "kafka";
/// Longest wait for one answer of Kafka.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait of a caller.
const PATIENCE: Duration = Duration::from_secs(4);
/// Ends remembered per partition.
const MAX_SEEN: usize = 256;

/// A topic and one of its partitions.
pub type Place = (String, i32);

enum Question {
    One(Place, oneshot::Sender<Option<i64>>),
    All(oneshot::Sender<Option<BTreeMap<Place, i64>>>),
}

/// Asks Kafka where partitions end. Cheap to clone; the thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Ends {
    questions: Sender<Question>,
    seen: Arc<Mutex<Seen>>,
}

/// When which end was seen first, by partition, oldest first.
#[derive(Debug, Default)]
struct Seen(BTreeMap<Place, VecDeque<(Instant, i64)>>);

impl Ends {
    /// Starts the thread, which also looks at these partitions regularly.
    pub fn start(bootstrap: &str, places: Vec<Place>, health: Health) -> Result<Self, Error> {
        let watcher = watcher(bootstrap, "millrace-query")?;
        let (questions, asked) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let thread = Thread { watcher, places, seen: seen.clone(), health };
        std::thread::Builder::new().name("ends".into()).spawn(move || thread.run(&asked))?;
        Ok(Self { questions, seen })
    }

    /// Where a partition ends now; `None` when Kafka can't be asked.
    pub async fn one(&self, topic: &str, partition: i32) -> Option<i64> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question::One((topic.to_owned(), partition), answer)).ok()?;
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()?
    }

    /// Where all partitions end now; `None` when Kafka can't be asked.
    pub async fn all(&self) -> Option<BTreeMap<Place, i64>> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question::All(answer)).ok()?;
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()?
    }

    /// For how long there has been something behind a checkpoint, as far as this process has seen.
    pub fn lag_seconds(&self, topic: &str, partition: i32, checkpoint: i64) -> f64 {
        let since = lock(&self.seen).since(&(topic.to_owned(), partition), checkpoint);
        since.map_or(0.0, |since| (since.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0)
    }
}

/// Why the thread can't be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client can't be made.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The thread can't be made.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Seen {
    fn note(&mut self, place: &Place, end: i64) {
        let ends = self.0.entry(place.clone()).or_default();
        if ends.back().is_none_or(|(_, last)| *last != end) {
            ends.push_back((Instant::now(), end));
        }
        if ends.len() > MAX_SEEN {
            // Every second one goes: what is left tells the time half as finely.
            let mut keep = false;
            ends.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    fn since(&self, place: &Place, checkpoint: i64) -> Option<Instant> {
        self.0.get(place)?.iter().find(|(_, end)| *end > checkpoint).map(|(since, _)| *since)
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Thread {
    watcher: BaseConsumer<Logged>,
    places: Vec<Place>,
    seen: Arc<Mutex<Seen>>,
    health: Health,
}

impl Thread {
    fn run(&self, asked: &Receiver<Question>) {
        let mut looked: Option<Instant> = None;
        loop {
            let pause = looked.map_or(Duration::ZERO, |at| PROBE_INTERVAL.saturating_sub(at.elapsed()));
            match asked.recv_timeout(pause) {
                Ok(Question::One(place, answer)) => {
                    // Who has given up needs none.
                    if !answer.is_closed() {
                        let _ = answer.send(self.end(&place));
                    }
                }
                Ok(Question::All(answer)) => {
                    // Whoever asked before we begin to look is answered with what we see.
                    let mut answers = vec![answer];
                    let mut others = Vec::new();
                    for question in asked.try_iter() {
                        match question {
                            Question::All(answer) => answers.push(answer),
                            Question::One(place, answer) => others.push((place, answer)),
                        }
                    }
                    let all = self.look();
                    looked = Some(Instant::now());
                    for answer in answers {
                        let _ = answer.send(all.clone());
                    }
                    for (place, answer) in others {
                        let _ = answer.send(self.end(&place));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    looked = Some(Instant::now());
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&self) -> Option<BTreeMap<Place, i64>> {
        self.places.iter().map(|place| Some((place.clone(), self.end(place)?))).collect()
    }

    fn end(&self, place: &Place) -> Option<i64> {
        match self.watcher.fetch_watermarks(&place.0, place.1, TIMEOUT) {
            Ok((_, end)) => {
                self.health.note(PART, Ok(()));
                lock(&self.seen).note(place, end);
                Some(end)
            }
            Err(error) => {
                self.health.note(PART, Err(error.to_string()));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_as_old_as_the_first_end_beyond_the_checkpoint() {
        let mut seen = Seen::default();
        let place = ("t".to_owned(), 0);
        for end in [10, 10, 20, 30] {
            seen.note(&place, end);
        }
        let ends: Vec<i64> = seen.0[&place].iter().map(|(_, end)| *end).collect();
        assert_eq!(ends, [10, 20, 30]);
        assert_eq!(seen.since(&place, 30), None);
        assert_eq!(seen.since(&place, 20), Some(seen.0[&place][2].0));
        assert_eq!(seen.since(&place, 5), Some(seen.0[&place][0].0));
    }

    #[test]
    fn g16_what_is_remembered_is_bounded_and_keeps_the_oldest() {
        let mut seen = Seen::default();
        let place = ("t".to_owned(), 0);
        for end in 0..10_000 {
            seen.note(&place, end);
        }
        assert!(seen.0[&place].len() <= MAX_SEEN);
        assert_eq!(seen.0[&place][0].1, 0);
    }
}
