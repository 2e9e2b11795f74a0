//! A transactional producer, and the one way to commit with it: fenced by the offsets of granted partitions.

#![allow(unsafe_code, reason = "rd_kafka_flush without rust-rdkafka's 100 ms polling steps")]

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_shared::kafka::{Logged, client_config, topics::Names};
use rdkafka::{
    bindings::{rd_kafka_flush, rd_kafka_resp_err_t},
    error::KafkaError,
    producer::{BaseRecord, Producer as _, ThreadedProducer},
    types::RDKafkaErrorCode,
    util::Timeout,
};

use super::errors::{Failure, Verdict, classify};
use crate::{
    failpoints::{FailPoints, Point},
    grant::{FenceError, FencedOffsets},
    record::{OutRecord, Sink},
    types::CommandType,
};

/// Whether the last commit is so long ago that sending offsets before the flush is faster (measured: 3.2 against
/// 4.2 ms; when transactions follow each other it is the other way round).
const LATELY: Duration = Duration::from_millis(3);
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest record that is produced: a dead letter holds a record of the largest size and its headers.
const MAX_RECORD_BYTES: &str = "2097152";

/// How producers are made.
#[derive(Clone, Debug)]
pub struct ProducerSettings {
    /// Kafka.
    pub bootstrap: String,
    /// Names of the deployment.
    pub names: Names,
    /// Name of this instance.
    pub instance: String,
    /// Longest transaction.
    pub transaction_timeout: Duration,
}

/// A transactional producer that has initialised: older transactions of its id are over.
pub struct Producer {
    inner: ThreadedProducer<Logged>,
    last_commit: Cell<Option<Instant>>,
}

impl Producer {
    /// Makes one. Its id is stable over restarts, so that a restarted process ends its own open transaction at once.
    pub fn new(settings: &ProducerSettings, writer: usize) -> Result<Self, KafkaError> {
        let timeout = settings.transaction_timeout.as_millis().to_string();
        let inner: ThreadedProducer<Logged> = client_config(&settings.bootstrap, "millrace-writer")
            .set("transactional.id", settings.names.transactional_id(&settings.instance, writer))
            .set("transaction.timeout.ms", &timeout)
            .set("message.timeout.ms", &timeout)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("retry.backoff.ms", "10")
            .set("message.max.bytes", MAX_RECORD_BYTES)
            .set("queue.buffering.max.messages", "200000")
            .create_with_context(Logged)?;
        inner.init_transactions(INIT_TIMEOUT)?;
        Ok(Self { inner, last_commit: Cell::new(None) })
    }

    /// Begins a transaction.
    pub fn begin<'a>(
        &'a self,
        types: &'a [Arc<dyn CommandType>],
        fail_points: &'a FailPoints,
    ) -> Result<Transaction<'a>, Failure> {
        self.inner.begin_transaction().map_err(|error| Failure::Fatal(error.to_string()))?;
        Ok(Transaction { producer: self, types, fail_points, failed: None })
    }

    /// Waits until everything is delivered. rust-rdkafka's own flush polls in steps of 100 ms, which costs as much per
    /// transaction; here the producer's polling thread serves the reports, and this only waits.
    fn flush(&self) -> Result<(), KafkaError> {
        // SAFETY: the client lives as long as `self.inner`; the call only waits.
        let answer = unsafe { rd_kafka_flush(self.inner.client().native_ptr(), -1) };
        match answer {
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            error => Err(KafkaError::Flush(error.into())),
        }
    }
}

/// An open transaction.
pub struct Transaction<'a> {
    producer: &'a Producer,
    types: &'a [Arc<dyn CommandType>],
    fail_points: &'a FailPoints,
    failed: Option<KafkaError>,
}

/// Takes the records of one aggregate type.
pub struct TypeSink<'a, 'b> {
    transaction: &'b mut Transaction<'a>,
    kind: usize,
}

