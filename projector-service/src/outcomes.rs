//! Outcomes are kept for questions about a command id: they expire, and are bounded in bytes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use millrace_shared::{
    codec::{Codec, DecodeError, Foreign},
    domain::{AggregateId, AggregateInfo},
    envelope::{is_known_command_id, names},
    kafka::{
        bulk::Record,
        topics::{Names, Topic},
    },
    outcome::{Outcome, OutcomeRecord},
    problem,
    views::{Keys, Parked, meta},
};

use crate::{
    command::Command,
    store::Store,
    target::{At, Batch, Error, Target, Trimmed, Unreadable},
};

/// Outcomes are kept in one form so far.
const VERSION: u32 = 1;
/// What an outcome costs Redis beside its own bytes: two keys' and an expiry's bookkeeping.
const OVERHEAD_BYTES: usize = 150;
/// Outcomes dropped by one script call, so that none takes long.
const TRIM_AT_ONCE: usize = 1_000;
/// Outcomes that can't be read are counted under one key: there is no order among outcomes that others would wait for.
const UNREADABLE: &str = "";

/// One record of an outcomes topic.
#[derive(Debug)]
pub enum Incoming {
    /// A stored outcome.
    Original(Box<Outcome>),
    /// An answer to a repeat, or to a reused id: no stored outcome.
    Other,
    /// None that this release can read, and why.
    Unreadable(String),
}

/// The outcomes of an aggregate type.
pub struct Outcomes {
    domain: AggregateInfo,
    codec: Arc<Codec<OutcomeRecord>>,
    runtime: tokio::runtime::Handle,
    label: &'static str,
    topic: String,
    redis_prefix: String,
    window: Duration,
    max_bytes: u64,
}

impl Outcomes {
    /// Those of one deployment. They are kept for `window` and up to `max_bytes` per partition.
    pub fn new(
        domain: AggregateInfo,
        codec: Arc<Codec<OutcomeRecord>>,
        runtime: tokio::runtime::Handle,
        names: &Names,
        window: Duration,
        max_bytes: u64,
    ) -> Self {
        Self {
            domain,
            codec,
            runtime,
            // Once for each aggregate type and process.
            label: format!("{}-outcomes", domain.aggregate_type).leak(),
            topic: names.topic(domain.aggregate_type, Topic::Outcomes),
            redis_prefix: names.redis_prefix().to_owned(),
            window,
            max_bytes,
        }
    }
}

impl Target for Outcomes {
    type Item = Incoming;
    type Memory = Option<Parked>;

    fn label(&self) -> &'static str {
        self.label
    }

    fn topic(&self) -> &str {
        &self.topic
    }

    fn fold_version(&self) -> u32 {
        VERSION
    }

    fn keys(&self, partition: i32) -> Keys {
        Keys::outcomes(&self.redis_prefix, self.domain.aggregate_type, partition)
    }

    fn when_trimmed(&self) -> Trimmed {
        Trimmed::GoOn
    }

    fn read(&self, record: &Record<'_>) -> Result<Incoming, Unreadable> {
        if record.headers().any(|(name, _)| name == names::REPLAYED) {
            return Ok(Incoming::Other);
        }
        let Some(value) = record.value() else { return Ok(Incoming::Unreadable("the record has no value".into())) };
        // A decoder that panics on somebody's bytes must not take the service with it.
        let decoded = catch_unwind(AssertUnwindSafe(|| self.codec.decode(value, Foreign::Resolve, &self.runtime)));
        match decoded {
            Ok(Ok(OutcomeRecord::Outcome(outcome))) => Ok(sort(outcome)),
            Ok(Err(DecodeError::Unavailable(reason))) => Err(Unreadable(reason)),
            Ok(Err(error)) => Ok(Incoming::Unreadable(error.to_string())),
            Err(_) => Ok(Incoming::Unreadable("decoding it panicked".into())),
        }
    }

    fn remember(&self, keys: &Keys, store: &mut Store) -> Result<Option<Parked>, Error> {
        let parked = store.hash(&keys.parked())?;
        Ok(parked.iter().find_map(|(_, json)| serde_json::from_str(json).ok()))
    }

    fn fold(
        &self,
        keys: &Keys,
        memory: &mut Option<Parked>,
        items: Vec<At<Incoming>>,
        _: &mut Store,
    ) -> Result<Batch, Error> {
        Ok(fold(keys, (&self.domain, &self.redis_prefix), self.window, Timestamp::now(), memory, items))
    }

    fn written(&self, keys: &Keys, store: &mut Store) -> Result<(), Error> {
        // One call drops more than a batch adds, so what is kept shrinks to its bound.
        store.trim_outcomes(keys, self.max_bytes, TRIM_AT_ONCE)?;
        Ok(())
    }
}

