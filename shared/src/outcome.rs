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
    /// Appends its Avro datum, as [`OutcomeRecord`]'s schema has it. Each command has an outcome: by apache-avro, which
    /// looks fields up by their names, this was a seventh of what a writer's thread did.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_bytes(out, self.command_id.as_bytes());
        write_bytes(out, self.aggregate_type.as_bytes());
        write_bytes(out, self.aggregate_id.as_bytes());
        write_long(out, self.outcome as i64);
        write_long(out, self.version);
        // One block of all, unless there are none, and the end of blocks.
        if !self.events.is_empty() {
            write_long(out, self.events.len() as i64);
            for event in &self.events {
                write_long(out, event.sequence);
                write_bytes(out, event.r#type.as_bytes());
            }
        }
        write_long(out, 0);
        for optional in [&self.reason, &self.detail] {
            match optional {
                None => write_long(out, 0),
                Some(text) => {
                    write_long(out, 1);
                    write_bytes(out, text.as_bytes());
                }
            }
        }
        write_bytes(out, &self.fingerprint);
        write_long(out, self.at);
    }

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

/// Avro's int and long: zigzag, then seven bits a byte, the lowest first.
fn write_long(out: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while rest > 0x7f {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Avro's bytes and string.
fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;

    /// It is what apache-avro writes, and reads.
    #[test]
    fn its_datum_is_as_the_schema_says() {
        let codec = Codec::<OutcomeRecord>::datums().unwrap();
        let accepted = Outcome {
            command_id: "c-1".into(),
            aggregate_type: "bank-account".into(),
            aggregate_id: "é".repeat(70),
            outcome: Verdict::Accepted,
            version: 2,
            events: ["MoneyDeposited", ""].map(|name| EventRef { sequence: 63, r#type: name.into() }).into(),
            reason: None,
            detail: None,
            fingerprint: (0..=255).collect(),
            at: 1_795_000_000_000_000,
        };
        let rejected = Outcome {
            outcome: Verdict::Rejected,
            events: Vec::new(),
            reason: Some("insufficient-funds".into()),
            detail: Some("{}".into()),
            fingerprint: Vec::new(),
            ..accepted.clone()
        };
        let edges = [0, -1, 1, 63, 64, -64, -65, 8191, 8192, i64::MAX, i64::MIN];
        let at_edges = edges.map(|number| Outcome { version: number, at: number, ..rejected.clone() });
        for outcome in [accepted, rejected].into_iter().chain(at_edges) {
            let mut datum = Vec::new();
            outcome.write(&mut datum);
            let mut theirs = Vec::new();
            codec.encode_datum(&OutcomeRecord::Outcome(outcome.clone()), &mut theirs).unwrap();
            assert_eq!(datum, theirs);
            assert_eq!(codec.decode_datum(0, 0, &datum), Some(OutcomeRecord::Outcome(outcome)));
        }
    }
}
