//! What clients were told, and whether the log agrees.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Deployment,
    account::{Event, Folded},
    http::{Answer, Request},
    kafka::{self, Record},
    services::{Service, decode_outcome},
    wait::eventually,
};

/// A command that a client was told about.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its aggregate.
    pub id: String,
    /// Its command id.
    pub key: String,
    /// Path below `/v1/bank-accounts/`, to ask again.
    pub path: String,
    /// Its body, which many have in common.
    pub body: Arc<Value>,
    /// The definite answer.
    pub answer: Answer,
}

impl Told {
    /// The same request again.
    pub fn request(&self, service: &Service) -> Request {
        let url = format!("{}/v1/bank-accounts/{}", service.url(), self.path);
        crate::http::post(&url).json(&self.body).key(&self.key)
    }
}

/// The log of a deployment, by aggregate and command: of each record no more than is compared, since a long run writes
/// hundreds of thousands (kept whole they took 7 kB a command).
#[derive(Debug, Default)]
pub struct Log {
    /// Aggregates with events, as their events make them.
    pub accounts: BTreeMap<String, Folded>,
    /// Original outcomes by aggregate and command id.
    pub originals: HashMap<(String, String), Original>,
}

/// An original outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Original {
    /// `accepted` or `rejected`.
    pub outcome: String,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// The aggregate's version after it.
    pub version: u64,
    /// When it was decided.
    pub at: Timestamp,
    /// Its events as JSON.
    events: String,
    /// Their sequences.
    sequences: Vec<u64>,
    /// Where the record lies.
    place: (i32, i64),
}

impl Original {
    fn new(record: &Record, outcome: &Value) -> Self {
        let at = outcome["at"].as_i64().expect("microseconds");
        Self {
            outcome: text(outcome, "outcome"),
            reason: outcome["reason"].as_str().map(str::to_owned),
            version: outcome["version"].as_u64().expect("a number"),
            at: Timestamp::from_microsecond(at).expect("a time"),
            events: outcome["events"].to_string(),
            sequences: sequences(outcome),
            place: (record.partition, record.offset),
        }
    }
}

impl Log {
    /// Reads it.
    ///
    /// # Panics
    /// When it is not sound: a gap, a repeat, a broken rule, two original outcomes of one command, events that no
    /// outcome or more than one tells of.
    #[track_caller]
    pub fn read(deployment: &Deployment) -> Self {
        let mut log = Self::default();
        let mut in_log: HashMap<(String, String), Vec<u64>> = HashMap::new();
        // Events first: an outcome is there as soon as its events are.
        kafka::for_each(&deployment.topic("events"), None, |record| {
            let event = Event::decode(record);
            let id = String::from_utf8(event.record.key.clone().expect("events have keys")).expect("ids are text");
            log.accounts.entry(id.clone()).or_default().apply(&id, &event);
            in_log.entry((id, event.command_id)).or_default().push(event.sequence);
        });
        kafka::for_each(&deployment.topic("outcomes"), None, |record| {
            let outcome = decode_outcome(&record);
            if record.header("millrace_replayed").is_some() || outcome["reason"] == "idempotency-key-reused" {
                return;
            }
            let command = (text(&outcome, "aggregate_id"), text(&outcome, "command_id"));
            let original = Original::new(&record, &outcome);
            if let Some(first) = log.originals.insert(command.clone(), original) {
                panic!("{command:?} was decided twice: {first:?} and {record:?}");
            }
        });
        for (command, sequences) in &in_log {
            let original = log.originals.get(command);
            let original = original.unwrap_or_else(|| panic!("no outcome tells of {sequences:?} of {command:?}"));
            assert_eq!(&original.sequences, sequences, "events of {command:?}, and what {original:?} tells of");
        }
        for (command, original) in &log.originals {
            let missing = !original.sequences.is_empty() && !in_log.contains_key(command);
            assert!(!missing, "no events of {command:?}: {original:?}");
        }
        log
    }

    /// Whether an answer is what the log says; an answer without an outcome contradicts nothing.
    #[track_caller]
    pub fn agrees(&self, told: &Told) {
        let Told { id, key, answer, .. } = told;
        let original = || {
            self.originals.get(&(id.clone(), key.clone())).unwrap_or_else(|| {
                panic!("the log knows nothing of {key} of {id}, which was answered: {answer:?}");
            })
        };
        match answer.status {
            200 | 201 => {
                let (body, outcome) = (answer.json(), original());
                assert_eq!(outcome.outcome, "accepted", "{answer:?}");
                assert_eq!(body["aggregate"]["version"], outcome.version, "{answer:?}");
                let events: Value = serde_json::from_str(&outcome.events).expect("it was JSON");
                assert_eq!(body["events"], events, "{answer:?}");
                assert!(!outcome.sequences.is_empty(), "{outcome:?}");
            }
            412 | 422 => {
                let (body, outcome) = (answer.json(), original());
                assert_eq!(outcome.outcome, "rejected", "{answer:?}");
                let reason = body["type"].as_str().and_then(|kind| kind.strip_prefix("/problems/"));
                assert_eq!(outcome.reason.as_deref(), reason, "{answer:?}");
                assert_eq!(body["aggregate"]["version"], outcome.version, "{answer:?}");
            }
            429 | 503 | 504 => {}
            _ => panic!("{key} of {id}: {answer:?}"),
        }
    }
}

fn text(outcome: &Value, name: &str) -> String {
    outcome[name].as_str().expect("text").to_owned()
}

fn sequences(outcome: &Value) -> Vec<u64> {
    let events = outcome["events"].as_array().expect("a list of events");
    events.iter().map(|event| event["sequence"].as_u64().expect("a number")).collect()
}

/// The common end of fault tests: the log is sound, it holds what clients were told, and whoever asks again is told the
/// same. At most `repeats` commands, spread evenly, are asked again.
#[track_caller]
pub fn check(deployment: &Deployment, told: &[Told], service: &Service, repeats: usize) -> Log {
    deployment.check_log();
    compare(deployment, told, service, repeats)
}

/// The same without the log check.
#[track_caller]
pub fn compare(deployment: &Deployment, told: &[Told], service: &Service, repeats: usize) -> Log {
    let log = Log::read(deployment);
    for told in told {
        log.agrees(told);
    }
    let definite: Vec<&Told> = told.iter().filter(|told| told.answer.status < 429).collect();
    for told in definite.iter().step_by(definite.len().div_ceil(repeats.max(1)).max(1)) {
        let again =
            eventually(&format!("answer to a repeat of {}", told.key), || match told.request(service).try_send()? {
                answer if answer.status >= 500 || answer.status == 429 => Err(format!("{answer:?}")),
                answer => Ok(answer),
            });
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?} after {told:?}");
        assert_eq!((again.status, again.json()), (told.answer.status, told.answer.json()), "{again:?} after {told:?}");
    }
    log
}
