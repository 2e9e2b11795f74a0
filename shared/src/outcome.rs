//! The outcome of a command: the record on `<type>.outcomes`, and the JSON it is answered as.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{domain::AggregateInfo, problem::Problem, records, token::Token};

records! {
    /// The one record of the outcome topics.
    pub enum OutcomeRecord in "millrace" {
        /// The answer to a command.
        Outcome { Outcome = "schemas/Outcome.v1.avsc" },
    }
}

/// Reason of an outcome that decides nothing yet: the command waits until it is due. It is never the stored answer.
pub const SCHEDULED: &str = "scheduled";

/// Reason of an outcome that decides nothing yet: the command waits until another aggregate has answered, such as the
/// reservation of an e-mail address. It is never the stored answer, and nobody who waits is answered with it.
pub const PENDING: &str = "pending";

/// Whether a command was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was; its events are in the log.
    Accepted,
    /// It was not, and had no effect.
    Rejected,
}

/// Names an event of an accepted command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRef {
    /// Sequence within the aggregate.
    pub sequence: i64,
    /// Record name, e.g. `MoneyDeposited`.
    pub r#type: String,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The command's id.
    pub command_id: String,
    /// Aggregate type, e.g. `bank-account`.
    pub aggregate_type: String,
    /// Aggregate id.
    pub aggregate_id: String,
    /// Accepted or rejected.
    pub outcome: Verdict,
    /// The aggregate's version after the command; when rejected, the version it was judged at.
    pub version: i64,
    /// What an accepted command caused.
    pub events: Vec<EventRef>,
    /// Name of the problem when rejected.
    pub reason: Option<String>,
    /// The problem's figures, a JSON object, when rejected.
    pub detail: Option<String>,
    /// Fingerprint of the command that is answered.
    #[serde(with = "apache_avro::serde::bytes")]
    pub fingerprint: Vec<u8>,
    /// When it was decided, in microseconds since 1970.
    pub at: i64,
}

impl Outcome {
    /// The token for `after=`: the version that a reader must have reached to see what the command saw or did, in
    /// this deployment.
    pub fn token(&self, deployment: &str) -> String {
        Token {
            aggregate_type: self.aggregate_type.clone(),
            aggregate_id: self.aggregate_id.clone(),
            sequence: self.version.unsigned_abs(),
        }
        .encode(deployment)
    }

    /// Whether it brought its aggregate into being.
    pub fn created(&self) -> bool {
        self.events.first().is_some_and(|event| event.sequence == 1)
    }

    /// Whether it only says that the command waits until it is due.
    pub fn is_scheduled(&self) -> bool {
        self.reason.as_deref() == Some(SCHEDULED)
    }

    /// Whether it only says that the command waits for another aggregate's answer.
    pub fn is_pending(&self) -> bool {
        self.reason.as_deref() == Some(PENDING)
    }

    /// What a command that waits is answered with.
    pub fn waiting_body(&self) -> Value {
        let figures = self.detail.as_deref().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok());
        let mut body = Map::from_iter([
            ("command_id".to_owned(), self.command_id.clone().into()),
            ("outcome".to_owned(), self.reason.clone().into()),
        ]);
        body.extend(figures.unwrap_or_default());
        Value::Object(body)
    }

    /// When it was decided.
    pub fn time(&self) -> Timestamp {
        Timestamp::from_microsecond(self.at).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The body that an accepted command is answered with.
    pub fn accepted_body(&self, deployment: &str) -> Value {
        json!({
            "command_id": self.command_id,
            "outcome": "accepted",
            "aggregate": self.aggregate(),
            "events": self.events,
            "token": self.token(deployment),
        })
    }

    /// The problem that a rejected command is answered with.
    pub fn problem(&self, domain: &AggregateInfo, deployment: &str) -> Problem {
        let reason = self.reason.as_deref().unwrap_or("internal");
        let figures = self.detail.as_deref().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok());
        let problem = Problem::of_reason(domain, reason, figures.unwrap_or_default())
            .with("command_id", self.command_id.clone())
            .with("aggregate", self.aggregate());
        // Version 0 means there is nothing to wait for.
        if self.version > 0 { problem.with("token", self.token(deployment)) } else { problem }
    }

    /// The stored outcome as queries give it: the body the command was answered with, whatever it was.
    pub fn stored_body(&self, domain: &AggregateInfo, deployment: &str) -> Value {
        match self.outcome {
            Verdict::Accepted => self.accepted_body(deployment),
            Verdict::Rejected if self.is_scheduled() || self.is_pending() => self.waiting_body(),
            Verdict::Rejected => {
                let mut body = self.problem(domain, deployment).body();
                body.insert("outcome".into(), "rejected".into());
                Value::Object(body)
            }
        }
    }

    fn aggregate(&self) -> Value {
        json!({"type": self.aggregate_type, "id": self.aggregate_id, "version": self.version})
    }
}
