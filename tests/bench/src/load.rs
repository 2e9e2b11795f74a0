//! The load: a bank of accounts, most of them seldom used, and commands to them as any producer sends them.

use std::{process, thread, time::Duration};

use anyhow::{Context, Result, bail};
use millrace_tests::{Stack, account::partition_of, commands};
use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
    util::Timeout,
};
use uuid::Uuid;

use crate::random::{Random, Zipf};

/// How unevenly they are used.
pub const ZIPF: f64 = 1.0;
/// Different deposits; a command is one of them.
const PAYLOADS: usize = 1_000;

/// Commands without end, the same ones for the same seed.
pub struct Bank {
    random: Random,
    zipf: Zipf,
    partitions: Vec<i32>,
    /// The openings; an account's is chosen by its number.
    open: Vec<Vec<u8>>,
    deposits: Vec<Vec<u8>>,
}

/// An account's id.
pub fn account(number: usize) -> String {
    format!("acc-{number:012}")
}

impl Bank {
    /// A bank of so many accounts over so many partitions, some of them famous.
    pub fn new(seed: u64, accounts: usize, partitions: i32) -> Self {
        Self::with_zipf(seed, accounts, partitions, ZIPF)
    }

    /// One whose accounts are all used alike.
    pub fn uniform(seed: u64, accounts: usize, partitions: i32) -> Self {
        Self::with_zipf(seed, accounts, partitions, 0.0)
    }

    fn with_zipf(seed: u64, accounts: usize, partitions: i32, zipf: f64) -> Self {
        let mut random = Random::new(seed);
        let deposit = |number: usize| {
            let amount = 1 + i64::try_from(random.below(1_000_000)).expect("it is small");
            commands::deposit_for(amount, Some(&format!("invoice {number:06}")))
        };
        Self {
            deposits: (0..PAYLOADS).map(deposit).collect(),
            random,
            zipf: Zipf::new(accounts, zipf),
            partitions: (0..accounts).map(|number| partition_of(account(number).as_bytes(), partitions)).collect(),
            open: vec![commands::open("Ada Lovelace", "EUR")],
        }
    }

    /// With these owners and currencies in turn, account by account.
    pub fn with_openings(mut self, openings: impl Iterator<Item = (String, &'static str)>) -> Self {
        self.open = openings.map(|(owner, currency)| commands::open(&owner, currency)).collect();
        self
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> usize {
        self.partitions.len()
    }

    /// The partition of an account.
    pub fn partition(&self, number: usize) -> i32 {
        self.partitions[number]
    }

    /// Some account, the famous ones more often.
    pub fn pick(&mut self) -> usize {
        self.zipf.rank(&mut self.random)
    }

    /// A command id that is new.
    pub fn command_id(&mut self) -> Uuid {
        let bits = u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }

    /// Opens the accounts.
    pub fn open_all(&mut self, to: &Bulk<'_>) -> Result<()> {
        for number in 0..self.partitions.len() {
            let id = self.command_id();
            to.send(self.partitions[number], &account(number), id, &self.open[number % self.open.len()])?;
        }
        to.finish()
    }

    /// Pays into accounts.
    pub fn deposit(&mut self, to: &Bulk<'_>, count: usize) -> Result<()> {
        for _ in 0..count {
            self.deposit_one(to)?;
        }
        to.finish()
    }

    /// Has so many payments into accounts wait until a time.
    pub fn deposit_later(&mut self, to: &Bulk<'_>, count: usize, not_before: &str) -> Result<()> {
        for _ in 0..count {
            let (number, id, payload) = (self.pick(), self.command_id(), self.random.below(PAYLOADS));
            to.send_later(self.partitions[number], &account(number), id, &self.deposits[payload], not_before)?;
        }
        to.finish()
    }

    /// Pays into an account, and does not wait.
    pub fn deposit_one(&mut self, to: &Bulk<'_>) -> Result<()> {
        let (number, id, payload) = (self.pick(), self.command_id(), self.random.below(PAYLOADS));
        to.send(self.partitions[number], &account(number), id, &self.deposits[payload])
    }
}

/// Produces many commands to a topic.
pub struct Bulk<'a> {
    topic: &'a str,
    producer: ThreadedProducer<Failures>,
}

struct Failures;

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            eprintln!("a command can't be produced: {error}");
            process::exit(1);
        }
    }
}

impl<'a> Bulk<'a> {
    /// To a topic.
    pub fn new(topic: &'a str) -> Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &Stack::shared().kafka)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("queue.buffering.max.messages", "500000")
            .set("delivery.report.only.error", "true")
            .create_with_context(Failures)?;
        Ok(Self { topic, producer })
    }

    /// Sends one, and does not wait.
    pub fn send(&self, partition: i32, key: &str, id: Uuid, value: &[u8]) -> Result<()> {
        self.send_with(partition, key, id, value, None)
    }

    /// The same of one that names a time.
    pub fn send_later(&self, partition: i32, key: &str, id: Uuid, value: &[u8], not_before: &str) -> Result<()> {
        self.send_with(partition, key, id, value, Some(not_before))
    }

    fn send_with(&self, partition: i32, key: &str, id: Uuid, value: &[u8], not_before: Option<&str>) -> Result<()> {
        let mut text = Uuid::encode_buffer();
        let id: &str = id.hyphenated().encode_lower(&mut text);
        let mut headers = OwnedHeaders::new_with_capacity(2).insert(Header { key: "ce_id", value: Some(id) });
        if not_before.is_some() {
            headers = headers.insert(Header { key: "ce_notbefore", value: not_before });
        }
        let mut record: BaseRecord<'_, str, [u8]> =
            BaseRecord::to(self.topic).partition(partition).key(key).payload(value).headers(headers);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => bail!("a command can't be produced: {error}"),
            }
        }
    }

    /// Waits until all is there.
    pub fn finish(&self) -> Result<()> {
        self.producer.flush(Timeout::After(Duration::from_secs(60))).context("producing commands")
    }
}
