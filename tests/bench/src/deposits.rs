//! Events as command-service would write them, produced without it: many, or at a steady rate with the moment of each
//! one's commit.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use millrace_shared::envelope::{EventHeaders, rfc3339_micros};
use millrace_tests::{Deployment, Stack};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
    util::Timeout,
};

use crate::{
    load::{Bank, account},
    raw::Sample,
};

/// Where an event lies, and when the broker had it for good.
pub type Committed = (i32, i64, Instant);

/// How often events are sent that have become due.
const TICK: Duration = Duration::from_millis(1);
const TIMEOUT: Timeout = Timeout::After(Duration::from_secs(60));

/// Deposits into the accounts of a bank, as events.
pub struct Deposits {
    topic: String,
    producer: ThreadedProducer<Acknowledged>,
    bank: Bank,
    /// The last sequence of each account.
    sequences: Vec<u64>,
    value: Vec<u8>,
}

/// What the broker has.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<Vec<Committed>>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(record) => {
                let committed = (record.partition(), record.offset(), Instant::now());
                self.0.lock().unwrap_or_else(PoisonError::into_inner).push(committed);
            }
            Err((error, _)) => {
                eprintln!("an event can't be produced: {error}");
                std::process::exit(1);
            }
        }
    }
}

impl Deposits {
    /// Into a bank whose accounts are open; one of them had the deposit that is taken for a sample.
    pub fn new(deployment: &Deployment, bank: Bank, sample: &Sample) -> Result<Self> {
        let subject = sample.event_headers.iter().find(|(name, _)| name == "ce_subject");
        let subject = subject.and_then(|(_, id)| std::str::from_utf8(id).ok()).context("the sample has no subject")?;
        let mut sequences = vec![1; bank.accounts()];
        let number = (0..sequences.len()).find(|number| account(*number) == subject).context("whose is the sample?")?;
        sequences[number] += 1;
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &Stack::shared().kafka)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("queue.buffering.max.messages", "500000")
            .create_with_context(Acknowledged::default())?;
        Ok(Self { topic: deployment.topic("events"), producer, bank, sequences, value: sample.event.clone() })
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> usize {
        self.sequences.len()
    }

    /// The last sequence of an account.
    pub fn sequence(&self, number: usize) -> u64 {
        self.sequences[number]
    }

    /// Events so far, with the openings.
    pub fn written(&self) -> u64 {
        self.sequences.iter().sum()
    }

    /// Writes so many, as fast as can be.
    pub fn write(&mut self, count: usize) -> Result<()> {
        let time = rfc3339_micros(Timestamp::now());
        for _ in 0..count {
            self.write_one(&time)?;
        }
        self.finish().map(drop)
    }

    /// Writes so many into one account, a millisecond apart from now on.
    pub fn write_into(&mut self, number: usize, count: usize) -> Result<()> {
        let mut time = Timestamp::now();
        for _ in 0..count {
            time = time.saturating_add(Duration::from_millis(1))?;
            self.write_to(number, &rfc3339_micros(time))?;
        }
        self.finish().map(drop)
    }

    /// Writes them at a steady rate; returns where they lie and when each was committed.
    pub fn write_at(&mut self, per_second: f64, duration: Duration) -> Result<Vec<Committed>> {
        let (begin, mut written) = (Instant::now(), 0);
        loop {
            let elapsed = begin.elapsed().min(duration);
            let due = (elapsed.as_secs_f64() * per_second) as usize;
            let time = rfc3339_micros(Timestamp::now());
            while written < due {
                self.write_one(&time)?;
                written += 1;
            }
            if elapsed >= duration {
                return self.finish();
            }
            thread::sleep(TICK);
        }
    }

    fn finish(&self) -> Result<Vec<Committed>> {
        self.producer.flush(TIMEOUT).context("producing events")?;
        Ok(std::mem::take(&mut *self.producer.context().0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn write_one(&mut self, time: &str) -> Result<()> {
        let number = self.bank.pick();
        self.write_to(number, time)
    }

    fn write_to(&mut self, number: usize, time: &str) -> Result<()> {
        self.sequences[number] += 1;
        let (id, command_id) = (account(number), self.bank.command_id().to_string());
        let mut headers = Some(OwnedHeaders::new_with_capacity(9));
        let event = EventHeaders {
            aggregate_type: "bank-account",
            aggregate_id: &id,
            sequence: self.sequences[number],
            namespace: "millrace.bank_account.events",
            record: "MoneyDeposited",
            time,
            command_id: &command_id,
            causation_id: None,
            correlation_id: None,
            traceparent: None,
        };
        event.write(|key, parts| {
            let value = parts.concat();
            headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(&value) }));
        });
        let record: BaseRecord<'_, str, [u8]> = BaseRecord::to(&self.topic).partition(self.bank.partition(number));
        let mut record = record.key(&id).payload(&self.value).headers(headers.unwrap_or_default());
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    thread::sleep(TICK);
                }
                Err((error, _)) => bail!("an event can't be produced: {error}"),
            }
        }
    }
}
