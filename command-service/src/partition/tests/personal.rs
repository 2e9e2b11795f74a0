//! Personal data: keys that are made and destroyed with their events, and what can't be read without them.

use millrace_shared::{
    domain::process::{Answer, StepId},
    personal::{DataKey, MasterKeys},
};

use super::{super::RestoreError, *};

const K1: &str = "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// Of the same name, but another one.
const OTHER: &str = "k1:AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
const K2: &str = "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
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
        Self::with(K1)
    }

    fn with(masters: &str) -> Self {
        let (runtime, mut kind) = (Runtime::new().unwrap(), TypeOf::<UserAccount>::unregistered());
        kind.personal.as_mut().unwrap().masters = MasterKeys::parse(masters).unwrap();
        let kind = Arc::new(kind);
        let partition = Partition::new(kind.clone(), settings(&runtime, &Waiters::default()));
        Self { kind, partition, runtime, offset: 0, now: "2026-01-01T00:00:00Z".parse().unwrap() }
    }

    /// One that has read these records, the keys first.
    fn restored(log: &[Sent]) -> Self {
        // Commands without an id of their own have their offset as one.
        let mut users = Self { offset: 1_000, ..Self::new() };
        users.restore(log).unwrap();
        users
    }

    fn restore(&mut self, log: &[Sent]) -> Result<(), RestoreError> {
        for (is_key, end) in [(true, true), (false, false)] {
            for (offset, sent) in (0..).zip(log.iter().filter(|sent| (sent.topic == Topic::Keys) == is_key)) {
                let headers = sent.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
                let stored = Stored { offset, key: sent.key.as_deref(), value: sent.value.as_deref(), headers };
                self.partition.restore(sent.topic, &stored, self.now)?;
            }
            if end {
                Decider::end_keys(&mut self.partition)?;
            }
        }
        Ok(())
    }

    /// What is sent when nothing else is.
    fn idle(&mut self) -> Vec<Sent> {
        let mut sink = Collect::default();
        while Decider::is_snapshotting(&self.partition) {
            Decider::send_snapshots(&mut self.partition, self.now, &mut sink);
            self.partition.commit(self.now);
        }
        sink.0
    }

    /// A command that names a time.
    fn schedule(&mut self, id: &str, command: &str, body: &str) -> Vec<Sent> {
        let value = self.kind.encode(command, body.as_bytes()).unwrap().value.unwrap();
        let sent = self.take(ID.as_bytes(), &value, &[(names::ID, id), (names::NOT_BEFORE, "2026-02-01T00:00:00Z")]);
        self.partition.commit(self.now);
        sent
    }

    /// What is due, as it is sent and then decided.
    fn release(&mut self) -> Vec<Sent> {
        self.now = "2026-02-01T00:00:01Z".parse().unwrap();
        let mut sink = Collect::default();
        Decider::release_due(&mut self.partition, self.now, &mut sink);
        self.partition.commit(self.now);
        for sent in sink.0.clone().iter().filter(|sent| sent.topic == Topic::Commands) {
            self.offset += 1;
            let headers = sent.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref()));
            let (key, value) = (sent.key.as_deref(), sent.value.as_deref());
            let record = CommandRecord::new(self.offset, Some(sent.timestamp_ms), key, value, headers);
            self.partition.decide(&record, self.now, &mut sink).unwrap();
            self.partition.commit(self.now);
        }
        sink.0
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

    /// What becomes of a command: its address is granted, where it asks for one. What it asks with is left out.
    fn send(&mut self, command: &str, body: &str) -> Vec<Sent> {
        let sent = self.decide(command, body);
        self.partition.commit(self.now);
        let claim = sent.iter().find_map(|sent| sent.header(names::CLAIM));
        let decided = match claim {
            None => sent,
            Some(claim) => {
                let mut keys = sent;
                keys.retain(|sent| sent.topic == Topic::Keys);
                let mut decided = self.grant(&claim);
                decided.retain(|sent| sent.topic != Topic::Scheduled);
                keys.into_iter().chain(decided).collect()
            }
        };
        decided.into_iter().filter(|sent| sent.topic != Topic::Commands).collect()
    }

    fn grant(&mut self, claim: &str) -> Vec<Sent> {
        let step = StepId { aggregate_type: "user", aggregate_id: ID, step: &format!("reserve-{claim}") };
        let answer = self.kind.conclude(step.step, Answer::Accepted).unwrap().unwrap();
        let answered = self.take(ID.as_bytes(), &answer, &[(names::ID, &format!("{step}-accepted"))]);
        self.partition.commit(self.now);
        let copy = answered.into_iter().find(|sent| sent.topic == Topic::Commands).unwrap();
        let headers: Vec<_> = copy.headers.iter().map(|(name, _)| (name.clone(), copy.header(name).unwrap())).collect();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let decided = self.take(ID.as_bytes(), copy.value.as_deref().unwrap(), &headers);
        self.partition.commit(self.now);
        decided
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
    let lost = lost.into_iter().find(|sent| sent.topic == Topic::Keys).unwrap();
    assert_ne!(lost.value, log[0].value, "what was rolled back was never there");
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

/// A snapshot of everybody, as the partition would write it.
fn snapshots(users: &mut Users) -> Vec<Sent> {
    Decider::begin_checkpoint(&mut users.partition, 9);
    users.idle()
}

#[test]
fn g13_a_key_that_can_t_be_read_stops_its_aggregate_however_its_state_is_kept() {
    let mut users = Users::new();
    let mut log = users.send("register", REGISTER);
    let kept = snapshots(&mut users);
    // Somebody else's key opens, so the master key is the right one.
    let mut other = log[0].clone();
    let wrapped = users.partition.wrapped("other", &DataKey::generate()).unwrap();
    (other.key, other.value) = (Some(b"other".to_vec()), Some(wrapped));
    log.insert(0, other);
    let cut = |value: &mut Vec<u8>| value.truncate(value.len() - 1);
    let changed = |value: &mut Vec<u8>| *value.last_mut().unwrap() ^= 1;
    for damage in [cut as fn(&mut Vec<u8>), changed] {
        let mut damaged = log.clone();
        damage(damaged[1].value.as_mut().unwrap());
        let from_snapshot: Vec<_> = damaged[..2].iter().chain(&kept).cloned().collect();
        for log in [damaged, from_snapshot] {
            let mut users = Users::restored(&log);
            for (command, body) in [("deactivate", "{}"), ("change-email", r#"{"email": "other@example.org"}"#)] {
                let refused = users.send(command, body);
                assert_eq!(topics(&refused), [Topic::Outcomes], "no key takes the place of the one that is damaged");
                assert_eq!(users.reason(&refused).as_deref(), Some("unavailable"), "nobody may take it for erased");
            }
            assert!(users.partition.make_key(ID).is_err());
            let scheduled = users.schedule("c9", "change-email", r#"{"email": "other@example.org"}"#);
            assert_eq!(topics(&scheduled), [Topic::Outcomes]);
        }
        // What it was is not lost: a later record of the key counts.
        let from_snapshot: Vec<_> = [&log[..2], &kept[..]].concat();
        let mut users = Users::restored(&from_snapshot);
        let sent = users.send("change-email", r#"{"email": "other@example.org"}"#);
        assert_eq!(topics(&sent), [Topic::Events, Topic::Outcomes]);
    }
}

#[test]
fn g13_a_master_key_that_is_missing_or_another_one_stops_the_partition_and_says_where() {
    let log = Users::new().send("register", REGISTER);
    for (masters, says) in [(K2, "master key k1"), (OTHER, "under the name k1")] {
        let error = Users::with(masters).restore(&log).unwrap_err().0;
        for part in [says, "user.keys/", ID, "offset 0", "MILLRACE_MASTER_KEYS"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        // What comes later counts: an erasure, or the same key under a master key that is there.
        let tombstone = Sent { value: None, ..log[0].clone() };
        Users::with(masters).restore(&[log[0].clone(), tombstone]).unwrap();
    }
}

#[test]
fn keys_are_encrypted_anew_and_what_was_before_is_cleared_out_also_after_a_restart() {
    let mut log = Users::new().send("register", REGISTER);
    let both = format!("{K2},{K1}");
    let mut users = Users::with(&both);
    users.restore(&log).unwrap();
    let renewed = users.idle();
    assert_eq!(topics(&renewed), [Topic::Keys]);
    assert!(
        renewed.iter().all(|sent| sent.timestamp_ms == users.now.as_millisecond()),
        "segments are closed by our time"
    );
    log.extend(renewed);
    // The one that has done it is gone before it has seen to the files.
    let mut next = Users::with(&both);
    next.restore(&log).unwrap();
    let swept = next.idle();
    assert_eq!(topics(&swept), [Topic::Keys], "{swept:?}");
    assert!(swept[0].key.as_deref().is_some_and(|key| key.starts_with(b"sweep/")) && swept[0].value.is_none());
}

#[test]
fn g14_what_was_handled_before_a_restart_is_swept_out_of_the_files() {
    let mut users = Users::restored(&[]);
    users.partition.keys.due_now();
    assert_eq!(topics(&users.idle()), [Topic::Commands], "a command may have come just before");
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
fn g14_no_key_is_left_for_somebody_who_is_not_there() {
    let mut users = Users::new();
    let refused = users.schedule("c1", "change-email", r#"{"email": "zq@example.org"}"#);
    assert_eq!(topics(&refused), [Topic::Outcomes]);
    assert_eq!(users.reason(&refused).as_deref(), Some("user-not-found"));

    // Cancelled before it was due.
    let waits = users.schedule("c2", "register", REGISTER);
    assert_eq!(topics(&waits), [Topic::Outcomes, Topic::Keys, Topic::Scheduled]);
    users.offset += 1;
    let headers = [(names::ID.as_bytes(), Some(&b"c3"[..])), (names::CANCELS.as_bytes(), Some(&b"c2"[..]))];
    let cancel = CommandRecord::new(users.offset, None, Some(ID.as_bytes()), None, headers.into_iter());
    let mut sink = Collect::default();
    users.partition.decide(&cancel, users.now, &mut sink).unwrap();
    assert_eq!(topics(&sink.0), [Topic::Outcomes, Topic::Commands, Topic::Scheduled, Topic::Keys]);
    assert_eq!((sink.0[3].key.as_deref(), &sink.0[3].value), (Some(ID.as_bytes()), &None));
    users.partition.commit(users.now);

    // One that comes to nothing, when its time has come.
    let body = REGISTER.replace("}", r#", "address": null}"#);
    users.schedule("c4", "register", &body);
    let mut other = Users::restored(&[]);
    other.schedule("c4", "register", &body);
    let value = other.kind.encode("deactivate", b"{}").unwrap().value.unwrap();
    let later = [(names::ID, "c5"), (names::NOT_BEFORE, "2026-02-01T00:00:00Z")];
    other.take(ID.as_bytes(), &value, &later);
    other.partition.commit(other.now);
    let headers = [(names::ID.as_bytes(), Some(&b"c6"[..])), (names::CANCELS.as_bytes(), Some(&b"c4"[..]))];
    let cancel = CommandRecord::new(9_999, None, Some(ID.as_bytes()), None, headers.into_iter());
    let mut sink = Collect::default();
    other.partition.decide(&cancel, other.now, &mut sink).unwrap();
    other.partition.commit(other.now);
    assert!(!topics(&sink.0).contains(&Topic::Keys), "another one waits under the key");
    let released = other.release();
    let last = released.last().unwrap();
    assert_eq!((last.topic, &last.value), (Topic::Keys, &None), "{released:?}");

    // Whoever does register keeps it.
    let released = users.release();
    let asks = [Topic::Commands, Topic::Scheduled, Topic::Outcomes, Topic::Scheduled, Topic::Commands];
    assert_eq!(topics(&released), asks);
    let decided = users.grant(&released[3].header(names::CLAIM).unwrap());
    assert_eq!(topics(&decided), [Topic::Events, Topic::Outcomes, Topic::Commands, Topic::Scheduled]);
    users.send("erase", "{}");
    let refused = users.schedule("c7", "change-email", r#"{"email": "zq@example.org"}"#);
    assert_eq!(users.reason(&refused).as_deref(), Some("user-erased"));
    assert_eq!(topics(&refused), [Topic::Outcomes], "no key is made for somebody who was erased");
}

#[test]
fn g13_what_waits_stays_in_its_topic_when_its_key_can_t_be_read() {
    let mut users = Users::new();
    let mut log = users.send("register", REGISTER);
    log.extend(users.schedule("c1", "change-email", r#"{"email": "other@example.org"}"#));
    let other = {
        let mut other = log[0].clone();
        other.key = Some(b"other".to_vec());
        other.value = Some(users.partition.wrapped("other", &DataKey::generate()).unwrap());
        other
    };
    let mut damaged = log.clone();
    *damaged[0].value.as_mut().unwrap().last_mut().unwrap() ^= 1;
    damaged.insert(0, other);
    let mut blind = Users::restored(&damaged);
    assert_eq!(blind.release(), [], "nothing is sent, so nothing is taken out");
    let headers = [(names::ID.as_bytes(), Some(&b"c2"[..])), (names::CANCELS.as_bytes(), Some(&b"c1"[..]))];
    let cancel = CommandRecord::new(9_999, None, Some(ID.as_bytes()), None, headers.into_iter());
    let mut sink = Collect::default();
    blind.partition.decide(&cancel, blind.now, &mut sink).unwrap();
    assert_eq!(blind.reason(&sink.0).as_deref(), Some("unavailable"), "it does wait");
    // With the key it is released.
    assert_eq!(topics(&Users::restored(&log).release())[..2], [Topic::Commands, Topic::Scheduled]);
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
