//! A raw writer: batches of what waits, two records for each command, the offsets, one commit.

use std::{
    collections::VecDeque,
    process,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    producer::{DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Options, client,
    paced::Latencies,
    produce::{Target, flush},
    reader::{Captured, Chunk},
};

/// Commands of one partition in a transaction, and of all, at most: the service's limits.
const MAX_OF_PARTITION: usize = 2048;
const MAX_OF_TRANSACTION: usize = 4096;
/// Chunks with a writer before the reader waits; each holds up to 1,024 commands.
const QUEUE: usize = 32;
/// Whether the last commit is so long ago that offsets before the flush are faster.
const LATELY: Duration = Duration::from_millis(3);
/// EndTxn is answered before the markers are written; whoever adds partitions meanwhile waits for 20 ms.
const GAP: Duration = Duration::from_micros(2000);
/// Transactions that need the gap.
const LARGE: usize = 512;
const TIMEOUT: Duration = Duration::from_secs(30);

/// With or without transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Exactly once: records and offsets in one transaction.
    Transactions,
    /// At least once: records, then offsets.
    Plain,
}

/// A record that can't be written ends the process.
pub struct Failures;

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            eprintln!("a record can't be written: {error}");
            process::exit(1);
        }
    }
}

struct Writer {
    options: Options,
    // Declared before the producer: they must be let go first.
    events: Target,
    outcomes: Target,
    producer: ThreadedProducer<Failures>,
    consumer: Arc<BaseConsumer<Captured>>,
    outcome: Vec<u8>,
    inbox: Receiver<Chunk>,
    latencies: Option<Arc<Latencies>>,
}

/// What waits in one partition.
#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Chunk>,
    /// Commands of the first chunk that are done.
    done: usize,
}

/// Starts a writer on a thread of its own.
pub fn start(
    options: &Options,
    number: usize,
    consumer: &Arc<BaseConsumer<Captured>>,
    latencies: Option<Arc<Latencies>>,
) -> Result<SyncSender<Chunk>> {
    let mut config = client(options);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // As in command-service; the flush ends it.
        .set("linger.ms", "50")
        .set("queue.buffering.max.messages", "200000")
        .set("delivery.report.only.error", "true");
    if options.mode == Mode::Transactions {
        config.set("transactional.id", format!("{}.{number}", options.group)).set("transaction.timeout.ms", "10000");
        config.set("message.timeout.ms", "10000");
    }
    let producer: ThreadedProducer<Failures> = config.create_with_context(Failures)?;
    if options.mode == Mode::Transactions {
        producer.init_transactions(TIMEOUT)?;
    }
    let (sender, inbox) = sync_channel(QUEUE);
    let writer = Writer {
        options: options.clone(),
        events: Target::new(&producer, &options.events, &options.sample.event_headers)?,
        outcomes: Target::new(&producer, &options.outcomes, &options.sample.outcome_headers)?,
        producer,
        consumer: consumer.clone(),
        outcome: options.sample.outcome.clone(),
        inbox,
        latencies,
    };
    thread::Builder::new().name(format!("raw-{number}")).spawn(move || {
        if let Err(error) = writer.run() {
            eprintln!("raw writer: {error:#}");
        }
        process::exit(1);
    })?;
    Ok(sender)
}

impl Writer {
    fn run(self) -> Result<()> {
        let all = usize::try_from(self.options.partitions)?;
        let mut partitions: Vec<Waiting> = (0..all).map(|_| Waiting::default()).collect();
        let mut waiting = 0;
        let (mut last_commit, mut last_count) = (Instant::now(), 0);
        loop {
            if waiting == 0 {
                waiting += take_in(&mut partitions, self.inbox.recv().context("the reader has ended")?);
            }
            if last_count >= LARGE && self.options.mode == Mode::Transactions {
                thread::sleep(GAP.saturating_sub(last_commit.elapsed()));
            }
            while let Ok(chunk) = self.inbox.try_recv() {
                waiting += take_in(&mut partitions, chunk);
            }
            last_count = self.write(&mut partitions, last_commit)?;
            last_commit = Instant::now();
            waiting -= last_count;
        }
    }

    /// One batch. Returns how many commands it was.
    fn write(&self, partitions: &mut [Waiting], last_commit: Instant) -> Result<usize> {
        if self.options.mode == Mode::Transactions {
            self.producer.begin_transaction()?;
        }
        let mut offsets = TopicPartitionList::new();
        let (mut count, mut timed) = (0, Vec::new());
        for (partition, waiting) in partitions.iter_mut().enumerate() {
            let room = MAX_OF_PARTITION.min(MAX_OF_TRANSACTION - count);
            let partition = i32::try_from(partition)?;
            let (sent, next) = self.send(partition, waiting, room, &mut timed)?;
            if sent > 0 {
                offsets.add_partition_offset(&self.options.commands, partition, Offset::Offset(next))?;
                count += sent;
            }
        }
        match self.options.mode {
            Mode::Transactions => {
                let metadata = self.consumer.context().get().context("nothing was assigned")?;
                let send_offsets = || self.producer.send_offsets_to_transaction(&offsets, metadata.as_ref(), TIMEOUT);
                if last_commit.elapsed() > LATELY {
                    send_offsets()?;
                    flush(&self.producer)?;
                } else {
                    flush(&self.producer)?;
                    send_offsets()?;
                }
                self.producer.commit_transaction(TIMEOUT)?;
            }
            Mode::Plain => {
                flush(&self.producer)?;
                self.consumer.commit(&offsets, CommitMode::Async)?;
            }
        }
        if let Some(latencies) = &self.latencies {
            latencies.committed(timed.into_iter());
        }
        Ok(count)
    }

    /// Sends what waits in a partition, up to `room`. Returns how many commands it was, and the next offset.
    fn send(&self, partition: i32, waiting: &mut Waiting, room: usize, timed: &mut Vec<Uuid>) -> Result<(usize, i64)> {
        let (mut sent, mut next) = (0, 0);
        while sent < room
            && let Some(chunk) = waiting.chunks.front()
        {
            let until = chunk.len().min(waiting.done + room - sent);
            for at in waiting.done..until {
                let command = chunk.get(at);
                let (key, id) = (command.key, command.id);
                self.produce(&self.events, partition, key, command.value)?;
                self.produce(&self.outcomes, partition, id, &self.outcome)?;
                next = command.offset + 1;
                if self.latencies.is_some() {
                    timed.extend(Uuid::try_parse_ascii(id));
                }
            }
            sent += until - waiting.done;
            waiting.done = until;
            if until == chunk.len() {
                waiting.chunks.pop_front();
                waiting.done = 0;
            }
        }
        Ok((sent, next))
    }

    fn produce(&self, target: &Target, partition: i32, key: &[u8], value: &[u8]) -> Result<()> {
        while !target.send(&self.producer, partition, key, value)? {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Takes a chunk in, and returns how many commands it is.
fn take_in(partitions: &mut [Waiting], chunk: Chunk) -> usize {
    let count = chunk.len();
    partitions[chunk.partition.unsigned_abs() as usize].chunks.push_back(chunk);
    count
}