impl<'a> Transaction<'a> {
    /// Where the records of a type go.
    pub fn sink(&mut self, kind: usize) -> TypeSink<'a, '_> {
        TypeSink { transaction: self, kind }
    }

    /// Commits with the fence that is asked for as late as can be.
    pub fn commit(mut self, fence: impl FnOnce() -> Result<FencedOffsets, FenceError>) -> Result<(), Failure> {
        let result = self.try_commit(fence);
        match result {
            Ok(()) => {
                self.producer.last_commit.set(Some(Instant::now()));
                Ok(())
            }
            Err(Step::Aborted(reason)) => self.abort(reason),
            Err(Step::Unknown(reason)) => Err(Failure::Fatal(reason)),
        }
    }

    /// Nothing was decided.
    pub fn abandon(self) -> Result<(), Failure> {
        match self.abort("nothing was decided".to_owned()) {
            Err(Failure::Abort(_)) | Ok(()) => Ok(()),
            fatal => fatal,
        }
    }

    fn try_commit(&mut self, fence: impl FnOnce() -> Result<FencedOffsets, FenceError>) -> Result<(), Step> {
        if let Some(error) = self.failed.take() {
            return Err(Step::of("produce", &error));
        }
        let producer = self.producer;
        self.fail_points.reach(Point::Produced);
        let rested = producer.last_commit.get().is_none_or(|last| last.elapsed() > LATELY);
        let send_offsets = || {
            let fenced = fence().map_err(|error| Step::Aborted(error.to_string()))?;
            attempt("offsets", || {
                producer.inner.send_offsets_to_transaction(&fenced.offsets, &fenced.metadata, Timeout::Never)
            })?;
            self.fail_points.reach(Point::Offsets);
            Ok(())
        };
        let flush = || {
            producer.flush().map_err(|error| Step::of("flush", &error))?;
            self.fail_points.reach(Point::Flushed);
            Ok(())
        };
        if rested {
            send_offsets()?;
            flush()?;
        } else {
            flush()?;
            send_offsets()?;
        }
        self.fail_points.reach(Point::Commit);
        attempt("commit", || producer.inner.commit_transaction(Timeout::Never))
    }

    fn abort(&self, reason: String) -> Result<(), Failure> {
        match attempt("abort", || self.producer.inner.abort_transaction(Timeout::Never)) {
            Ok(()) => Err(Failure::Abort(reason)),
            Err(Step::Aborted(error) | Step::Unknown(error)) => Err(Failure::Fatal(format!("{reason}; {error}"))),
        }
    }
}

/// How a step of a transaction failed.
enum Step {
    Aborted(String),
    Unknown(String),
}

impl Step {
    fn of(step: &str, error: &KafkaError) -> Self {
        let text = format!("{step}: {error}");
        match classify(error) {
            Verdict::Abort | Verdict::Retry => Self::Aborted(text),
            Verdict::Fatal => Self::Unknown(text),
        }
    }
}

/// Makes a call again while librdkafka says that it may be.
fn attempt(step: &str, call: impl Fn() -> Result<(), KafkaError>) -> Result<(), Step> {
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        match call() {
            Ok(()) => return Ok(()),
            Err(error) if classify(&error) == Verdict::Retry => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(Step::of(step, &error)),
        }
    }
    Err(Step::Unknown(format!("{step}: no success after {ATTEMPTS} attempts")))
}

impl Sink for TypeSink<'_, '_> {
    fn send(&mut self, record: OutRecord<'_>) {
        if self.transaction.failed.is_some() {
            return;
        }
        let topic = self.transaction.types[self.kind].topic(record.topic);
        let mut out: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(record.partition).headers(record.headers).timestamp(record.timestamp_ms);
        out.key = record.key;
        out.payload = record.value;
        loop {
            match self.transaction.producer.inner.send(out) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    out = again;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => {
                    self.transaction.failed = Some(error);
                    return;
                }
            }
        }
    }
}