fn sort(outcome: Outcome) -> Incoming {
    if let Err(reason) = AggregateId::new(&outcome.aggregate_id) {
        return Incoming::Unreadable(reason);
    }
    if !is_known_command_id(&outcome.command_id) {
        return Incoming::Unreadable("its command id is none".into());
    }
    if outcome.reason.as_deref() == Some(problem::KEY_REUSED.name) {
        return Incoming::Other;
    }
    Incoming::Original(Box::new(outcome))
}

fn fold(
    keys: &Keys,
    (domain, deployment): (&AggregateInfo, &str),
    window: Duration,
    now: Timestamp,
    memory: &mut Option<Parked>,
    items: Vec<At<Incoming>>,
) -> Batch {
    let mut batch = Batch::default();
    let mut order = Vec::new();
    let mut bytes = 0;
    for At { offset, item } in items {
        match item {
            Incoming::Other => batch.repeated += 1,
            Incoming::Unreadable(reason) => {
                batch.parked += 1;
                memory.get_or_insert(Parked { offset, count: 0, reason, discarded: false }).count += 1;
            }
            Incoming::Original(outcome) => {
                batch.applied += 1;
                let age = Duration::try_from(now.duration_since(outcome.time())).unwrap_or_default();
                let left = window.saturating_sub(age).as_millis();
                if left == 0 {
                    continue;
                }
                let key = keys.outcome(&outcome.aggregate_id, &outcome.command_id);
                let body = outcome.stored_body(domain, deployment).to_string();
                let size = key.len() * 2 + body.len() + OVERHEAD_BYTES;
                bytes += size;
                order.push([format!("{size} {key}").into_bytes()]);
                batch.commands.push(Command::new("SET", key).with(body).with("PX").with(left.to_string()));
            }
        }
    }
    if let Some(parked) = memory.as_ref().filter(|_| batch.parked > 0) {
        let json = serde_json::to_vec(parked).unwrap_or_default();
        batch.commands.push(Command::new("HSET", keys.parked()).with(UNREADABLE).with(json));
    }
    if !order.is_empty() {
        batch.commands.push(Command::new("HINCRBY", keys.meta()).with(meta::BYTES).with(bytes.to_string()));
        batch.commands.extend(Command::chunked(&Command::new("RPUSH", keys.order()), order));
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_shared::{
        domain::bank_account::BankAccount,
        outcome::{EventRef, Verdict},
    };

    const NOW: i64 = 1_000_000_000_000_000;

    fn outcome(command_id: &str, seconds_ago: i64) -> Outcome {
        Outcome {
            command_id: command_id.into(),
            aggregate_type: "bank-account".into(),
            aggregate_id: "acc-42".into(),
            outcome: Verdict::Accepted,
            version: 1,
            events: vec![EventRef { sequence: 1, r#type: "AccountOpened".into() }],
            reason: None,
            detail: None,
            fingerprint: vec![0; 16],
            at: NOW - seconds_ago * 1_000_000,
        }
    }

    fn batch(items: Vec<Incoming>) -> (Batch, Option<Parked>) {
        let items = items.into_iter().zip(10..).map(|(item, offset)| At { offset, item }).collect();
        let keys = Keys::outcomes("", "bank-account", 3);
        let now = Timestamp::from_microsecond(NOW).unwrap();
        let mut memory = None;
        let domain = AggregateInfo::of::<BankAccount>();
        let batch = fold(&keys, (&domain, ""), Duration::from_secs(60), now, &mut memory, items);
        (batch, memory)
    }

    fn words(command: &Command) -> Vec<String> {
        command.words().iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    #[test]
    fn an_outcome_is_kept_for_what_is_left_of_the_window_since_it_was_decided() {
        let (batch, _) = batch(vec![sort(outcome("c1", 20)), sort(outcome("c2", 61))]);
        assert_eq!(batch.applied, 2);
        let set = words(&batch.commands[0]);
        assert_eq!(set[1], "{bank-account.outcomes:3}:outcome:acc-42 c1");
        assert!(set[2].contains(r#""outcome":"accepted""#), "{}", set[2]);
        assert_eq!(set[3..], ["PX", "40000"]);
        assert_eq!(batch.commands.iter().filter(|command| words(command)[0] == "SET").count(), 1);
    }

    #[test]
    fn g13_what_is_no_outcome_is_counted_and_stops_nothing() {
        let reused = Outcome { reason: Some("idempotency-key-reused".into()), ..outcome("c1", 0) };
        let bad = Outcome { aggregate_id: "../x".into(), ..outcome("c1", 0) };
        let items = vec![sort(reused), sort(bad), Incoming::Unreadable("garbage".into()), sort(outcome("c2", 0))];
        let (batch, parked) = batch(items);
        assert_eq!((batch.applied, batch.repeated, batch.parked), (1, 1, 2));
        let parked = parked.unwrap();
        assert_eq!((parked.offset, parked.count), (11, 2));
    }
}
