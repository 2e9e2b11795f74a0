//! Personal data: keys that are made and destroyed with their events, and what can't be read without them.

use millrace_shared::domain::user::UserAccount;

use super::*;

const REGISTER: &str = r#"{"given_name": "Zaphira", "family_name": "Quillon", "email": "zq@example.org"}"#;

struct Users {
    kind: Arc<TypeOf<UserAccount>>,
    partition: Partition<UserAccount>,
    runtime: Runtime,
    offset: i64,
    now: Timestamp,
}

impl Users {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let kind = Arc::new(TypeOf::<UserAccount>::unregistered());
        let partition = Partition::new(kind.clone(), settings(&runtime, &Waiters::default()));
        Self { kind, partition, runtime, offset: 0, now: "2026-01-01T00:00:00Z".parse().unwrap() }
    }

    /// One that has read these records, the keys first.
    fn restored(log: &[Sent]) -> Self {
        // Commands without an id of their own have their offset as one.
        let mut users = Self { offset: 1_000, ..Self::new() };
        let (keys, others): (Vec<_>, Vec<_>) = log.iter().partition(|sent| sent.topic == Topic::Keys);
        for (offset, sent) in (0..).zip(keys.into_iter().chain(others)) {
            let headers = sent.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let stored = Stored { offset, key: sent.key.as_deref(), value: sent.value.as_deref(), headers };
            users.partition.restore(sent.topic, &stored, users.now).unwrap();
        }
        users
    }

    fn decide(&mut self, command: &str, body: &str) -> Vec<Sent> {
        let value = self.kind.encode(command, body.as_bytes()).unwrap().value.unwrap();
        self.take(ID.as_bytes(), &value, &[])
    }

    fn take(&mut self, key: &[u8], value: &[u8], headers: &[(&str, &str)]) -> Vec<Sent> {
        self.offset += 1;
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        let record = CommandRecord::new(self.offset, Some(self.now.as_millisecond()), Some(key), Some(value), headers);
        let mut sink = Collect::default();
        self.partition.decide(&record, self.now, &mut sink).unwrap();
        sink.0
    }

    fn send(&mut self, command: &str, body: &str) -> Vec<Sent> {
        let sent = self.decide(command, body);
        self.partition.commit(self.now);
        sent
    }

    fn reason(&self, sent: &[Sent]) -> Option<String> {
        let outcome = sent.last().unwrap().value.as_deref().unwrap();
        let OutcomeRecord::Outcome(outcome) =
            self.kind.outcomes.decode(outcome, Foreign::Refuse, self.runtime.handle()).unwrap();
        outcome.reason
    }
}

fn holds(sent: &Sent, text: &str) -> bool {
    let headers = sent.headers.iter().filter_map(|(_, value)| value.as_deref());
    let mut parts = headers.chain(sent.key.as_deref()).chain(sent.value.as_deref());
    parts.any(|part| part.windows(text.len()).any(|window| window == text.as_bytes()))
}

