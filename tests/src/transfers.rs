//! Transfers, as clients request them, and what the log must show of them: written a second time, from the contract.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    Deployment, Services,
    account::{Event, fold, partition_of},
    avro::{Registry, encode},
    eventually,
    http::{Request, post},
    kafka,
};

/// A transfer id that nobody else uses.
pub fn new_transfer() -> String {
    format!("t-{}", uuid::Uuid::now_v7().simple())
}

/// The request of a transfer at the instance with this URL.
pub fn request_at(url: &str, id: &str, from: &str, to: &str, amount_minor: i64) -> Request {
    let body = json!({"from": from, "to": to, "amount_minor": amount_minor, "currency": "EUR", "reference": "rent"});
    post(&format!("{url}/v1/transfers/{id}/request")).json(&body)
}

impl Services {
    /// Requests a transfer and waits for its end; returns its view.
    #[track_caller]
    pub fn transfer(&self, from: &str, to: &str, amount_minor: i64) -> Value {
        let id = new_transfer();
        let answer = request_at(&self.command.url(), &id, from, to, amount_minor).send();
        assert_eq!(answer.status, 201, "{answer:?}");
        self.ended(&id)
    }

    /// The view of a transfer once it has ended.
    #[track_caller]
    pub fn ended(&self, id: &str) -> Value {
        eventually(&format!("end of {id}"), || {
            let answer = self.ask(&format!("/v1/transfers/{id}?until=final&wait_ms=30000")).send();
            if answer.header("millrace-stale").is_some() {
                return Err(format!("{answer:?}"));
            }
            assert_eq!(answer.status, 200, "{answer:?}");
            Ok(answer.json())
        })
    }
}

/// What became of a transfer, by its own events.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    from: String,
    to: String,
    amount_minor: i64,
    /// `completed`, `refused`, `compensated`, or what it waits for.
    pub status: String,
}

impl Deployment {
    /// A topic of the transfers.
    pub fn transfer_topic(&self, suffix: &str) -> String {
        self.topic_of("transfer", suffix)
    }

    /// All transfers by id, folded from their events alone.
    #[track_caller]
    pub fn transfers(&self) -> BTreeMap<String, Told> {
        let mut all: BTreeMap<String, Told> = BTreeMap::new();
        kafka::for_each(&self.transfer_topic("events"), None, |record| {
            let id = String::from_utf8(record.key.clone().expect("events have keys")).expect("ids are text");
            let event = Registry::shared().decode(record.value.as_deref().expect("events have values"));
            let text = |name: &str| event.fields[name].as_str().expect("a text").to_owned();
            let kind = event.record.strip_prefix("millrace.transfer.events.").expect("our namespace");
            let status = match kind {
                "TransferRequested" => {
                    let amount_minor = event.fields["amount_minor"].as_i64().expect("an amount");
                    let told = Told { from: text("from"), to: text("to"), amount_minor, status: "requested".into() };
                    assert!(all.insert(id, told).is_none(), "requested twice: {record:?}");
                    return;
                }
                "TransferDebited" => "debited",
                "TransferCompleted" => "completed",
                "TransferRefused" => "refused",
                "TransferCompensated" => "compensated",
                "RefundOrdered" | "TransferRetried" => return,
                other => panic!("unknown event {other}"),
            };
            let told = all.get_mut(&id).unwrap_or_else(|| panic!("never requested: {record:?}"));
            let before = ["requested", "debited"][usize::from(!matches!(status, "debited" | "refused"))];
            assert_eq!(told.status, before, "{status} does not follow: {record:?}");
            told.status = status.to_owned();
        });
        all
    }

    /// Waits until no account keeps anything ready for a transfer: that one has ended is told to its accounts afterwards.
    #[track_caller]
    pub fn wait_settled(&self) {
        eventually("settlement of all transfers", || {
            let events = self.all_events();
            let of = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
            let (held, released) = (of("TransferHeld"), of("TransferReleased"));
            if held == released { Ok(()) } else { Err(format!("{held} were held, {released} released")) }
        });
    }

    /// Shows that at this moment no money is lost or made, whatever is under way: what a transfer has paid in was paid out
    /// before, and what it has paid out has come in, came back, or is held where it came from. Partitions are not read at
    /// one instant, so the log is read twice: what came before something in the first reading is in the second.
    #[track_caller]
    pub fn money_is_conserved_now(&self) {
        let (first, second) = (self.moved(), self.moved());
        assert!(first.values().any(|moved| moved.paid_out > 0), "no transfer has moved anything");
        for (id, Moved { paid_out, paid_in, held }) in first {
            let then = &second[&id];
            assert!(paid_in <= then.paid_out, "{id} has made money: {paid_in} came in, {then:?}");
            assert!(held == paid_out || then.paid_in == paid_out, "{id} has lost money: {paid_out} went out, {then:?}");
        }
    }

    /// What transfers have moved, by what accounts say.
    fn moved(&self) -> BTreeMap<String, Moved> {
        let (mut all, mut holds) = (BTreeMap::<String, Moved>::new(), BTreeMap::new());
        for event in self.all_events() {
            let by = event.change_minor();
            let transfer = event.fields["reference"].as_str().and_then(|text| text.strip_prefix("transfer:"));
            if let Some(transfer) = transfer {
                let moved = all.entry(transfer.to_owned()).or_default();
                *if by < 0 { &mut moved.paid_out } else { &mut moved.paid_in } += by.abs();
            }
            match event.kind.as_str() {
                "TransferHeld" => {
                    let amount = event.fields["amount_minor"].as_i64().expect("an amount");
                    holds.insert((text(&event, "transfer_id"), event.record.key.clone()), amount);
                }
                "TransferReleased" => drop(holds.remove(&(text(&event, "transfer_id"), event.record.key.clone()))),
                _ => {}
            }
        }
        for ((transfer, _), amount) in holds {
            all.entry(transfer).or_default().held += amount;
        }
        all
    }

