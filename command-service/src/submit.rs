//! Putting a command into its topic, and waiting for its outcome.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use millrace_shared::{
    domain::AggregateId,
    envelope::CommandHeaders,
    kafka::{Logged, client_config, partition_of, topics::Topic},
};
use rdkafka::{
    error::KafkaError,
    producer::{FutureProducer, FutureRecord, Producer},
    types::RDKafkaErrorCode,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    follower::Follower,
    grant::Slot,
    types::{CommandType, Encoded},
    waiters::{Answer, Awaited, Waiters},
};

/// Longest wait for the acknowledgement of a command's record.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(10);

/// When the service ends, those who wait get their outcome for so long, and then hear that it is not known: before their
/// connections are closed (5 s).
const ENDING_GRACE: Duration = Duration::from_secs(4);

/// When the service ends, those who wait for Kafka wait for so long: less than [`ENDING_GRACE`], so that they hear what
/// is missing.
const KAFKA_GRACE: Duration = Duration::from_secs(3);

/// Submits commands.
pub struct Submitter {
    producer: FutureProducer<Logged>,
    types: Arc<[Arc<dyn CommandType>]>,
    waiters: Waiters,
    follower: Follower,
    partitions: i32,
    outcome_timeout: Duration,
    in_flight: Semaphore,
    shutdown: CancellationToken,
    /// When somebody who waited saw it.
    ending_since: OnceLock<Instant>,
}

/// A command to be submitted.
pub struct Submission {
    /// Index of its type.
    pub kind: usize,
    /// Its aggregate.
    pub aggregate_id: AggregateId,
    /// Its id.
    pub command_id: String,
    /// What travels in headers beside the id.
    pub headers: CommandHeaders,
    /// The command.
    pub encoded: Encoded,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too much is in flight.
    #[error("as many commands are in flight as may be")]
    Overloaded,
    /// As many answers are remembered as may be.
    #[error("as many answers are remembered as may be; commands of this partition wait until older ones expire")]
    Full,
    /// It is still being read what the partition's states are.
    #[error("the command's partition is still being restored here; nothing was done")]
    Restoring,
    /// The command is not in its topic: nothing happened, nothing will.
    #[error("the command can't be put into its topic: {0}")]
    Unavailable(String),
    /// The command may or may not be in its topic, or is there and not decided yet.
    #[error("{0}")]
    Unknown(String),
}

/// An answer and whether it is one to an earlier command.
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// Whether the outcome was decided for an earlier command with the same id.
    pub replayed: bool,
}

impl Submitter {
    /// One for the whole service.
    #[allow(clippy::too_many_arguments, reason = "made in one place, from parts that are made there too")]
    pub fn new(
        bootstrap: &str,
        types: Arc<[Arc<dyn CommandType>]>,
        waiters: Waiters,
        follower: Follower,
        partitions: i32,
        outcome_timeout: Duration,
        max_in_flight: usize,
        shutdown: CancellationToken,
    ) -> Result<Self, KafkaError> {
        let producer = client_config(bootstrap, "millrace-submit")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.timeout.ms", PRODUCE_TIMEOUT.as_millis().to_string())
            .set("queue.buffering.max.messages", (max_in_flight.max(1_000) * 2).to_string())
            .create_with_context(Logged)?;
        let in_flight = Semaphore::new(max_in_flight);
        let ending_since = OnceLock::new();
        Ok(Self { producer, types, waiters, follower, partitions, outcome_timeout, in_flight, shutdown, ending_since })
    }

    /// Puts a command into its topic and waits until it is there for good.
    pub async fn enqueue(&self, submission: &Submission) -> Result<(), Error> {
        let _permit = self.permit()?;
        self.produce(submission).await.map(|_| ())
    }

    /// Puts a command into its topic and waits for its outcome.
    pub async fn submit(&self, submission: &Submission) -> Result<Answered, Error> {
        let _permit = self.permit()?;
        let slot = self.slot(submission);
        let deadline = Instant::now() + self.outcome_timeout;
        tokio::select! {
            waited = tokio::time::timeout_at(deadline, self.waiters.until_restored(slot)) => {
                waited.map_err(|_| Error::Restoring)?;
            }
            () = self.ending(KAFKA_GRACE) => return Err(Error::Unavailable("the service is ending".to_owned())),
        }
        if self.waiters.is_full(slot) {
            return Err(Error::Full);
        }
        let (mut waiting, served_here) = self.waiters.register(Awaited {
            slot,
            aggregate_id: submission.aggregate_id.as_str().to_owned(),
            command_id: submission.command_id.clone(),
            fingerprint: submission.encoded.fingerprint,
        });
        if !served_here {
            // Half of the time: the rest is for the command.
            let until = Instant::now() + (deadline - Instant::now()) / 2;
            let follow = tokio::select! {
                follow = tokio::time::timeout_at(until, self.follower.follow(slot)) => follow,
                () = self.ending(KAFKA_GRACE) => Ok(Err("the service is ending".to_owned())),
            };
            follow
                .unwrap_or_else(|_| Err("Kafka does not answer".to_owned()))
                .map_err(|reason| Error::Unavailable(format!("its outcome topic can't be followed: {reason}")))?;
        }
        let produced = tokio::time::timeout_at(deadline, self.produce(submission));
        let mut own_offset = None;
        let answer = async {
            let offset = match produced.await {
                Ok(result) => result?,
                Err(_) => return Err(Error::Unknown("the command's record is not acknowledged yet".to_owned())),
            };
            own_offset = Some(offset);
            match tokio::time::timeout_at(deadline, waiting.answer()).await {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => Err(Error::Unknown("the service is ending".to_owned())),
                Err(_) => Err(Error::Unknown(format!("no outcome within {:?}", self.outcome_timeout))),
            }
        };
        let answer = tokio::select! {
            answer = answer => answer?,
            () = self.ending(ENDING_GRACE) => return Err(Error::Unknown("the service is ending".to_owned())),
        };
        // A duplicate that the broker dropped is acknowledged without an offset.
        let own_offset = own_offset.filter(|offset| *offset >= 0);
        let differs = answer.command_offset.zip(own_offset).is_some_and(|(answered, own)| answered != own);
        let replayed = answer.replayed || differs;
        Ok(Answered { answer, replayed })
    }