#[test]
fn a_key_is_made_with_the_first_event_and_destroyed_with_the_last() {
    let mut users = Users::new();
    let lost = users.decide("register", REGISTER);
    users.partition.rollback();
    let mut log = users.send("register", REGISTER);
    assert_eq!(topics(&log), [Topic::Keys, Topic::Events, Topic::Outcomes]);
    assert_ne!(lost[0].value, log[0].value, "what was rolled back was never there");
    let changed = users.send("change-email", r#"{"email": "other@example.org"}"#);
    assert_eq!(topics(&changed), [Topic::Events, Topic::Outcomes]);
    log.extend(changed);
    let erased = users.send("erase", "{}");
    assert_eq!(topics(&erased), [Topic::Keys, Topic::Events, Topic::Outcomes]);
    assert_eq!((erased[0].key.as_deref(), &erased[0].value), (Some(ID.as_bytes()), &None));
    for sent in log.iter().chain(&erased) {
        assert!(!["Zaphira", "Quillon", "example.org"].into_iter().any(|text| holds(sent, text)), "{sent:?}");
    }

    let mut before = Users::restored(&log);
    assert_eq!(topics(&before.send("deactivate", "{}")), [Topic::Events, Topic::Outcomes]);
    log.extend(erased);
    let mut after = Users::restored(&log);
    let refused = after.send("register", REGISTER);
    assert_eq!(after.reason(&refused).as_deref(), Some("user-erased"));
}

#[test]
fn g13_a_key_that_can_t_be_read_stops_its_aggregate_and_one_without_its_master_key_the_partition() {
    let log = Users::new().send("register", REGISTER);
    let mut damaged = log.clone();
    damaged[0].value.as_mut().unwrap().pop();
    let mut users = Users::restored(&damaged);
    let refused = users.send("deactivate", "{}");
    assert_eq!(users.reason(&refused).as_deref(), Some("unavailable"), "nobody may take it for erased");

    let mut kind = TypeOf::<UserAccount>::unregistered();
    let other = "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    kind.personal.as_mut().unwrap().masters = millrace_shared::personal::MasterKeys::parse(other).unwrap();
    let mut partition = Partition::new(Arc::new(kind), settings(&users.runtime, &Waiters::default()));
    let stored = Stored { offset: 0, key: log[0].key.as_deref(), value: log[0].value.as_deref(), headers: Vec::new() };
    partition.restore(Topic::Keys, &stored, users.now).unwrap();
    let error = Decider::end_keys(&mut partition).unwrap_err();
    assert!(error.0.contains("k1"), "{error}");
    // What comes later counts: an erasure, or the same key under a master key that is there.
    partition.restore(Topic::Keys, &Stored { value: None, ..stored }, users.now).unwrap();
    Decider::end_keys(&mut partition).unwrap();
}

#[test]
fn what_clears_a_destroyed_key_out_of_the_files_is_sent_when_nothing_else_is() {
    let mut users = Users::new();
    users.send("register", REGISTER);
    users.send("erase", "{}");
    assert!(!users.partition.is_snapshotting(), "its time has not come");
    users.partition.keys.due_now();
    assert!(Decider::is_snapshotting(&users.partition));
    let mut sink = Collect::default();
    Decider::send_snapshots(&mut users.partition, users.now, &mut sink);
    assert_eq!(topics(&sink.0), [Topic::Keys, Topic::Commands]);
    assert!(sink.0.iter().all(|sent| sent.value.is_none()));
    assert!(!Decider::is_snapshotting(&users.partition));
    users.partition.rollback();
    assert!(Decider::is_snapshotting(&users.partition), "it was not sent");
    let mut again = Collect::default();
    Decider::send_snapshots(&mut users.partition, users.now, &mut again);
    assert_eq!(again.0, sink.0);
    users.partition.commit(users.now);
    let record = CommandRecord::new(9, None, None, None, [(names::SWEEP.as_bytes(), Some(&b"1"[..]))].into_iter());
    let mut nothing = Collect::default();
    users.partition.decide(&record, users.now, &mut nothing).unwrap();
    assert_eq!(nothing.0, []);
}

#[test]
fn what_is_scheduled_lies_encrypted_and_is_dropped_with_the_key() {
    let mut users = Users::new();
    let value = users.kind.encode("register", REGISTER.as_bytes()).unwrap().value.unwrap();
    let not_before = [(names::ID, "c1"), (names::NOT_BEFORE, "2026-02-01T00:00:00Z")];
    let log = users.take(ID.as_bytes(), &value, &not_before);
    users.partition.commit(users.now);
    assert_eq!(topics(&log), [Topic::Outcomes, Topic::Keys, Topic::Scheduled]);
    assert_eq!(log[2].header(names::SEALED).as_deref(), Some("RegisterUser"));
    assert!(!log.iter().any(|sent| holds(sent, "Zaphira")), "{log:?}");

    let mut restored = Users::restored(&log);
    restored.now = "2026-02-01T00:00:01Z".parse().unwrap();
    let mut sink = Collect::default();
    Decider::release_due(&mut restored.partition, restored.now, &mut sink);
    assert_eq!(topics(&sink.0), [Topic::Commands, Topic::Scheduled]);
    assert_eq!(sink.0[0].value.as_deref(), Some(&value[..]), "it is released as it came");
    assert_eq!(sink.0[0].header(names::SEALED), None);

    users.send("register", REGISTER);
    let erased = users.send("erase", "{}");
    assert_eq!(topics(&erased), [Topic::Keys, Topic::Scheduled, Topic::Events, Topic::Outcomes]);
    assert_eq!(erased[1].value, None);
    let mut gone = Users::restored(&[&log[2..], &erased[..1]].concat());
    gone.now = restored.now;
    let mut sink = Collect::default();
    Decider::release_due(&mut gone.partition, gone.now, &mut sink);
    assert_eq!(sink.0, [], "its key is gone");
}

#[test]
fn g14_a_dead_letter_keeps_nothing_that_may_be_personal() {
    let mut users = Users::new();
    let sent = users.take(ID.as_bytes(), b"\0\0\0\0\x01Zaphira", &[("x-name", "Zaphira")]);
    assert_eq!(topics(&sent), [Topic::DeadLetters]);
    assert_eq!((sent[0].key.as_deref(), &sent[0].value), (Some(ID.as_bytes()), &None));
    assert!(!holds(&sent[0], "Zaphira"), "{sent:?}");
    assert!(sent[0].header(names::ERROR).unwrap().contains("can't be read"));
}