    /// Waits until all are settled, and compares what accounts did for transfers with what became of these: each has moved its money once, or not at all.
    /// Returns the transfers, and the sum of all balances.
    #[track_caller]
    pub fn money_is_where_transfers_say(&self) -> (BTreeMap<String, Told>, i64) {
        self.wait_settled();
        let transfers = self.transfers();
        let mut accounts: BTreeMap<String, Vec<Event>> = BTreeMap::new();
        for event in self.all_events() {
            let id = String::from_utf8(event.record.key.clone().expect("events have keys")).expect("ids are text");
            accounts.entry(id).or_default().push(event);
        }
        let (mut moved, mut held) = (BTreeMap::<String, Vec<(String, i64)>>::new(), BTreeMap::<String, i64>::new());
        let mut sum = 0;
        for (id, events) in &accounts {
            let view = fold(id, events).expect("it was opened");
            sum += view["balance_minor"].as_i64().expect("a balance");
            for event in events {
                let transfer = event.fields["reference"].as_str().and_then(|text| text.strip_prefix("transfer:"));
                if let Some(transfer) = transfer {
                    let cause = event.record.header("ce_causationid").expect("it has a cause");
                    assert!(cause.starts_with(&format!("transfer/{transfer}/")), "{cause}: {event:?}");
                    moved.entry(transfer.to_owned()).or_default().push((id.clone(), event.change_minor()));
                }
                match event.kind.as_str() {
                    "TransferHeld" => *held.entry(text(event, "transfer_id")).or_default() += 1,
                    "TransferReleased" => *held.entry(text(event, "transfer_id")).or_default() -= 1,
                    _ => {}
                }
            }
        }
        for (id, told) in &transfers {
            let mut moved = moved.remove(id).unwrap_or_default();
            moved.sort();
            let mut expected = match told.status.as_str() {
                "completed" => vec![(&told.from, -told.amount_minor), (&told.to, told.amount_minor)],
                "compensated" => vec![(&told.from, -told.amount_minor), (&told.from, told.amount_minor)],
                "refused" => Vec::new(),
                other => panic!("{id} has not ended: {other}"),
            };
            expected.sort();
            let moved: Vec<(&String, i64)> = moved.iter().map(|(account, by)| (account, *by)).collect();
            assert_eq!(moved, expected, "{id}: {told:?}");
            assert_eq!(held.remove(id).unwrap_or(0), 0, "{id} is still held: {told:?}");
        }
        assert!(moved.is_empty(), "money was moved for transfers that are none: {moved:?}");
        (transfers, sum)
    }
}

/// What a transfer has moved, in minor units.
#[derive(Debug, Default)]
struct Moved {
    paid_out: i64,
    paid_in: i64,
    /// Of what was paid out, what may still come back.
    held: i64,
}

fn text(event: &Event, field: &str) -> String {
    event.fields[field].as_str().unwrap_or_else(|| panic!("no {field}: {event:?}")).to_owned()
}

/// A record of the event topic of transfers, as Millrace writes it: one that was requested, and nobody knows of.
pub fn planted_request(id: &str, from: &str, to: &str, amount_minor: i64, partitions: i32) -> kafka::Draft {
    use apache_avro::types::Value as Avro;
    let schema = json!({
        "type": "record", "name": "TransferRequested", "namespace": "millrace.transfer.events",
        "doc": "Money is to be moved.",
        "fields": [
            {"name": "from", "type": "string", "doc": "id of the account that pays"},
            {"name": "to", "type": "string", "doc": "id of the account that is paid"},
            {"name": "amount_minor", "type": "long", "doc": "minor units (cents), 1 to 10^15"},
            {"name": "currency", "type": "string", "doc": "ISO 4217 code, upper case"},
            {"name": "reference", "type": ["null", "string"], "default": null, "doc": "up to 140 characters"},
        ],
    });
    let schema_id = Registry::shared().register("somebody-elses-TransferRequested", &schema);
    let text = |text: &str| Avro::String(text.to_owned());
    let value = encode(
        schema_id,
        &schema,
        vec![
            ("from", text(from)),
            ("to", text(to)),
            ("amount_minor", Avro::Long(amount_minor)),
            ("currency", text("EUR")),
            ("reference", Avro::Union(0, Box::new(Avro::Null))),
        ],
    );
    let time = jiff::Timestamp::from_millisecond(jiff::Timestamp::now().as_millisecond()).expect("a time");
    let mut draft = kafka::Draft::new(id, value).to(partition_of(id.as_bytes(), partitions));
    for (name, value) in [
        ("content-type", "application/avro".to_owned()),
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", format!("transfer/{id}/1")),
        ("ce_source", "/millrace/transfer".to_owned()),
        ("ce_type", "millrace.transfer.events.TransferRequested".to_owned()),
        ("ce_subject", id.to_owned()),
        ("ce_time", format!("{time:.6}")),
        ("ce_sequence", "1".to_owned()),
        ("ce_commandid", "lost".to_owned()),
    ] {
        draft = draft.header(name, value);
    }
    draft.timestamp_ms = Some(time.as_millisecond());
    draft
}
