//! A transactional producer, and the one way to commit with it: fenced by the offsets of granted partitions.

#![allow(unsafe_code, reason = "librdkafka's own flush and produce, see below and `produce.rs`")]

use std::{
    cell::Cell,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use millrace_shared::kafka::{
    Logged, client_config,
    topics::{Names, Topic},
};
use rdkafka::{
    ClientContext, Message,
    bindings::{rd_kafka_flush, rd_kafka_resp_err_t},
    config::RDKafkaLogLevel,
    error::KafkaError,
    producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
    util::Timeout,
};

use super::{
    errors::{Cause, Failure, Verdict, cause, classify},
    offsets::OffsetSender,
    produce::Handle,
};
use crate::{
    failpoints::{FailPoints, Point},
    grant::{FenceError, FencedOffsets},
    record::{OutRecord, Sink},
    types::CommandType,
};

/// Whether the last commit is so long over that sending offsets before the flush is faster (measured without a linger: 3.2
/// against 4.2 ms; when transactions follow each other it is the other way round).
const LATELY: Duration = Duration::from_millis(3);
/// The broker answers a commit before its markers are written. Partitions that are added to the next transaction before
/// that are refused, and librdkafka asks again after 20 ms.
const GAP: Duration = Duration::from_millis(2);
/// Records of a transaction behind which that pays: others follow it at once then. After small ones it would only be a delay.
const LARGE: usize = 1024;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The writer waits for the answer.
const END_TIMEOUT: Duration = Duration::from_millis(500);
/// Longer than most batches are decided.
const LINGER_MS: &str = "50";
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
    /// By index of type, and of topic. Declared before the client: they must be let go first.
    topics: Vec<Vec<Handle>>,
    offsets: OffsetSender,
    inner: ThreadedProducer<Deliveries>,
    /// Longest transaction: what a call has not achieved by then, it never will.
    limit: Duration,
    /// Since when the next transaction can begin without being refused; none before the first commit.
    ready_at: Cell<Option<Instant>>,
}

impl Producer {
    /// Makes one. Its id is stable over restarts, so that a restarted process ends its own open transaction at once.
    pub fn new(settings: &ProducerSettings, types: &[Arc<dyn CommandType>], writer: usize) -> Result<Self, KafkaError> {
        let timeout = settings.transaction_timeout.as_millis();
        // Less than the transaction may take, as librdkafka wants it.
        let socket_timeout = timeout.saturating_sub(100).max(900).to_string();
        let timeout = timeout.to_string();
        let inner: ThreadedProducer<Deliveries> = client_config(&settings.bootstrap, "millrace-writer")
            .set("transactional.id", settings.names.transactional_id(&settings.instance, writer))
            .set("transaction.timeout.ms", &timeout)
            .set("message.timeout.ms", &timeout)
            .set("socket.timeout.ms", &socket_timeout)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The flush before the commit ends it. Without it the sending thread is woken for each record while the next one
            // is still being decided (measured: 4.4 against 3.2 us of that thread's time per command).
            .set("linger.ms", LINGER_MS)
            .set("retry.backoff.ms", "10")
            .set("message.max.bytes", MAX_RECORD_BYTES)
            .set("queue.buffering.max.messages", "200000")
            // The commit says that all is well; only what is not has to be told.
            .set("delivery.report.only.error", "true")
            .create_with_context(Deliveries::default())?;
        inner.init_transactions(INIT_TIMEOUT)?;
        let handle = |topic: &str| {
            // SAFETY: the client goes into the same struct, behind its topics.
            unsafe { Handle::new(inner.client().native_ptr(), topic) }
        };
        let of_type = |kind: &Arc<dyn CommandType>| {
            Topic::of(kind.info().is_personal).map(|topic| handle(kind.topic(topic))).collect()
        };
        let topics = types.iter().map(of_type).collect::<Result<_, _>>()?;
        let limit = settings.transaction_timeout;
        let no_thread = |error: std::io::Error| KafkaError::ClientCreation(error.to_string());
        let offsets = OffsetSender::start(inner.clone(), limit).map_err(no_thread)?;
        Ok(Self { topics, offsets, inner, limit, ready_at: Cell::new(None) })
    }

    /// Begins a transaction.
    pub fn begin<'a>(&'a self, fail_points: &'a FailPoints) -> Result<Transaction<'a>, Failure> {
        self.inner.begin_transaction().map_err(|error| Failure::Unknown(error.to_string()))?;
        self.inner.client().context().clear();
        Ok(Transaction { producer: self, fail_points, records: 0, failed: None })
    }

    /// How long the next transaction had better wait: more commands gather meanwhile.
    pub fn rest(&self) -> Duration {
        self.ready_at.get().map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Where a topic's partition ends. As librdkafka asks for a producer it is the last stable offset: what lies below it
    /// belongs to transactions that have ended.
    pub fn end_of(&self, topic: &str, partition: i32) -> Result<i64, KafkaError> {
        self.inner.client().fetch_watermarks(topic, partition, END_TIMEOUT).map(|(_, end)| end)
    }

    /// Waits until everything is delivered. rust-rdkafka's own flush polls in steps of 100 ms, which costs as much per
    /// transaction; here the producer's polling thread serves the reports, and this only waits.
    fn flush(&self) -> Result<(), KafkaError> {
        // SAFETY: the client lives as long as `self.inner`; the call only waits.
        tracing::debug!("flush");
        let answer = unsafe { rd_kafka_flush(self.inner.client().native_ptr(), -1) };
        match answer {
            rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            error => Err(KafkaError::Flush(error.into())),
        }
    }
}

/// Makes a call again while librdkafka says that it may be, within the time of a transaction.
pub(super) fn attempt(
    step: &str,
    limit: Duration,
    call: impl Fn(Timeout) -> Result<(), KafkaError>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let result = call(Timeout::After(left));
        tracing::debug!(step, ?result, ?left, "transaction");
        match result {
            Ok(()) => return Ok(()),
            Err(error) if classify(&error) != Verdict::Retry => return Err(failed(step, &error)),
            Err(error) if Instant::now() >= deadline => {
                return Err(Failure::Unknown(format!("{step}: no success in {limit:?}: {error}")));
            }
            Err(_) => std::thread::sleep(RETRY_PAUSE.min(left)),
        }
    }
}

