//! Reads a partition from one offset to another, to its end as it was.

use std::{
    io::{self, IsTerminal},
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millrace_shared::kafka::{
    Logged,
    bulk::{BulkReader, Item, Record},
    reader_config, watcher, watermarks,
};
use rdkafka::{consumer::BaseConsumer, types::RDKafkaErrorCode};

use super::Error;

const READ_WAIT: Duration = Duration::from_millis(100);
/// No progress for so long is an error.
const STALL: Duration = Duration::from_secs(60);
const SAY_INTERVAL: Duration = Duration::from_secs(2);

/// Clients of one thread.
pub struct Source<'a> {
    reader: BulkReader,
    watcher: BaseConsumer<Logged>,
    progress: &'a Progress,
}

impl<'a> Source<'a> {
    /// Connects, to read these topics.
    pub fn new(bootstrap: &str, topics: &[&str], progress: &'a Progress) -> Result<Self, Error> {
        let mut config = reader_config(bootstrap, "millrace-check-log");
        // One topic is read after another: a fetch that waits at the end of one holds up the next.
        config.set("fetch.wait.max.ms", "10");
        let (reader, watcher) = (BulkReader::new(&config)?, watcher(bootstrap, "millrace-check-log")?);
        reader.meet(topics)?;
        Ok(Self { reader, watcher, progress })
    }

    /// First offset and end (high watermark) of a partition as it is now.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        Ok(watermarks(&self.watcher, topic, partition)?)
    }

    /// Hands over what is committed from `from` to before `to`, which is a high watermark. When it returns, every
    /// transaction that wrote there has ended.
    pub fn read(
        &mut self,
        topic: &str,
        partition: i32,
        (from, to): (i64, i64),
        mut each: impl FnMut(&Record<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if from >= to {
            return Ok(());
        }
        self.reader.add(&[(topic, partition, from)])?;
        let (mut reached, mut moved, mut trouble, mut failure) = (false, Instant::now(), String::new(), None);
        while !reached {
            let mut records = 0;
            self.reader.read(READ_WAIT, |item| match item {
                Item::Record(record) if record.topic() == topic && record.partition() == partition => {
                    records += 1;
                    reached |= record.offset() + 1 >= to;
                    if record.offset() < to && failure.is_none() {
                        failure = each(&record).err();
                    }
                }
                Item::End { topic: of, partition: at, offset } if of == topic && at == partition => {
                    reached |= offset >= to;
                }
                Item::Failed {
                    error: RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset, ..
                } => {
                    failure = Some(Error::Deleted(format!("{topic}/{partition}")));
                }
                Item::Failed { error, .. } => trouble = format!(" ({error})"),
                Item::Record(_) | Item::End { .. } => {}
            })?;
            if let Some(failure) = failure {
                return Err(failure);
            }
            if records > 0 {
                moved = Instant::now();
                self.progress.add(records);
            } else if moved.elapsed() > STALL {
                return Err(Error::Stalled(format!("{topic}/{partition}"), STALL, trouble));
            }
        }
        self.reader.remove(&[(topic, partition)])?;
        Ok(())
    }
}

/// Tells people how far it is.
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

    /// Clears the line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
