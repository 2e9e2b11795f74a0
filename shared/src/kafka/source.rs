//! Reads a partition from one offset to another, to its end as it was: for tools, which tell people how far they are.

use std::{
    io::{self, IsTerminal},
    ops::ControlFlow,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{
    Logged,
    bulk::{BulkReader, Item, Record},
    successive_reader_config, watcher, watermarks,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rdkafka::{consumer::BaseConsumer, error::KafkaError, types::RDKafkaErrorCode};

const READ_WAIT: Duration = Duration::from_millis(100);
/// No progress for so long is an error.
const STALL: Duration = Duration::from_secs(60);
const SAY_INTERVAL: Duration = Duration::from_secs(2);

/// Why a partition can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka can't be asked.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// Nothing came for too long.
    #[error(
        "{0}: no progress for {1:?}{2}; when the brokers answer, a transaction hangs: committed records behind it can't \
         be read until it is ended (kafka-transactions.sh find-hanging; README, Operations, says how)"
    )]
    Stalled(String, Duration, String),
    /// Kafka's retention, or command-service, was faster.
    #[error("{0}: records were deleted while they were to be read; try again")]
    Deleted(String),
}

/// Clients of one thread.
pub struct Source<'a> {
    reader: BulkReader,
    watcher: BaseConsumer<Logged>,
    progress: &'a Progress,
}

impl<'a> Source<'a> {
    /// Connects under a name, to read these topics.
    pub fn new(bootstrap: &str, client_id: &str, topics: &[&str], progress: &'a Progress) -> Result<Self, Error> {
        let reader = BulkReader::new(&successive_reader_config(bootstrap, client_id))?;
        let watcher = watcher(bootstrap, client_id)?;
        reader.meet(topics)?;
        Ok(Self { reader, watcher, progress })
    }

    /// First offset and end (high watermark) of a partition as it is now.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        Ok(watermarks(&self.watcher, topic, partition)?)
    }

    /// Hands over what is committed from `from` to before `to`, which is a high watermark. When it returns, every
    /// transaction that wrote there has ended.
    pub fn read<E: From<Error>>(
        &mut self,
        topic: &str,
        partition: i32,
        range: (i64, i64),
        mut each: impl FnMut(&Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.read_while(topic, partition, range, |record| each(record).map(ControlFlow::Continue))
    }

    /// The same until `each` breaks.
    pub fn read_while<E: From<Error>>(
        &mut self,
        topic: &str,
        partition: i32,
        (from, to): (i64, i64),
        mut each: impl FnMut(&Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        if from >= to {
            return Ok(());
        }
        self.reader.add(&[(topic, partition, from)]).map_err(Error::from)?;
        let (mut reached, mut moved, mut trouble) = (false, Instant::now(), String::new());
        let mut each_so_far = Ok(ControlFlow::Continue(()));
        while !reached {
            let mut records = 0;
            let read = self.reader.read(READ_WAIT, |item| match item {
                Item::Record(record) if record.topic() == topic && record.partition() == partition => {
                    records += 1;
                    reached |= record.offset() + 1 >= to;
                    if record.offset() < to && matches!(each_so_far, Ok(ControlFlow::Continue(()))) {
                        each_so_far = each(&record);
                    }
                }
                Item::End { topic: of, partition: at, offset } if of == topic && at == partition => {
                    reached |= offset >= to;
                }
                Item::Failed {
                    error: RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset, ..
                } => {
                    each_so_far = Err(Error::Deleted(format!("{topic}/{partition}")).into());
                }
                Item::Failed { error, .. } => trouble = format!(" ({error})"),
                Item::Record(_) | Item::End { .. } => {}
            });
            read.map_err(Error::from)?;
            match each_so_far {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(error) => {
                    // It may be read once more.
                    self.reader.remove(&[(topic, partition)]).map_err(Error::from)?;
                    return Err(error);
                }
            }
            if records > 0 {
                moved = Instant::now();
                self.progress.add(records);
            } else if moved.elapsed() > STALL {
                return Err(Error::Stalled(format!("{topic}/{partition}"), STALL, trouble).into());
            }
        }
        Ok(self.reader.remove(&[(topic, partition)]).map_err(Error::from)?)
    }
}

/// Tells people how far it is.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    said: Mutex<Instant>,
}

impl Progress {
    /// Nothing yet of so many offsets.
    pub fn new(total: u64) -> Self {
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template("{bar:30} {percent}% {pos} records, {per_sec}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        Self { bar, said: Mutex::new(Instant::now()) }
    }

    fn add(&self, records: u64) {
        self.bar.inc(records);
        if io::stderr().is_terminal() {
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if said.elapsed() > SAY_INTERVAL {
            *said = Instant::now();
            let (position, total) = (self.bar.position(), self.bar.length().unwrap_or(1).max(1));
            let percent = 100.0 * position as f64 / total as f64;
            eprintln!(
                "{percent:.0} % {position} records, {:.0}/s, {} s left",
                self.bar.per_sec(),
                self.bar.eta().as_secs()
            );
        }
    }

    /// Prints something else meanwhile.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Clears the line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