/// An open transaction.
pub struct Transaction<'a> {
    producer: &'a Producer,
    fail_points: &'a FailPoints,
    records: usize,
    failed: Option<KafkaError>,
}

/// Takes the records of a partition of one aggregate type.
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
                let gap = if self.records >= LARGE { GAP } else { Duration::ZERO };
                self.producer.ready_at.set(Some(Instant::now() + gap));
                Ok(())
            }
            Err(failure @ Failure::Unknown(_)) => Err(failure),
            Err(failure) => self.abort(failure),
        }
    }

    /// Nothing was decided.
    pub fn abandon(self) -> Result<(), Failure> {
        match self.abort(Failure::Abort("nothing was decided".to_owned())) {
            Err(Failure::Abort(_)) => Ok(()),
            other => other,
        }
    }

    /// A record of the batch can't even be made.
    pub fn give_up(self, reason: String) -> Result<(), Failure> {
        self.abort(Failure::Poison(reason))
    }

    fn try_commit(&mut self, fence: impl FnOnce() -> Result<FencedOffsets, FenceError>) -> Result<(), Failure> {
        if let Some(error) = self.failed.take() {
            return Err(failed("produce", &error));
        }
        let producer = self.producer;
        self.fail_points.reach(Point::Produced);
        let rested = producer.ready_at.get().is_none_or(|at| at.elapsed() > LATELY);
        let send_offsets = || {
            let fenced = fence().map_err(|error| Failure::Abort(error.to_string()))?;
            producer.offsets.send(fenced)?;
            self.fail_points.reach(Point::Offsets);
            Ok(())
        };
        let flush = || {
            producer.flush().map_err(|error| failed("flush", &error))?;
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
        attempt("commit", producer.limit, |left| producer.inner.commit_transaction(left))
    }

    /// What the deliveries say is closer to the cause than what the call said, so it decides what comes next.
    fn abort(&self, failure: Failure) -> Result<(), Failure> {
        let failure = match (failure, self.producer.inner.client().context().failure()) {
            (Failure::Abort(_), Some(cause)) => cause,
            (failure, _) => failure,
        };
        match attempt("abort", self.producer.limit, |left| self.producer.inner.abort_transaction(left)) {
            Ok(()) => Err(failure),
            Err(error) => Err(Failure::Unknown(format!("{failure:?}; {error:?}"))),
        }
    }
}

fn failed(step: &str, error: &KafkaError) -> Failure {
    let text = format!("{step}: {error}");
    match (classify(error), error) {
        (_, KafkaError::MessageProduction(code)) if cause(*code) == Cause::Record => Failure::Poison(text),
        (Verdict::Abort | Verdict::Retry, _) => Failure::Abort(text),
        (Verdict::Refused, _) => Failure::Refused(text),
        (Verdict::Fatal | Verdict::Unknown, _) => Failure::Unknown(text),
    }
}

/// The records of the present transaction that were not delivered.
#[derive(Debug, Default)]
pub(super) struct Deliveries(Mutex<Vec<(Cause, String, i32, Code)>>);

impl Deliveries {
    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What they say about the transaction, if anything.
    fn failure(&self) -> Option<Failure> {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |wanted| failed.iter().filter(move |(cause, ..)| *cause == wanted);
        if let Some((_, topic, partition, code)) = of(Cause::Record).next() {
            return Some(Failure::Poison(format!("{topic}/{partition} refuses a record: {code}")));
        }
        let (_, _, _, code) = of(Cause::Partition).next()?;
        let mut partitions: Vec<_> =
            of(Cause::Partition).map(|(_, topic, partition, _)| (topic.clone(), *partition)).collect();
        partitions.sort_unstable();
        partitions.dedup();
        Some(Failure::Unavailable(partitions, code.to_string()))
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Logged.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery: &DeliveryResult<'_>, (): ()) {
        let Err((KafkaError::MessageProduction(code), message)) = delivery else { return };
        let found = cause(*code);
        if found != Cause::Elsewhere {
            let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            failed.push((found, message.topic().to_owned(), message.partition(), *code));
        }
    }
}

impl Sink for TypeSink<'_, '_> {
    fn send(&mut self, record: OutRecord<'_>) {
        self.send_to(self.kind, record);
    }

    fn send_to(&mut self, kind: usize, record: OutRecord<'_>) {
        if self.transaction.failed.is_some() {
            return;
        }
        self.transaction.records += 1;
        let producer = self.transaction.producer;
        let topic = &producer.topics[kind][record.topic as usize];
        loop {
            // SAFETY: the client lives as long as `producer`, whose topics are its own.
            match unsafe { topic.produce(producer.inner.client().native_ptr(), &record) } {
                Ok(()) => return,
                Err(Code::QueueFull) => std::thread::sleep(Duration::from_millis(1)),
                Err(code) => {
                    self.transaction.failed = Some(KafkaError::MessageProduction(code));
                    return;
                }
            }
        }
    }
}
