//! What clients were told, and whether the log agrees.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::{
    Deployment,
    account::{Event, fold},
    http::{Answer, Request},
    kafka::Record,
    services::Service,
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
    /// Its body.
    pub body: Value,
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

/// The log of a deployment, by aggregate and command.
#[derive(Debug, Default)]
pub struct Log {
    /// Events by aggregate.
    pub events: BTreeMap<String, Vec<Event>>,
    /// Original outcomes by aggregate and command id.
    pub originals: HashMap<(String, String), (Record, Value)>,
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
        // Events first: an outcome is there as soon as its events are.
        for event in deployment.all_events() {
            let id = String::from_utf8(event.record.key.clone().expect("events have keys")).expect("ids are text");
            log.events.entry(id).or_default().push(event);
        }
        let text = |outcome: &Value, name: &str| outcome[name].as_str().expect("text").to_owned();
        for (record, outcome) in deployment.outcomes() {
            if record.header("millrace_replayed").is_some() || outcome["reason"] == "idempotency-key-reused" {
                continue;
            }
            let command = (text(&outcome, "aggregate_id"), text(&outcome, "command_id"));
            if let Some((first, _)) = log.originals.insert(command.clone(), (record.clone(), outcome)) {
                panic!("{command:?} was decided twice: {first:?} and {record:?}");
            }
        }
        for (id, events) in &log.events {
            fold(id, events);
            for event in events {
                let (_, outcome) = log.originals.get(&(id.clone(), event.command_id.clone())).unwrap_or_else(|| {
                    panic!("no outcome tells of {event:?}");
                });
                assert!(sequences(outcome).contains(&event.sequence), "{outcome} does not tell of {event:?}");
            }
        }
        for ((id, key), (_, outcome)) in &log.originals {
            let of_command = log.events.get(id).into_iter().flatten().filter(|event| &event.command_id == key);
            let in_log: Vec<u64> = of_command.map(|event| event.sequence).collect();
            assert_eq!(in_log, sequences(outcome), "events of {key} of {id}");
        }
        log
    }

    /// Whether an answer is what the log says; an answer without an outcome contradicts nothing.
    #[track_caller]
    pub fn agrees(&self, told: &Told) {
        let Told { id, key, answer, .. } = told;
        let original = || {
            let (_, outcome) = self.originals.get(&(id.clone(), key.clone())).unwrap_or_else(|| {
                panic!("the log knows nothing of {key} of {id}, which was answered: {answer:?}");
            });
            outcome
        };
        match answer.status {
            200 | 201 => {
                let (body, outcome) = (answer.json(), original());
                assert_eq!(outcome["outcome"], "accepted", "{answer:?}");
                assert_eq!(body["aggregate"]["version"], outcome["version"], "{answer:?}");
                assert_eq!(body["events"], outcome["events"], "{answer:?}");
                assert!(!sequences(outcome).is_empty(), "{outcome}");
            }
            412 | 422 => {
                let (body, outcome) = (answer.json(), original());
                assert_eq!(outcome["outcome"], "rejected", "{answer:?}");
                let reason = body["type"].as_str().and_then(|kind| kind.strip_prefix("/problems/"));
                assert_eq!(outcome["reason"].as_str(), reason, "{answer:?}");
                assert_eq!(body["aggregate"]["version"], outcome["version"], "{answer:?}");
            }
            429 | 503 | 504 => {}
            _ => panic!("{key} of {id}: {answer:?}"),
        }
    }
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
