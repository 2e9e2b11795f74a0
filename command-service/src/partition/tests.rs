//! What a partition decides, without Kafka.

mod asking;
mod local;
mod personal;
mod scheduling;
mod snapshots;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use millrace_shared::{
    codec::Foreign,
    domain::{
        bank_account::BankAccount, email_reservation::EmailReservation, transfer::MoneyTransfer, user::UserAccount,
    },
    envelope::names,
    kafka::{partition_of, topics::Topic},
    outcome::{Outcome, OutcomeRecord, Verdict},
};
use tokio::runtime::Runtime;

use super::{Decider, Partition, Room, Settings, Stored};
use crate::{
    grant::Slot,
    record::{CommandRecord, OutRecord, Sink},
    types::{CommandType, TypeOf},
    waiters::{Awaited, Waiters},
};

const PARTITIONS: i32 = 12;

/// A record that was sent.
#[derive(Clone, Debug, PartialEq)]
struct Sent {
    /// Index of its type.
    kind: usize,
    topic: Topic,
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    timestamp_ms: i64,
}

impl Sent {
    fn restore(&self, partition: &mut Partition<BankAccount>, offset: i64, now: Timestamp) {
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let stored = Stored { offset, key: self.key.as_deref(), value: self.value.as_deref(), headers };
        partition.restore(self.topic, &stored, now).unwrap();
    }

    fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        Some(String::from_utf8(value.clone()?).unwrap())
    }
}

#[derive(Default)]
struct Collect(Vec<Sent>);

impl Sink for Collect {
    fn send(&mut self, record: OutRecord<'_>) {
        self.send_to(0, record);
    }

    fn send_to(&mut self, kind: usize, record: OutRecord<'_>) {
        let headers = record.headers.iter();
        let headers =
            headers.map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.map(<[u8]>::to_vec)));
        self.0.push(Sent {
            kind,
            topic: record.topic,
            partition: record.partition,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
            timestamp_ms: record.timestamp_ms,
        });
    }
}

/// A partition at work, with an offset that counts on.
struct Bench {
    kind: Arc<TypeOf<BankAccount>>,
    partition: Partition<BankAccount>,
    waiters: Waiters,
    runtime: Runtime,
    offset: i64,
    now: Timestamp,
}

const ID: &str = "acc-42";

impl Bench {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (kind, waiters) = (Arc::new(TypeOf::<BankAccount>::unregistered()), Waiters::default());
        let partition = Partition::new(kind.clone(), settings(&runtime, &waiters));
        Self { kind, partition, waiters, runtime, offset: 0, now: "2026-01-01T00:00:00Z".parse().unwrap() }
    }

    fn value(&self, command: &str, body: &str) -> Vec<u8> {
        self.kind.encode(command, body.as_bytes()).unwrap().value.unwrap()
    }

    fn record(&mut self, value: Option<&[u8]>, headers: &[(&str, &str)]) -> CommandRecord {
        self.offset += 1;
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        CommandRecord::new(self.offset - 1, Some(self.now.as_millisecond()), Some(ID.as_bytes()), value, headers)
    }

    fn decide(&mut self, record: &CommandRecord) -> Vec<Sent> {
        let mut sink = Collect::default();
        self.partition.decide(record, self.now, &mut sink).unwrap();
        sink.0
    }

    /// One command in a batch of its own.
    fn send(&mut self, command: &str, body: &str, headers: &[(&str, &str)]) -> Vec<Sent> {
        let value = self.value(command, body);
        let record = self.record(Some(&value), headers);
        let sent = self.decide(&record);
        self.partition.commit(self.now);
        sent
    }

    fn outcome(&self, sent: &Sent) -> Outcome {
        let value = sent.value.as_deref().unwrap();
        let OutcomeRecord::Outcome(outcome) =
            self.kind.outcomes.decode(value, Foreign::Refuse, self.runtime.handle()).unwrap();
        outcome
    }

    fn opened() -> Self {
        let mut bench = Self::new();
        bench.send("open", OPEN, &[]);
        bench.send("deposit", r#"{"amount_minor": 10000}"#, &[]);
        bench
    }
}

