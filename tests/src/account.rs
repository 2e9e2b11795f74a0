//! What a bank account is, written a second time, from the contract: the services are compared with this.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{avro::Registry, kafka::Record};

const MAX_BALANCE_MINOR: i64 = 9_000_000_000_000_000;

/// An event as it lies in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Sequence within its aggregate.
    pub sequence: u64,
    /// Name of its record, without the namespace.
    pub kind: String,
    /// Its fields.
    pub fields: Value,
    /// When it happened.
    pub time: String,
    /// What caused it.
    pub command_id: String,
    /// The record itself.
    pub record: Record,
}

impl Event {
    /// Decodes a record of the events topic.
    #[track_caller]
    pub fn decode(record: Record) -> Self {
        let datum = Registry::shared().decode(record.value.as_deref().expect("events have values"));
        let kind = datum.record.strip_prefix("millrace.bank_account.events.").expect("events have our namespace");
        let header = |name| record.header(name).unwrap_or_else(|| panic!("no header {name}: {record:?}"));
        Self {
            sequence: header("ce_sequence").parse().expect("a sequence is a number"),
            kind: kind.to_owned(),
            fields: datum.fields,
            time: header("ce_time"),
            command_id: header("ce_commandid"),
            record,
        }
    }

    /// The amount that it adds to the balance.
    pub fn change_minor(&self) -> i64 {
        let amount = || self.fields["amount_minor"].as_i64().expect("payments have amounts");
        match self.kind.as_str() {
            "MoneyDeposited" => amount(),
            "MoneyWithdrawn" => -amount(),
            // Of an earlier release.
            "BalanceChanged" => self.fields["by_minor"].as_i64().expect("it says by how much"),
            _ => 0,
        }
    }
}

/// Folds an account's events into the view that queries must answer; `None` when it was never opened.
///
/// # Panics
/// When the log breaks a rule: a gap, an overdraft, something after the end, a time that runs backwards.
#[track_caller]
pub fn fold(id: &str, events: &[Event]) -> Option<Value> {
    let mut folded = Folded::default();
    for event in events {
        folded.apply(id, event);
    }
    let first = events.first()?;
    Some(json!({
        "id": id,
        "owner": first.fields["owner"],
        "currency": first.fields["currency"],
        "balance_minor": folded.balance,
        "status": if folded.closed { "closed" } else { "open" },
        "version": folded.version,
        "opened_at": first.time,
        "updated_at": folded.last_time,
    }))
}

/// What the rules ask about an account.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    /// Events so far.
    pub version: u64,
    balance: i64,
    /// Transfers that may come back.
    held: BTreeSet<String>,
    closed: bool,
    last_time: String,
}

impl Folded {
    /// Adds the next event.
    ///
    /// # Panics
    /// When it breaks a rule.
    #[track_caller]
    pub fn apply(&mut self, id: &str, event: &Event) {
        let is_first = self.version == 0;
        assert_eq!(event.kind == "AccountOpened", is_first, "opened first, and once: {event:?}");
        self.version += 1;
        assert_eq!(event.sequence, self.version, "gap or repeat in {id}: {event:?}");
        assert!(!self.closed, "something happened to a closed account: {event:?}");
        // RFC 3339 in UTC with six digits: texts sort like times.
        assert!(event.time >= self.last_time, "time runs backwards from {}: {event:?}", self.last_time);
        self.last_time.clone_from(&event.time);
        self.balance += event.change_minor();
        assert!((0..=MAX_BALANCE_MINOR).contains(&self.balance), "{id} has {} after {event:?}", self.balance);
        match event.kind.as_str() {
            "AccountOpened" | "BalanceChanged" => {}
            "MoneyDeposited" | "MoneyWithdrawn" => {
                assert!(event.fields["amount_minor"].as_i64() >= Some(1), "{event:?}");
            }
            "TransferHeld" => assert!(self.held.insert(transfer_of(event)), "held twice: {event:?}"),
            "TransferReleased" => assert!(self.held.remove(&transfer_of(event)), "not held: {event:?}"),
            "AccountClosed" => {
                assert!(self.held.is_empty(), "closed while money may come back: {event:?}");
                assert_eq!(self.balance, 0, "closed with money in it: {event:?}");
                self.closed = true;
            }
            other => panic!("unknown event {other}"),
        }
    }
}

fn transfer_of(event: &Event) -> String {
    event.fields["transfer_id"].as_str().expect("it names a transfer").to_owned()
}

/// The partition that Kafka's Java clients choose for a key.
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// As `org.apache.kafka.common.utils.Utils.murmur2` has it, in Java's signed arithmetic.
fn murmur2(data: &[u8]) -> i32 {
    let m = 0x5bd1_e995_i32;
    let unsigned_shift = |value: i32, by: u32| ((value as u32) >> by) as i32;
    let length = data.len();
    let mut h = 0x9747_b28c_u32 as i32 ^ length as i32;
    for i in 0..length / 4 {
        let byte = |at: usize| i32::from(data[4 * i + at]);
        let mut k = byte(0) + (byte(1) << 8) + (byte(2) << 16) + (byte(3) << 24);
        k = k.wrapping_mul(m);
        k ^= unsigned_shift(k, 24);
        k = k.wrapping_mul(m);
        h = h.wrapping_mul(m);
        h ^= k;
    }
    let tail = length & !3;
    if length % 4 >= 3 {
        h ^= i32::from(data[tail + 2]) << 16;
    }
    if length % 4 >= 2 {
        h ^= i32::from(data[tail + 1]) << 8;
    }
    if length % 4 >= 1 {
        h ^= i32::from(data[tail]);
        h = h.wrapping_mul(m);
    }
    h ^= unsigned_shift(h, 13);
    h = h.wrapping_mul(m);
    h ^ unsigned_shift(h, 15)
}
