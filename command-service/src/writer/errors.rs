//! Which errors of a transaction lead to what. Everything that is not listed is fatal.

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

/// Why a batch is not in the log, or why nobody knows, and so what becomes of it.
#[derive(Debug)]
pub enum Failure {
    /// It was aborted, cleanly: its effects are forgotten, and it runs again.
    Abort(String),
    /// It was aborted: the group's generation is not ours any more. It waits until the group has called back.
    Refused(String),
    /// It was aborted: these partitions (topic, partition) can't be written at the moment. They wait, others go on.
    Unavailable(Vec<(String, i32)>, String),
    /// It was aborted: one of its records will never be written, for a cause of its own.
    Poison(String),
    /// It may or may not be in the log: producer and states are discarded, and the log is asked.
    Unknown(String),
}

/// What an error of a transactional call allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same call may be made again.
    Retry,
    /// The transaction has to be aborted, and can be.
    Abort,
    /// The same, because the consumer group has moved on.
    Refused,
    /// The producer is done for.
    Fatal,
    /// Nobody knows what the broker did.
    Unknown,
}

/// Judges the error of a transactional call.
///
/// librdkafka says itself whether a call may be repeated or the transaction aborted. Of the rest only what is listed is
/// harmless: a delayed EndTxn could hit the next transaction, as librdkafka lacks KIP-890. Fatal and unknown are
/// treated alike, since also a fenced producer may have committed before it was.
pub fn classify(error: &KafkaError) -> Verdict {
    match error {
        KafkaError::Transaction(cause) if cause.is_fatal() => Verdict::Fatal,
        KafkaError::Transaction(cause) if is_fence(cause.code()) => Verdict::Refused,
        KafkaError::Transaction(cause) if cause.txn_requires_abort() => Verdict::Abort,
        KafkaError::Transaction(cause) if cause.is_retriable() => Verdict::Retry,
        KafkaError::Transaction(cause) => of_code(cause.code()),
        KafkaError::MessageProduction(code) | KafkaError::Flush(code) => of_code(*code),
        _ => Verdict::Fatal,
    }
}

fn is_fence(code: Code) -> bool {
    matches!(code, Code::IllegalGeneration | Code::UnknownMemberId | Code::FencedInstanceId | Code::RebalanceInProgress)
}

fn of_code(code: Code) -> Verdict {
    match code {
        Code::QueueFull => Verdict::Retry,
        // Producing a record too large, or while librdkafka already knows that the transaction has to be aborted.
        Code::MessageSizeTooLarge | Code::State => Verdict::Abort,
        Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerTransportFailure | Code::MessageTimedOut => {
            Verdict::Unknown
        }
        code if is_fence(code) => Verdict::Refused,
        _ => Verdict::Fatal,
    }
}

/// Why a record was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It will never be: it is to blame itself.
    Record,
    /// Its partition can't be written at the moment.
    Partition,
    /// Another record, the abort, or the producer.
    Elsewhere,
}

/// Judges the error of a delivery.
pub fn cause(code: Code) -> Cause {
    match code {
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::MessageBatchTooLarge
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::PolicyViolation => Cause::Record,
        Code::MessageTimedOut
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::KafkaStorageError
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::TopicAuthorizationFailed => Cause::Partition,
        _ => Cause::Elsewhere,
    }
}
