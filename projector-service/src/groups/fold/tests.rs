use super::*;
use jiff::Timestamp;
use millrace_shared::{
    domain::bank_account::{AccountOpened, Event as AccountEvent, MoneyDeposited, Owners},
    envelope::EventMeta,
};

/// What Redis has of a partition.
#[derive(Default)]
struct Partition {
    memory: Memory,
    members: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, Vec<u8>>,
}

fn opened(owner: &str) -> AccountEvent {
    AccountEvent::AccountOpened(AccountOpened { owner: owner.into(), currency: "EUR".into() })
}

fn deposited(amount_minor: i64) -> AccountEvent {
    AccountEvent::MoneyDeposited(MoneyDeposited { amount_minor, reference: None, channel: None })
}

fn read<T: serde::de::DeserializeOwned>(stored: &BTreeMap<String, Vec<u8>>) -> Loaded<T> {
    let parse = |json: &Vec<u8>| serde_json::from_slice(json).map_err(|error| error.to_string());
    stored.iter().map(|(name, json)| (name.clone(), parse(json))).collect()
}

impl Partition {
    /// Folds events, each an id, a sequence and what happened, and stores what is written.
    fn fold(&mut self, events: &[(&str, u64, Result<AccountEvent, &str>)]) -> Batch {
        let items = events.iter().zip(100..).map(|((id, sequence, event), offset)| {
            let meta = EventMeta { sequence: *sequence, time: Timestamp::UNIX_EPOCH, command_id: "c".into() };
            let content = event.clone().map(|event| Happened { meta, event, packed: vec![] }).map_err(str::to_owned);
            At { offset, item: Incoming { id: (*id).to_owned(), content } }
        });
        let placed = place::<Owners>(&self.memory, read(&self.members), items.collect());
        let keys = Keys::projection("", "owners", 1, 0);
        let batch = fold::<Owners>(&keys, 10, &mut self.memory, read(&self.parts), placed).unwrap();
        for command in &batch.commands {
            let words = command.words();
            let hash = match String::from_utf8_lossy(&words[1]).rsplit(':').next() {
                Some("members") => &mut self.members,
                Some("parts") => &mut self.parts,
                _ => continue,
            };
            for pair in words[2..].chunks_exact(2) {
                hash.insert(String::from_utf8(pair[0].clone()).unwrap(), pair[1].clone());
            }
        }
        batch
    }

    fn part(&self, owner: &str) -> String {
        String::from_utf8(self.parts[owner].clone()).unwrap()
    }
}

#[test]
fn g07_many_accounts_fold_into_one_part_each_event_once() {
    let mut partition = Partition::default();
    let events = [("a", 1, Ok(opened("Ada"))), ("b", 1, Ok(opened("Ada"))), ("a", 2, Ok(deposited(5)))];
    assert_eq!(partition.fold(&events).applied, 3);
    let again = partition.fold(&[("a", 2, Ok(deposited(5))), ("b", 2, Ok(deposited(7)))]);
    assert_eq!((again.applied, again.repeated, again.parked), (1, 1, 0));
    assert_eq!(partition.part("Ada"), r#"{"open":2,"closed":0,"balances_minor":{"EUR":12}}"#);
}

#[test]
fn g07_what_cannot_be_folded_parks_its_aggregate_and_no_other_of_the_group() {
    let mut partition = Partition::default();
    partition.fold(&[("a", 1, Ok(opened("Ada"))), ("b", 1, Ok(opened("Ada"))), ("c", 1, Ok(opened("Ada")))]);
    let batch = partition.fold(&[
        ("a", 3, Ok(deposited(1))),
        ("a", 2, Ok(deposited(1))),
        ("b", 2, Err("not a record")),
        ("b", 3, Ok(deposited(1))),
        ("c", 2, Ok(deposited(i64::MAX))),
        ("c", 3, Ok(deposited(1))),
        ("c", 4, Ok(deposited(1))),
    ]);
    assert_eq!((batch.applied, batch.parked), (1, 6));
    assert_eq!(partition.part("Ada"), format!(r#"{{"open":3,"closed":0,"balances_minor":{{"EUR":{}}}}}"#, i64::MAX));
    let parked = |id: &str| (partition.memory.parked[id].offset, partition.memory.parked[id].count);
    assert_eq!((parked("a"), parked("b"), parked("c")), ((100, 2), (102, 2), (105, 2)));
    assert!(partition.memory.parked["a"].reason.contains("sequence 3 follows on 1"));
    // The member stays at the last event that was applied.
    assert!(String::from_utf8_lossy(&partition.members["c"]).contains(r#""sequence":2"#));
}
