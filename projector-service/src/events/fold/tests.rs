//! What a batch becomes, without Kafka and Redis.

use std::collections::HashMap;

use jiff::Timestamp;
use millrace_shared::{
    codec::Codec,
    domain::bank_account::{
        AccountClosed, AccountOpened, AccountView, BankAccount, Event, MoneyDeposited, MoneyWithdrawn,
    },
    registry::Registry,
    views::history,
};

use super::*;

const LIMITS: Limits = Limits { changes_window: 1_000, history_max: 20, parked_max: 2 };

/// A partition with its Redis: commands are done on it as the script would.
struct Partition {
    keys: Keys,
    codec: Codec<Event>,
    memory: Memory,
    views: HashMap<String, AccountView>,
    grown: Vec<Grown>,
    next: i64,
}

impl Partition {
    fn new() -> Self {
        let registry = Registry::new("http://127.0.0.1:1").unwrap();
        Self {
            keys: Keys::projection("", "bank-accounts", 1, 7),
            codec: Codec::reading(registry).unwrap(),
            memory: Memory::default(),
            views: HashMap::new(),
            grown: Vec::new(),
            next: 100,
        }
    }

    fn fold(&mut self, items: Vec<Incoming<Event>>) -> Result<Batch, Error> {
        let loaded = items.iter().map(|item| (item.id.clone(), Ok(self.views.get(&item.id).cloned()))).collect();
        let items = items.into_iter().map(|item| At { offset: self.next_offset(), item }).collect();
        let Folded { batch, grown, .. } = fold::<BankAccount>(
            &self.keys,
            LIMITS,
            &mut self.memory,
            &mut People::nobody(),
            loaded,
            items,
            &mut change_id,
        )?;
        self.grown = grown;
        for set in words_of(&batch, "MSET") {
            for pair in set[1..].chunks(2) {
                let id = pair[0].rsplit(":view:").next().unwrap().to_owned();
                self.views.insert(id, serde_json::from_str(&pair[1]).unwrap());
            }
        }
        Ok(batch)
    }