const OPEN: &str = r#"{"owner": "Ada", "currency": "EUR"}"#;

fn types() -> Arc<[Arc<dyn CommandType>]> {
    Arc::new([
        Arc::new(TypeOf::<BankAccount>::unregistered()) as Arc<dyn CommandType>,
        Arc::new(TypeOf::<MoneyTransfer>::unregistered()),
        Arc::new(TypeOf::<UserAccount>::unregistered()),
        Arc::new(TypeOf::<EmailReservation>::unregistered()),
    ])
}

fn settings(runtime: &Runtime, waiters: &Waiters) -> Settings {
    Settings {
        slot: Slot { kind: 0, partition: partition_of(ID.as_bytes(), PARTITIONS) },
        types: types(),
        partitions: PARTITIONS,
        topic_id: "topic-id".into(),
        events_topic_id: "events-id".into(),
        outcomes_topic_id: "outcomes-id".into(),
        answers_bytes: u64::MAX,
        answers_forget: false,
        forget_within: Duration::from_secs(600),
        room: Room::new(u64::MAX, 1),
        store: None,
        window: Duration::from_secs(3600),
        waiters: waiters.clone(),
        runtime: runtime.handle().clone(),
    }
}

fn topics(sent: &[Sent]) -> Vec<Topic> {
    sent.iter().map(|record| record.topic).collect()
}

#[test]
fn an_accepted_command_gives_its_events_and_its_outcome() {
    let mut bench = Bench::new();
    let sent = bench.send("open", OPEN, &[(names::ID, "c1"), (names::CORRELATION_ID, "corr")]);
    assert_eq!(topics(&sent), [Topic::Events, Topic::Outcomes]);
    let partition = partition_of(ID.as_bytes(), PARTITIONS);
    assert!(sent.iter().all(|record| record.partition == partition));
    assert_eq!(sent[0].key.as_deref(), Some(ID.as_bytes()));
    assert_eq!(sent[0].header("ce_id").as_deref(), Some("bank-account/acc-42/1"));
    assert_eq!(sent[0].header(names::COMMAND_ID).as_deref(), Some("c1"));
    assert_eq!(sent[0].header(names::CORRELATION_ID).as_deref(), Some("corr"));
    assert_eq!(sent[1].key.as_deref(), Some(&b"c1"[..]));
    assert_eq!(sent[1].header(names::POSITION), Some(format!("topic-id/{partition}/0")));
    assert_eq!(sent[1].header(names::ORIGIN), Some(format!("bank-account.commands/{partition}/0")));
    let outcome = bench.outcome(&sent[1]);
    assert_eq!((outcome.outcome, outcome.version, outcome.events.len()), (Verdict::Accepted, 1, 1));
}

#[test]
fn a_refusal_has_no_event_and_names_its_figures() {
    let mut bench = Bench::opened();
    let sent = bench.send("withdraw", r#"{"amount_minor": 10001}"#, &[]);
    assert_eq!(topics(&sent), [Topic::Outcomes]);
    let outcome = bench.outcome(&sent[0]);
    assert_eq!((outcome.reason.as_deref(), outcome.version), (Some("insufficient-funds"), 2));
    assert_eq!(outcome.detail.as_deref(), Some(r#"{"balance_minor":10000,"requested_minor":10001}"#));
}

#[test]
fn g02_a_command_id_has_one_effect_also_within_one_batch() {
    let mut bench = Bench::opened();
    let value = bench.value("withdraw", r#"{"amount_minor": 10000}"#);
    let (first, second) =
        (bench.record(Some(&value), &[(names::ID, "c1")]), bench.record(Some(&value), &[(names::ID, "c1")]));
    let (first, second) = (bench.decide(&first), bench.decide(&second));
    assert_eq!(topics(&first), [Topic::Events, Topic::Outcomes]);
    assert_eq!(topics(&second), [Topic::Outcomes]);
    assert_eq!(second[0].value, first[1].value, "a repeat gets an equal outcome");
    assert_eq!((first[1].header(names::REPLAYED), second[0].header(names::REPLAYED)), (None, Some("1".into())));
}

#[test]
fn g05_a_reused_id_is_refused_and_the_first_outcome_stays() {
    let mut bench = Bench::opened();
    let first = bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::ID, "c1")]);
    let reused = bench.send("deposit", r#"{"amount_minor": 2}"#, &[(names::ID, "c1")]);
    assert_eq!(topics(&reused), [Topic::Outcomes]);
    let refused = bench.outcome(&reused[0]);
    assert_eq!(refused.reason.as_deref(), Some("idempotency-key-reused"));
    assert_ne!(refused.fingerprint, bench.outcome(&first[1]).fingerprint, "it names the refused command");
    let again = bench.send("deposit", r#"{"amount_minor": 1, "reference": null}"#, &[(names::ID, "c1")]);
    assert_eq!(again[0].value, first[1].value, "an absent optional field equals null");
}

#[test]
fn g05_outcomes_are_forgotten_after_the_window() {
    let mut bench = Bench::opened();
    bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::ID, "c1")]);
    bench.now += Duration::from_secs(3601);
    assert_eq!(bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::ID, "c1")]).len(), 2);
}

