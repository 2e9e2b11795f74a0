//! Which errors of a transaction lead to what. Everything that is not listed is fatal.

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

/// What becomes of a batch whose transaction failed.
#[derive(Debug)]
pub enum Failure {
    /// It was aborted, cleanly: its effects are forgotten, and it runs again.
    Abort(String),
    /// It may or may not be in the log: producer and states are discarded, and the log is asked.
    Fatal(String),
}

/// What an error of a transactional call allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same call may be made again.
    Retry,
    /// The transaction has to be aborted, and can be.
    Abort,
    /// The producer is done for, or nobody knows.
    Fatal,
}

/// Judges an error.
///
/// librdkafka says itself of a transactional call's error whether it may be retried or the transaction aborted; of the
/// rest only what the group's fence answers is harmless. An unclassified error is fatal: a delayed EndTxn could hit
/// the next transaction, as librdkafka lacks KIP-890.
pub fn classify(error: &KafkaError) -> Verdict {
    match error {
        KafkaError::Transaction(cause) if cause.is_fatal() => Verdict::Fatal,
        KafkaError::Transaction(cause) if cause.txn_requires_abort() => Verdict::Abort,
        KafkaError::Transaction(cause) if cause.is_retriable() => Verdict::Retry,
        KafkaError::Transaction(cause) => of_code(cause.code()),
        KafkaError::MessageProduction(code) | KafkaError::Flush(code) => of_code(*code),
        _ => Verdict::Fatal,
    }
}

fn of_code(code: RDKafkaErrorCode) -> Verdict {
    match code {
        RDKafkaErrorCode::QueueFull => Verdict::Retry,
        RDKafkaErrorCode::IllegalGeneration
        | RDKafkaErrorCode::UnknownMemberId
        | RDKafkaErrorCode::FencedInstanceId
        | RDKafkaErrorCode::RebalanceInProgress
        | RDKafkaErrorCode::MessageSizeTooLarge
        // Producing while librdkafka already knows that the transaction has to be aborted.
        | RDKafkaErrorCode::State => Verdict::Abort,
        _ => Verdict::Fatal,
    }
}
