//! The steps between a command's commit and its view, one by one, each by a client that does nothing else: committing a
//! transaction, fetching what it wrote, sending it by the projector's script.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use millrace_shared::kafka::{
    bulk::{BulkReader, Item},
    reader_config,
};
use millrace_tests::{Deployment, Stack};
use rdkafka::{
    ClientConfig,
    producer::{Producer, ThreadedProducer},
};

use super::{
    POLL_WAIT, Sample,
    produce::{Target, flush},
    views::{ViewSample, Writer},
    writer::Failures,
};
use crate::{kafka, load::account, views::connection};

const TIMEOUT: Duration = Duration::from_secs(30);

/// How long each took.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// The commit of a transaction with an event and an outcome.
    pub commit: Duration,
    /// From then until the event was fetched.
    pub fetch: Duration,
    /// The script.
    pub script: Duration,
}

/// The client.
pub struct Stepper {
    // Declared before the producer: they must be let go first.
    events: Target,
    outcomes: Target,
    producer: ThreadedProducer<Failures>,
    /// Offsets; `None` at the end of what there is.
    fetched: Receiver<(Option<i64>, Instant)>,
    writer: Writer,
    sample: Sample,
    number: usize,
    /// As long as it is there, events are fetched.
    _alive: Arc<()>,
}

impl Stepper {
    /// One with topics and keys of its own.
    pub fn start(deployment: &Deployment, sample: &Sample, view: &ViewSample) -> Result<Self> {
        let stack = Stack::shared();
        let name = format!("{}.raw-steps", deployment.prefix);
        let topics = ["events", "outcomes"].map(|of| format!("{name}.{of}"));
        kafka::create(&[topics[0].as_str(), &topics[1]], 1)?;
        let producer: ThreadedProducer<Failures> = ClientConfig::new()
            .set("bootstrap.servers", &stack.kafka)
            .set("client.id", &name)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "50")
            .set("transactional.id", &name)
            .set("transaction.timeout.ms", "10000")
            .set("message.timeout.ms", "10000")
            .create_with_context(Failures)?;
        producer.init_transactions(TIMEOUT)?;
        let mut reader = BulkReader::new(&reader_config(&stack.kafka, &name))?;
        reader.add(&[(&topics[0], 0, 0)])?;
        let (sender, fetched) = channel();
        let alive = Arc::new(());
        let kept = Arc::downgrade(&alive);
        thread::Builder::new().name("raw-fetch".into()).spawn(move || {
            let mut open = true;
            while open && kept.upgrade().is_some() {
                let read = reader.read(POLL_WAIT, |item| {
                    let offset = if let Item::Record(record) = item { Some(record.offset()) } else { None };
                    open &= sender.send((offset, Instant::now())).is_ok();
                });
                open &= read.is_ok();
            }
        })?;
        Ok(Self {
            events: Target::new(&producer, &topics[0], &sample.event_headers)?,
            outcomes: Target::new(&producer, &topics[1], &sample.outcome_headers)?,
            producer,
            fetched,
            writer: Writer::new(connection(&format!("{}/1", stack.redis))?, &format!("{name}."), view.clone())?,
            sample: sample.clone(),
            number: 0,
            _alive: alive,
        })
    }

    /// Goes once through all.
    pub fn step(&mut self) -> Result<Steps> {
        let id = account(self.number);
        self.number += 1;
        self.producer.begin_transaction()?;
        self.events.send(&self.producer, 0, id.as_bytes(), &self.sample.event)?;
        self.outcomes.send(&self.producer, 0, id.as_bytes(), &self.sample.outcome)?;
        flush(&self.producer)?;
        let begin = Instant::now();
        self.producer.commit_transaction(TIMEOUT)?;
        let committed = Instant::now();
        let (offset, at) = loop {
            match self.fetched.recv_timeout(TIMEOUT) {
                Ok((None, _)) => {}
                Ok((Some(offset), at)) => break (offset, at),
                Err(RecvTimeoutError::Timeout) => bail!("the event was not fetched"),
                Err(RecvTimeoutError::Disconnected) => bail!("events can't be read"),
            }
        };
        let fetched = Instant::now();
        self.writer.apply(0, &[(offset, id)]).context("writing the view")?;
        // It may be fetched before the commit is answered.
        let fetch = at.saturating_duration_since(committed);
        Ok(Steps { commit: committed - begin, fetch, script: fetched.elapsed() })
    }
}