#[test]
fn g16_at_the_limit_of_remembered_answers_commands_wait_until_some_expire() {
    let mut bench = Bench::opened();
    bench.partition.settings.answers_bytes = bench.partition.memory.bytes();
    bench.partition.tend(bench.now);
    let slot = bench.partition.settings.slot;
    assert!(bench.partition.is_full && bench.waiters.is_full(slot));
    bench.now += jiff::SignedDuration::from_secs(3601);
    bench.partition.tend(bench.now);
    assert!(!bench.partition.is_full && !bench.waiters.is_full(slot));
    assert_eq!(bench.partition.memory.bytes(), 0);
}

#[test]
fn g16_the_oldest_answers_are_forgotten_only_when_that_is_wanted() {
    let mut bench = Bench::opened();
    bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::ID, "old")]);
    let all = bench.partition.memory.bytes();
    bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::ID, "new")]);
    let newest = bench.partition.memory.bytes() - all;
    (bench.partition.settings.answers_bytes, bench.partition.settings.answers_forget) = (newest, true);
    bench.partition.tend(bench.now);
    assert!(!bench.partition.is_full);
    let topics_of =
        |bench: &mut Bench, id| topics(&bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::ID, id)]));
    assert_eq!(topics_of(&mut bench, "new"), [Topic::Outcomes], "a repeat");
    assert_eq!(topics_of(&mut bench, "old"), [Topic::Events, Topic::Outcomes], "forgotten");
}

#[test]
fn g06_an_expected_version_is_judged_before_the_rules() {
    let mut bench = Bench::opened();
    let sent = bench.send("withdraw", r#"{"amount_minor": 99999}"#, &[(names::EXPECTED_VERSION, "1")]);
    let outcome = bench.outcome(&sent[0]);
    assert_eq!(outcome.reason.as_deref(), Some("version-conflict"));
    assert_eq!(outcome.detail.as_deref(), Some(r#"{"actual_version":2,"expected_version":1}"#));
    assert_eq!(bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::EXPECTED_VERSION, "2")]).len(), 2);
}

#[test]
fn g02_an_aborted_batch_leaves_nothing_behind() {
    let mut bench = Bench::opened();
    let value = bench.value("withdraw", r#"{"amount_minor": 10000}"#);
    let record = bench.record(Some(&value), &[(names::ID, "c1")]);
    let first = bench.decide(&record);
    bench.partition.rollback();
    assert_eq!(bench.decide(&record), first, "the batch runs again and gives the same");
}

/// Value, headers, and what the reason must say.
type Case<'a> = (Option<&'a [u8]>, &'a [(&'a str, &'a str)], &'a str);