    fn next_offset(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    fn parked(&self, id: &str) -> (i64, u64, &str) {
        let parked = &self.memory.parked[id];
        (parked.offset, parked.count, &parked.reason)
    }
}

fn change_id(offset: i64) -> String {
    format!("{offset}-1")
}

fn words_of(batch: &Batch, name: &str) -> Vec<Vec<String>> {
    let text =
        |command: &Command| command.words().iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    batch.commands.iter().map(text).filter(|words: &Vec<String>| words[0] == name).collect()
}

fn event(id: &str, sequence: u64, event: Event) -> Incoming<Event> {
    let time = Timestamp::from_second(1_700_000_000 + sequence as i64).unwrap();
    let meta = EventMeta { sequence, time, command_id: format!("c{sequence}") };
    let packed = history::pack(&meta, &Codec::datums().unwrap().record(event.clone()).unwrap());
    Incoming { id: id.into(), content: Ok(Happened { meta, event, packed }) }
}

fn opened(id: &str) -> Incoming<Event> {
    event(id, 1, Event::AccountOpened(AccountOpened { owner: "Ada".into(), currency: "EUR".into() }))
}

fn deposited(id: &str, sequence: u64, amount_minor: i64) -> Incoming<Event> {
    event(id, sequence, Event::MoneyDeposited(MoneyDeposited { amount_minor, reference: None, channel: None }))
}

fn withdrawn(id: &str, sequence: u64, amount_minor: i64) -> Incoming<Event> {
    event(id, sequence, Event::MoneyWithdrawn(MoneyWithdrawn { amount_minor, reference: None }))
}

fn garbage(id: &str) -> Incoming<Event> {
    Incoming { id: id.into(), content: Err("garbage".into()) }
}

#[test]
fn many_events_of_one_aggregate_are_one_view_and_one_history_call() {
    let mut partition = Partition::new();
    let batch = partition.fold(vec![opened("a"), deposited("a", 2, 100), withdrawn("a", 3, 30), opened("b")]).unwrap();
    assert_eq!((batch.applied, batch.repeated, batch.parked), (4, 0, 0));
    let sets = words_of(&batch, "MSET");
    assert_eq!(sets.len(), 1);
    assert_eq!((partition.views["a"].balance_minor, partition.views["a"].version), (70, 3));
    let pushes = words_of(&batch, "RPUSH");
    assert_eq!(pushes.iter().map(Vec::len).collect::<Vec<_>>(), [2 + 3, 2 + 1]);
    assert_eq!(words_of(&batch, "XADD").len(), 4);
    assert_eq!(partition.memory.counters["currencies/EUR/balance_minor"], 70);
    assert_eq!(partition.memory.counters["accounts/open"], 2);
}

#[test]
fn only_what_changed_is_indexed_anew() {
    let mut partition = Partition::new();
    partition.fold(vec![opened("a")]).unwrap();
    let batch = partition.fold(vec![deposited("a", 2, 100)]).unwrap();
    let mut sets: Vec<String> = words_of(&batch, "ZADD").into_iter().map(|words| words[1].clone()).collect();
    sets.sort();
    assert_eq!(
        sets,
        [
            "{bank-accounts.v1:7}:sort:balance_minor:asc",
            "{bank-accounts.v1:7}:sort:balance_minor:desc",
            "{bank-accounts.v1:7}:sort:updated_at:asc",
            "{bank-accounts.v1:7}:sort:updated_at:desc",
        ]
    );
    let desc = words_of(&batch, "ZADD").into_iter().find(|words| words[1].ends_with("balance_minor:desc")).unwrap();
    assert_eq!(desc[2..], ["-100", "a"]);
}

#[test]
fn what_changes_and_changes_back_moves_no_index() {
    let mut partition = Partition::new();
    partition.fold(vec![opened("a")]).unwrap();
    let batch = partition.fold(vec![deposited("a", 2, 5), withdrawn("a", 3, 5)]).unwrap();
    assert!(words_of(&batch, "ZADD").iter().all(|words| words[1].contains("updated_at")));
}

#[test]
fn g07_a_repeat_is_dropped_and_counted() {
    let mut partition = Partition::new();
    partition.fold(vec![opened("a"), deposited("a", 2, 100)]).unwrap();
    let batch = partition.fold(vec![deposited("a", 2, 100), opened("a"), deposited("a", 3, 1)]).unwrap();
    assert_eq!((batch.applied, batch.repeated, batch.parked), (1, 2, 0));
    assert_eq!(partition.views["a"].balance_minor, 101);
    assert_eq!(partition.memory.counters["currencies/EUR/deposited_minor"], 101);
}

#[test]
fn g07_a_gap_parks_the_key() {
    let mut partition = Partition::new();
    let batch = partition.fold(vec![opened("a"), deposited("a", 3, 100)]).unwrap();
    assert_eq!((batch.applied, batch.parked), (1, 1));
    assert_eq!(partition.parked("a"), (102, 1, "sequence 3 follows on 1: events are missing"));
    assert_eq!(partition.views["a"].version, 1);
    assert_eq!(words_of(&batch, "HSET").last().unwrap()[1], "{bank-accounts.v1:7}:parked");
}

#[test]
fn g13_a_poisoned_key_waits_in_order_and_the_others_go_on() {
    let mut partition = Partition::new();
    partition.fold(vec![opened("a"), opened("b"), garbage("a"), deposited("a", 2, 100), deposited("b", 2, 7)]).unwrap();
    assert_eq!(partition.parked("a"), (103, 2, "garbage"));
    assert_eq!(partition.views["b"].balance_minor, 7);
    let batch = partition.fold(vec![deposited("a", 3, 100), deposited("b", 3, 7)]).unwrap();
    assert_eq!((batch.applied, batch.parked), (1, 1));
    assert_eq!(partition.parked("a"), (103, 3, "garbage"));
    assert_eq!((partition.views["a"].version, partition.views["b"].balance_minor), (1, 14));
}

#[test]
fn g13_what_the_view_refuses_parks_the_key() {
    let mut partition = Partition::new();
    let lost = event("a", 1, Event::AccountClosed(AccountClosed {}));
    partition.fold(vec![lost, deposited("b", 1, 1), opened("c")]).unwrap();
    assert!(partition.parked("a").2.contains("never opened"));
    assert!(partition.parked("b").2.contains("never opened"));
    assert_eq!(partition.memory.counters["accounts/open"], 1);
}

#[test]
fn g13_records_without_a_key_wait_under_an_empty_one() {
    let mut partition = Partition::new();
    let batch = partition.fold(vec![garbage(""), garbage(""), opened("a")]).unwrap();
    assert_eq!((batch.applied, batch.parked), (1, 2));
    assert_eq!(partition.parked(""), (101, 2, "garbage"));
}

#[test]
fn g13_past_the_limit_of_parked_keys_the_partition_stops_and_says_why() {
    let mut partition = Partition::new();
    partition.fold(vec![garbage("a"), garbage("b")]).unwrap();
    assert!(partition.fold(vec![garbage("a"), opened("d")]).is_ok());
    let stopped = partition.fold(vec![garbage("c")]).unwrap_err();
    assert!(matches!(&stopped, Error::Stop(reason) if reason.contains("garbage")), "{stopped}");
}

#[test]
fn g07_a_view_that_cannot_be_read_is_not_overwritten() {
    let mut partition = Partition::new();
    let loaded = HashMap::from([("a".to_owned(), Err("damaged".to_owned()))]);
    let items = vec![At { offset: 1, item: deposited("a", 2, 5) }];
    let Folded { batch, .. } = fold::<BankAccount>(
        &partition.keys,
        LIMITS,
        &mut partition.memory,
        &mut People::nobody(),
        loaded,
        items,
        &mut change_id,
    )
    .unwrap();
    assert!(words_of(&batch, "MSET").is_empty());
    assert_eq!(partition.parked("a"), (1, 1, "damaged"));
}

#[test]
fn history_is_packed_in_order() {
    let mut partition = Partition::new();
    let batch = partition.fold(vec![opened("a"), deposited("a", 2, 100)]).unwrap();
    let push = batch.commands.iter().find(|command| command.words()[0] == b"RPUSH").unwrap();
    let events: Vec<(u64, &str, String)> = push.words()[2..]
        .iter()
        .map(|packed| history::unpack(&partition.codec, packed).unwrap())
        .map(|(meta, event)| (meta.sequence, event.name(), meta.command_id))
        .collect();
    assert_eq!(events, [(1, "AccountOpened", "c1".to_owned()), (2, "MoneyDeposited", "c2".to_owned())]);
}

#[test]
fn g16_a_history_is_too_long_now_and_then() {
    let mut partition = Partition::new();
    let mut due = Vec::new();
    for sequence in 1..=30 {
        let event = if sequence == 1 { opened("a") } else { deposited("a", sequence, 1) };
        partition.fold(vec![event, opened(&format!("other-{sequence}"))]).unwrap();
        due.extend(partition.grown.iter().map(|grown| (sequence, grown.id.clone(), grown.upto.unwrap(), grown.before)));
    }
    let of_a = |sequence| (sequence, "a".to_owned(), sequence - 20, sequence - 1);
    assert_eq!(due, [of_a(22), of_a(24), of_a(26), of_a(28), of_a(30)]);
    // All at once: more than are kept.
    let mut events = vec![opened("b")];
    events.extend((2..=50).map(|sequence| deposited("b", sequence, 1)));
    partition.fold(events).unwrap();
    assert_eq!(
        (partition.grown[0].upto.unwrap(), partition.grown[0].before, partition.grown[0].fresh.len()),
        (30, 0, 50)
    );
}
