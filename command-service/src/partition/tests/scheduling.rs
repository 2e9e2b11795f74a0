//! Commands that wait until they are due, without Kafka.

use super::*;

const DEPOSIT: &str = r#"{"amount_minor": 100}"#;
const DUE: &str = "2026-01-01T01:00:00.000000Z";

impl Bench {
    /// What was sent into the topic of scheduled commands or back into that of commands, as if it was read from there.
    fn read(&mut self, sent: &Sent) -> CommandRecord {
        self.offset += 1;
        let headers = sent.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref()));
        CommandRecord::new(
            self.offset - 1,
            Some(sent.timestamp_ms),
            sent.key.as_deref(),
            sent.value.as_deref(),
            headers,
        )
    }

    fn reason(&self, sent: &Sent) -> Option<String> {
        self.outcome(sent).reason
    }

    fn release(&mut self) -> Vec<Sent> {
        let mut sink = Collect::default();
        self.partition.release_due(self.now, &mut sink);
        self.partition.commit(self.now);
        sink.0
    }

    fn scheduled(&mut self) -> Vec<Sent> {
        self.send("deposit", DEPOSIT, &[(names::ID, "c1"), (names::NOT_BEFORE, DUE)])
    }

    fn cancel(&mut self, id: &str, cancels: &str) -> Vec<Sent> {
        let record = self.record(None, &[(names::ID, id), (names::CANCELS, cancels)]);
        let sent = self.decide(&record);
        self.partition.commit(self.now);
        sent
    }
}