#[test]
fn g13_what_is_no_command_is_a_dead_letter_with_its_reason() {
    let mut bench = Bench::opened();
    let good = bench.value("deposit", r#"{"amount_minor": 1}"#);
    let mut trailing = good.clone();
    trailing.push(0);
    let mut negative = good.clone();
    negative[5] = 1;
    let truncated = good[..good.len() - 1].to_vec();
    let headers: &[(&str, &str)] = &[("x", "y")];
    let cases: [Case<'_>; 9] = [
        (None, headers, "no value"),
        (Some(b""), headers, "five bytes"),
        (Some(b"{\"amount\": 1}"), headers, "zero byte"),
        (Some(&trailing), headers, "left over"),
        (Some(&truncated), headers, "does not fit"),
        (Some(&negative), headers, "minor units"),
        (Some(&good), &[(names::ID, "a b")], "ce_id"),
        (Some(&good), &[(names::EXPECTED_VERSION, "-1")], "ce_expectedversion"),
        (Some(&vec![0; 3 << 19][64..]), headers, "at most"),
    ];
    for (value, headers, reason) in cases {
        let record = bench.record(value, headers);
        let sent = bench.decide(&record);
        assert_eq!(topics(&sent), [Topic::DeadLetters], "{reason}");
        let letter = &sent[0];
        assert!(letter.header(names::ERROR).unwrap().contains(reason), "{letter:?}");
        assert_eq!((letter.value.as_deref(), letter.key.as_deref()), (value, Some(ID.as_bytes())));
        let partition = partition_of(ID.as_bytes(), PARTITIONS);
        assert_eq!(letter.header(names::ORIGIN), Some(format!("bank-account.commands/{partition}/{}", record.offset)));
        assert_eq!(letter.header(headers[0].0).as_deref(), Some(headers[0].1), "its own headers are kept");
    }
    let huge = bench.record(Some(&vec![0; 2 << 20]), &[]);
    let letter = &bench.decide(&huge)[0];
    assert_eq!(letter.value, None, "what no topic takes is not kept twice");
    assert!(letter.header(names::ERROR).unwrap().contains("bytes are not kept here"));
    for key in [None, Some(&b""[..])] {
        let record = CommandRecord::new(99, None, key, Some(&good), std::iter::empty());
        assert_eq!(topics(&bench.decide(&record)), [Topic::DeadLetters]);
    }
}

#[test]
fn a_schema_that_cannot_be_asked_for_holds_the_command() {
    let mut bench = Bench::opened();
    let record = bench.record(Some(&[0, 0, 0, 0, 77, 2]), &[]);
    let mut sink = Collect::default();
    assert!(bench.partition.decide(&record, bench.now, &mut sink).is_err());
    assert!(sink.0.is_empty());
}

#[test]
fn a_misrouted_command_is_forwarded_once() {
    let mut bench = Bench::new();
    let value = bench.value("open", OPEN);
    let stranger = (0..)
        .map(|n| format!("acc-{n}"))
        .find(|id| partition_of(id.as_bytes(), PARTITIONS) != partition_of(ID.as_bytes(), PARTITIONS));
    let stranger = stranger.unwrap();
    let record = |headers: Vec<(&'static str, &'static str)>| {
        let headers = headers.into_iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        CommandRecord::new(7, Some(1234), Some(stranger.as_bytes()), Some(&value), headers)
    };
    let forwarded = bench.decide(&record(vec![(names::ID, "c1")]));
    assert_eq!(topics(&forwarded), [Topic::Commands]);
    let own = partition_of(ID.as_bytes(), PARTITIONS);
    assert_eq!(forwarded[0].partition, partition_of(stranger.as_bytes(), PARTITIONS));
    assert_eq!(forwarded[0].header(names::ORIGIN), Some(format!("bank-account.commands/{own}/7")));
    assert_eq!((forwarded[0].header(names::ID).as_deref(), forwarded[0].timestamp_ms), (Some("c1"), 1234));
    let marked = bench.decide(&record(vec![(names::FORWARDED, "1"), (names::ORIGIN, "bank-account.commands/3/4")]));
    assert_eq!(topics(&marked), [Topic::DeadLetters]);
    assert_eq!(marked[0].header(names::ORIGIN).as_deref(), Some("bank-account.commands/3/4"));
}

#[test]
fn g13_an_origin_that_we_can_not_have_written_is_not_believed() {
    let mut bench = Bench::opened();
    let long = "x".repeat(600_000);
    let own = format!("bank-account.commands/{}/", partition_of(ID.as_bytes(), PARTITIONS));
    for forged in [long.as_str(), "", "a/b/c", "bank-account.commands/1/-1", "bank-account.events/1/2"] {
        let sent = bench.send("deposit", r#"{"amount_minor": 1}"#, &[(names::FORWARDED, "1"), (names::ORIGIN, forged)]);
        assert_eq!(topics(&sent), [Topic::Events, Topic::Outcomes]);
        assert_eq!(bench.outcome(&sent[1]).command_id, format!("{own}{}", bench.offset - 1), "{}", forged.len());
    }
}

#[test]
fn time_never_runs_backwards_nor_ahead() {
    let mut bench = Bench::new();
    let mut time = |millis: Option<i64>| {
        let value = match bench.offset {
            0 => bench.value("open", OPEN),
            _ => bench.value("deposit", r#"{"amount_minor": 1}"#),
        };
        bench.offset += 1;
        let record = CommandRecord::new(bench.offset, millis, Some(ID.as_bytes()), Some(&value), std::iter::empty());
        let sent = bench.decide(&record);
        bench.partition.commit(bench.now);
        sent[0].header(names::TIME).unwrap()
    };
    assert_eq!(time(Some(726_105_600_000)), "1993-01-04T00:00:00.000000Z");
    assert_eq!(time(Some(0)), "1993-01-04T00:00:00.000000Z");
    assert_eq!(time(Some(i64::MAX)), "2026-01-01T00:00:00.000000Z");
    assert_eq!(time(Some(726_105_600_000)), "2026-01-01T00:00:00.000000Z");
}

#[test]
fn who_waits_is_answered_after_the_commit_only() {
    let mut bench = Bench::new();
    let encoded = bench.kind.encode("open", OPEN.as_bytes()).unwrap();
    let awaited = Awaited {
        slot: settings(&bench.runtime, &bench.waiters).slot,
        aggregate_id: ID.into(),
        command_id: "c1".into(),
        fingerprint: encoded.fingerprint,
    };
    let (mut waiting, _) = bench.waiters.register(awaited.clone());
    let record = bench.record(encoded.value.as_deref(), &[(names::ID, "c1")]);
    bench.decide(&record);
    bench.partition.rollback();
    bench.decide(&record);
    assert!(bench.waiters.awaits(&awaited));
    bench.partition.commit(bench.now);
    let answer = bench.runtime.block_on(waiting.answer()).unwrap();
    assert_eq!((answer.command_offset, answer.replayed), (Some(0), false));
}

#[test]
fn a_restored_partition_goes_on_where_the_old_one_was() {
    let mut bench = Bench::opened();
    let first = bench.send("deposit", r#"{"amount_minor": 5}"#, &[(names::ID, "c1")]);
    let mut log = Bench::new();
    // The log of the same commands, as a reader finds it.
    let mut records = log.send("open", OPEN, &[]);
    records.extend(log.send("deposit", r#"{"amount_minor": 10000}"#, &[]));
    records.extend(log.send("deposit", r#"{"amount_minor": 5}"#, &[(names::ID, "c1")]));
    let mut restored = Partition::<BankAccount>::new(bench.kind.clone(), settings(&bench.runtime, &bench.waiters));
    for (offset, record) in records.iter().enumerate() {
        record.restore(&mut restored, offset as i64, bench.now);
    }
    assert_eq!(restored.decided_up_to(), Some(3), "a lost committed offset can be repaired");
    assert_eq!(restored.sizes(), (1, 3));
    bench.partition = restored;
    bench.offset = 3;
    let repeated = bench.send("deposit", r#"{"amount_minor": 5}"#, &[(names::ID, "c1")]);
    assert_eq!((repeated.len(), repeated[0].value.clone()), (1, first[1].value.clone()), "answers outlive a restart");
    let refused = bench.send("withdraw", r#"{"amount_minor": 10006}"#, &[]);
    let outcome = bench.outcome(refused.last().unwrap());
    assert_eq!(outcome.detail.as_deref(), Some(r#"{"balance_minor":10005,"requested_minor":10006}"#));
    assert_eq!(outcome.version, 3);
}