    /// The service has been ending for so long.
    async fn ending(&self, grace: Duration) {
        self.shutdown.cancelled().await;
        let since = *self.ending_since.get_or_init(Instant::now);
        tokio::time::sleep_until(since + grace).await;
    }

    fn permit(&self) -> Result<SemaphorePermit<'_>, Error> {
        let permit = self.in_flight.try_acquire().map_err(|_| Error::Overloaded);
        metrics::gauge!("millrace_http_commands_free").set(self.in_flight.available_permits() as f64);
        permit
    }

    fn slot(&self, submission: &Submission) -> Slot {
        let partition = partition_of(submission.aggregate_id.as_str().as_bytes(), self.partitions);
        Slot { kind: submission.kind, partition }
    }

    /// Returns the record's offset.
    async fn produce(&self, submission: &Submission) -> Result<i64, Error> {
        let headers = CommandHeaders { id: Some(submission.command_id.clone()), ..submission.headers.clone() };
        let slot = self.slot(submission);
        let mut record = FutureRecord::<_, [u8]>::to(self.types[slot.kind].topic(Topic::Commands))
            .partition(slot.partition)
            .key(submission.aggregate_id.as_str())
            .headers(headers.write());
        if let Some(value) = &submission.encoded.value {
            record = record.payload(value);
        }
        let sent = self.producer.send_result(record).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => Error::Overloaded,
            error => {
                if let Some((code, reason)) = self.producer.client().fatal_error() {
                    // It would answer so for ever: end, and be started again.
                    tracing::error!(%code, reason, "the producer of HTTP commands can't go on");
                    self.shutdown.cancel();
                }
                Error::Unavailable(error.to_string())
            }
        })?;
        // librdkafka would have to tell whether it ever sent the record; its error for a purged one is the same either way.
        let delivered = tokio::select! {
            delivered = sent => delivered,
            () = self.ending(KAFKA_GRACE) => {
                return Err(Error::Unknown("the service is ending; the command is not acknowledged yet".to_owned()));
            }
        };
        match delivered {
            Ok(Ok(delivery)) => Ok(delivery.offset),
            Ok(Err((error, _))) if is_surely_not_written(&error) => Err(Error::Unavailable(error.to_string())),
            // A record that timed out, for one, may have been written.
            Ok(Err((error, _))) => Err(Error::Unknown(format!("the command is not acknowledged: {error}"))),
            Err(_) => Err(Error::Unknown("the service is ending".to_owned())),
        }
    }
}

/// Refusals by a broker, or by the client before it has sent anything.
fn is_surely_not_written(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let KafkaError::MessageProduction(code) = error else { return false };
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::InvalidTimestamp
            | Code::NotEnoughReplicas
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TypeOf;
    use millrace_shared::{codec::Codec, domain::bank_account::BankAccount, registry::Registry};
    use tokio::runtime::Handle;

    /// Nobody listens there.
    const NOWHERE: &str = "127.0.0.1:1";

    #[tokio::test]
    async fn g15_whoever_waits_for_kafka_is_answered_when_the_service_ends() {
        let types: Arc<[Arc<dyn CommandType>]> = Arc::new([Arc::new(TypeOf::<BankAccount>::unregistered())]);
        let (waiters, shutdown) = (Waiters::default(), CancellationToken::new());
        let outcomes = Codec::reading(Registry::new("http://127.0.0.1:1").unwrap()).unwrap();
        let (follower, _followed) =
            crate::follower::follower(NOWHERE.into(), types.clone(), outcomes, waiters.clone(), Handle::current());
        let submitter =
            Submitter::new(NOWHERE, types, waiters.clone(), follower, 1, Duration::from_secs(60), 10, shutdown.clone());
        let submitter = submitter.unwrap();
        let submission = Submission {
            kind: 0,
            aggregate_id: AggregateId::new("a").unwrap(),
            command_id: "c".into(),
            headers: CommandHeaders::default(),
            encoded: Encoded { value: Some(vec![1]), fingerprint: [0; 16] },
        };
        let both = async { tokio::join!(submitter.enqueue(&submission), submitter.submit(&submission)) };
        tokio::pin!(both);
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut both).await.is_err(), "it waits for Kafka");
        shutdown.cancel();
        let (enqueued, submitted) = tokio::time::timeout(ENDING_GRACE, both).await.expect("an answer in time");
        assert!(matches!(enqueued, Err(Error::Unknown(_))), "{enqueued:?}");
        assert!(matches!(submitted, Err(Error::Unavailable(_))), "it was not produced yet");
        assert!(!waiters.any());
    }
}