#[test]
fn g02_a_command_waits_until_it_is_due_and_is_then_decided_once() {
    let mut bench = Bench::opened();
    let sent = bench.scheduled();
    assert_eq!(topics(&sent), [Topic::Outcomes, Topic::Scheduled]);
    assert_eq!(bench.reason(&sent[0]).as_deref(), Some("scheduled"));
    assert_eq!(sent[1].key.as_deref(), Some(&b"acc-42/c1"[..]));
    // The same once more changes nothing; another one under its id is refused.
    let again = bench.scheduled();
    assert_eq!(topics(&again), [Topic::Outcomes]);
    assert_eq!(bench.reason(&again[0]).as_deref(), Some("scheduled"));
    let other = bench.send("deposit", r#"{"amount_minor": 7}"#, &[(names::ID, "c1"), (names::NOT_BEFORE, DUE)]);
    assert_eq!(bench.reason(&other[0]).as_deref(), Some("idempotency-key-reused"));
    let other = bench.send("deposit", r#"{"amount_minor": 7}"#, &[(names::ID, "c1")]);
    assert_eq!(bench.reason(&other[0]).as_deref(), Some("idempotency-key-reused"));

    let due: Timestamp = DUE.parse().unwrap();
    assert_eq!(bench.partition.next_due(), Some(due));
    assert_eq!(topics(&bench.release()), [] as [Topic; 0]);
    bench.now = due;
    let released = bench.release();
    assert_eq!(topics(&released), [Topic::Commands, Topic::Scheduled]);
    assert_eq!((released[1].key.as_deref(), released[1].value.as_deref()), (Some(&b"acc-42/c1"[..]), None));
    assert_eq!((bench.partition.next_due(), bench.partition.scheduled()), (None, (0, 0)));
    let record = bench.read(&released[0]);
    let decided = bench.decide(&record);
    assert_eq!(topics(&decided), [Topic::Events, Topic::Outcomes]);
    assert_eq!(decided[0].header(names::TIME).as_deref(), Some(DUE));
    assert_eq!(decided[1].header(names::ORIGIN), sent[0].header(names::ORIGIN));
    assert_eq!(bench.outcome(&decided[1]).command_id, "c1");
    bench.partition.commit(bench.now);
    let repeated = bench.scheduled();
    assert_eq!(repeated[0].header(names::REPLAYED).as_deref(), Some("1"));
}

#[test]
fn a_clock_that_is_behind_makes_it_wait_once_more() {
    let mut bench = Bench::opened();
    bench.scheduled();
    bench.now = DUE.parse().unwrap();
    let released = bench.release();
    bench.now = "2026-01-01T00:59:59Z".parse().unwrap();
    let record = bench.read(&released[0]);
    let waits = bench.decide(&record);
    assert_eq!(topics(&waits), [Topic::Outcomes, Topic::Scheduled]);
    assert_eq!(waits[1].header(names::FORWARDED), None);
}

#[test]
fn a_time_that_has_passed_makes_nobody_wait_and_dates_the_events() {
    let mut bench = Bench::opened();
    bench.now = "2026-01-01T02:00:00Z".parse().unwrap();
    let value = bench.value("deposit", DEPOSIT);
    // Written before it was due, and read after.
    let mut record = bench.record(Some(&value), &[(names::NOT_BEFORE, DUE)]);
    record.timestamp_ms = Some(1);
    let sent = bench.decide(&record);
    assert_eq!(topics(&sent), [Topic::Events, Topic::Outcomes]);
    assert_eq!(sent[0].header(names::TIME).as_deref(), Some(DUE));
}

#[test]
fn sent_again_without_a_time_it_waits_no_longer() {
    let mut bench = Bench::opened();
    bench.scheduled();
    let sent = bench.send("deposit", DEPOSIT, &[(names::ID, "c1")]);
    assert_eq!(topics(&sent), [Topic::Events, Topic::Outcomes, Topic::Scheduled]);
    assert_eq!(sent[2].value, None);
    assert_eq!(bench.partition.next_due(), None);
}

#[test]
fn g01_sent_again_it_waits_on_while_it_can_t_be_decided() {
    let mut bench = Bench::opened();
    bench.scheduled();
    bench.partition.aggregates.get_mut(ID).unwrap().unreadable = Some("of a later release".into());
    let sent = bench.send("deposit", DEPOSIT, &[(names::ID, "c1")]);
    assert_eq!(topics(&sent), [Topic::Outcomes]);
    assert_eq!(bench.reason(&sent[0]).as_deref(), Some("unavailable"));
    assert!(bench.partition.next_due().is_some());
}

#[test]
fn what_is_cancelled_is_refused_and_stays_so() {
    let mut bench = Bench::opened();
    bench.scheduled();
    let sent = bench.cancel("x1", "c1");
    assert_eq!(topics(&sent), [Topic::Outcomes, Topic::Commands, Topic::Scheduled]);
    let outcome = bench.outcome(&sent[0]);
    assert_eq!((outcome.command_id.as_str(), outcome.outcome, outcome.version), ("x1", Verdict::Accepted, 2));
    let record = bench.read(&sent[1]);
    let refused = bench.decide(&record);
    bench.partition.commit(bench.now);
    let outcome = bench.outcome(&refused[0]);
    assert_eq!((outcome.command_id.as_str(), outcome.reason.as_deref()), ("c1", Some("cancelled")));
    let again = bench.cancel("x1", "c1");
    assert_eq!(again[0].header(names::REPLAYED).as_deref(), Some("1"));
    let none = bench.cancel("x2", "c1");
    assert_eq!(bench.reason(&none[0]).as_deref(), Some("not-scheduled"));
    let repeated = bench.send("deposit", DEPOSIT, &[(names::ID, "c1")]);
    assert_eq!(bench.reason(&repeated[0]).as_deref(), Some("cancelled"));
}

#[test]
fn g02_what_is_cancelled_does_not_come_back_by_a_repeat_that_overtakes_it() {
    let mut bench = Bench::opened();
    bench.scheduled();
    let cancelled = bench.cancel("x1", "c1").remove(1);
    bench.scheduled();
    let record = bench.read(&cancelled);
    let refused = bench.decide(&record);
    assert_eq!(topics(&refused), [Topic::Outcomes, Topic::Scheduled]);
    assert_eq!((refused[1].value.as_deref(), bench.partition.scheduled()), (None, (0, 0)));
}

#[test]
fn g01_what_was_let_in_waits_on_while_it_can_t_be_decided() {
    let mut bench = Bench::opened();
    bench.scheduled();
    bench.now = DUE.parse().unwrap();
    let released = bench.release();
    bench.partition.settings.room = Room::new(0, 1);
    bench.partition.aggregates.get_mut(ID).unwrap().unreadable = Some("of a later release".into());
    let record = bench.read(&released[0]);
    let waits = bench.decide(&record);
    assert_eq!(topics(&waits), [Topic::Outcomes, Topic::Scheduled]);
    bench.partition.aggregates.get_mut(ID).unwrap().unreadable = None;
    bench.now += Duration::from_secs(31);
    let released = bench.release();
    let record = bench.read(&released[0]);
    assert_eq!(topics(&bench.decide(&record)), [Topic::Events, Topic::Outcomes]);
}

#[test]
fn g02_a_batch_that_is_taken_back_was_never_scheduled_nor_released() {
    let mut bench = Bench::opened();
    let value = bench.value("deposit", DEPOSIT);
    let record = bench.record(Some(&value), &[(names::ID, "c1"), (names::NOT_BEFORE, DUE)]);
    bench.decide(&record);
    bench.partition.rollback();
    assert_eq!(bench.partition.next_due(), None);
    bench.decide(&record);
    bench.partition.commit(bench.now);
    bench.now = DUE.parse().unwrap();
    let mut sink = Collect::default();
    bench.partition.release_due(bench.now, &mut sink);
    bench.partition.rollback();
    assert_eq!(topics(&bench.release()), topics(&sink.0));
}

#[test]
fn g01_what_waits_is_restored_from_its_topic() {
    let mut bench = Bench::opened();
    let first = bench.scheduled().remove(1);
    let second = bench.send("deposit", DEPOSIT, &[(names::ID, "c2"), (names::NOT_BEFORE, DUE)]).remove(1);
    bench.now = DUE.parse().unwrap();
    let expected = bench.release();
    let mut partition = Partition::new(bench.kind.clone(), settings(&bench.runtime, &bench.waiters));
    let gone = Sent { value: None, ..first.clone() };
    let garbage = Sent { key: None, ..first.clone() };
    for (offset, record) in [&first, &first, &gone, &second, &first, &garbage].into_iter().enumerate() {
        record.restore(&mut partition, offset as i64, bench.now);
    }
    assert_eq!(partition.scheduled().0, 2);
    bench.partition = partition;
    let mut released = bench.release();
    // The first one came back after the second.
    released.rotate_left(2);
    assert_eq!(released, expected);
}

#[test]
fn what_is_due_between_two_milliseconds_is_not_released_early_after_a_restore_either() {
    let mut bench = Bench::opened();
    let due = "2026-01-01T01:00:00.000400Z";
    let sent = bench.send("deposit", DEPOSIT, &[(names::ID, "c1"), (names::NOT_BEFORE, due)]).remove(1);
    let mut partition = Partition::new(bench.kind.clone(), settings(&bench.runtime, &bench.waiters));
    sent.restore(&mut partition, 0, bench.now);
    assert!(partition.next_due() >= Some(due.parse().unwrap()));
    assert_eq!(partition.next_due(), bench.partition.next_due());
}

#[test]
fn g13_what_can_t_be_scheduled_is_told_and_harms_nothing() {
    let mut bench = Bench::opened();
    let value = bench.value("deposit", DEPOSIT);
    for headers in [&[(names::NOT_BEFORE, "tomorrow")][..], &[(names::CANCELS, "")], &[(names::CANCELS, "c1")]] {
        let record = bench.record(Some(&value), headers);
        assert_eq!(topics(&bench.decide(&record)), [Topic::DeadLetters], "{headers:?}");
    }
    bench.partition.settings.room = Room::new(1, 1);
    assert_eq!(bench.scheduled().len(), 2, "the first one is let in");
    let sent = bench.send("deposit", DEPOSIT, &[(names::ID, "c2"), (names::NOT_BEFORE, DUE)]);
    assert_eq!(topics(&sent), [Topic::Outcomes]);
    assert_eq!(bench.reason(&sent[0]).as_deref(), Some("unavailable"));
}
