//! Users who ask for an e-mail address, and the reservations that answer them, without Kafka.

use std::collections::VecDeque;

use millrace_shared::domain::process::{self, StepId};

use super::*;

const REGISTER: &str = r#"{"given_name": "Ada", "family_name": "King", "email": "ada@example.org"}"#;
const CHANGE: &str = r#"{"email": "Ada@Example.org"}"#;
const OTHER: &str = r#"{"given_name": "Ada", "family_name": "King", "email": "other@example.org"}"#;
/// Places in [`types`].
const USERS: usize = 2;
const RESERVATIONS: usize = 3;

/// A partition of each, which holds everybody, and what lies in their command topics.
struct World {
    kind: Arc<TypeOf<UserAccount>>,
    users: Partition<UserAccount>,
    reservations: Partition<EmailReservation>,
    waiters: Waiters,
    runtime: Runtime,
    offset: i64,
    now: Timestamp,
    on_its_way: VecDeque<Sent>,
    /// What was sent to the other topics.
    log: Vec<Sent>,
}

impl World {
    fn new() -> Self {
        let (runtime, waiters) = (Runtime::new().unwrap(), Waiters::default());
        let settings =
            |kind| Settings { slot: Slot { kind, partition: 0 }, partitions: 1, ..super::settings(&runtime, &waiters) };
        let kind = Arc::new(TypeOf::<UserAccount>::unregistered());
        Self {
            users: Partition::new(kind.clone(), settings(USERS)),
            reservations: Partition::new(Arc::new(TypeOf::unregistered()), settings(RESERVATIONS)),
            kind,
            waiters,
            runtime,
            offset: 0,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            on_its_way: VecDeque::new(),
            log: Vec::new(),
        }
    }

    /// A client's command is decided, in a batch of its own. What follows on it is on its way.
    fn tell(&mut self, id: &str, command: &str, body: &str, command_id: &str) -> Vec<Sent> {
        let record = self.record(id, command, body, &[(names::ID, command_id)]);
        self.take(USERS, &record)
    }

    fn record(&mut self, id: &str, command: &str, body: &str, headers: &[(&str, &str)]) -> CommandRecord {
        let value = self.kind.encode(command, body.as_bytes()).unwrap().value.unwrap();
        self.offset += 1;
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        let millis = Some(self.now.as_millisecond());
        CommandRecord::new(self.offset, millis, Some(id.as_bytes()), Some(&value), headers)
    }

    fn take(&mut self, kind: usize, record: &CommandRecord) -> Vec<Sent> {
        let mut sink = Of(kind, Collect::default());
        let decider: &mut dyn Decider = if kind == USERS { &mut self.users } else { &mut self.reservations };
        decider.decide(record, self.now, &mut sink).unwrap();
        decider.commit(self.now);
        self.file(sink.1.0)
    }

    /// What was sent: commands are on their way.
    fn file(&mut self, sent: Vec<Sent>) -> Vec<Sent> {
        let (commands, others): (Vec<_>, Vec<_>) =
            sent.clone().into_iter().partition(|sent| sent.topic == Topic::Commands);
        self.on_its_way.extend(commands);
        self.log.extend(others);
        sent
    }

    fn next(&mut self) -> Option<Vec<Sent>> {
        let sent = self.on_its_way.pop_front()?;
        let record = self.read(&sent);
        Some(self.take(sent.kind, &record))
    }

    fn read(&mut self, sent: &Sent) -> CommandRecord {
        self.offset += 1;
        let headers = sent.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref()));
        let millis = Some(sent.timestamp_ms);
        CommandRecord::new(self.offset, millis, sent.key.as_deref(), sent.value.as_deref(), headers)
    }

    /// Until nothing is on its way.
    fn settle(&mut self) {
        while self.next().is_some() {}
    }

    /// Time passes, and what is due then comes.
    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        for kind in [USERS, RESERVATIONS] {
            let mut sink = Of(kind, Collect::default());
            let decider: &mut dyn Decider = if kind == USERS { &mut self.users } else { &mut self.reservations };
            decider.release_due(self.now, &mut sink);
            decider.commit(self.now);
            self.file(sink.1.0);
        }
    }

    fn outcome(&self, sent: &Sent) -> Outcome {
        let value = sent.value.as_deref().unwrap();
        let OutcomeRecord::Outcome(outcome) =
            self.kind.outcomes.decode(value, Foreign::Refuse, self.runtime.handle()).unwrap();
        outcome
    }

    /// What a command id was answered, one after the other; `None` is accepted.
    fn answers(&self, id: &str, command_id: &str) -> Vec<Option<String>> {
        let outcomes = self.log.iter().filter(|sent| sent.topic == Topic::Outcomes).map(|sent| self.outcome(sent));
        let of = outcomes.filter(|outcome| outcome.aggregate_id == id && outcome.command_id == command_id);
        of.map(|outcome| outcome.reason).collect()
    }

    #[track_caller]
    fn is_answered(&self, id: &str, command_id: &str, expected: &[&str]) {
        let answers = self.answers(id, command_id);
        let answers: Vec<&str> = answers.iter().map(|reason| reason.as_deref().unwrap_or("accepted")).collect();
        assert_eq!(answers, expected);
    }

    /// Takes what is on its way to the users away.
    fn lose(&mut self) -> Vec<Sent> {
        let (lost, left) = self.on_its_way.drain(..).partition(|sent| sent.kind == USERS);
        self.on_its_way = left;
        lost.into_iter().collect::<Vec<_>>()
    }

    /// The users' partition is taken over by somebody who has read its topics.
    fn restart(&mut self) {
        let settings = self.users.settings.clone();
        self.users = Partition::new(self.kind.clone(), settings);
        let is_read = |topic: Topic| [Topic::Keys, Topic::Events, Topic::Outcomes, Topic::Scheduled].contains(&topic);
        let mut log: Vec<Sent> =
            self.log.iter().filter(|sent| sent.kind == USERS && is_read(sent.topic)).cloned().collect();
        log.sort_by_key(|sent| sent.topic != Topic::Keys);
        for (offset, sent) in (0..).zip(&log) {
            let headers = sent.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let stored = Stored { offset, key: sent.key.as_deref(), value: sent.value.as_deref(), headers };
            self.users.restore(sent.topic, &stored, self.now).unwrap();
        }
    }
}

/// What a partition of this type sends.
struct Of(usize, Collect);

impl Sink for Of {
    fn send(&mut self, record: OutRecord<'_>) {
        self.1.send_to(self.0, record);
    }

    fn send_to(&mut self, kind: usize, record: OutRecord<'_>) {
        self.1.send_to(kind, record);
    }
}

#[test]
fn g04_who_wants_an_address_waits_until_it_is_reserved() {
    let mut world = World::new();
    let asked = world.tell("u", "register", REGISTER, "c1");
    assert_eq!(topics(&asked), [Topic::Outcomes, Topic::Keys, Topic::Scheduled, Topic::Commands]);
    assert_eq!((asked[3].kind, world.outcome(&asked[0]).reason.as_deref()), (RESERVATIONS, Some("pending")));
    let claim = asked[2].header(names::CLAIM).unwrap();
    assert_eq!(asked[3].header(names::ID), Some(format!("user/u/reserve-{claim}")));
    let reserved = world.next().unwrap();
    assert_eq!(topics(&reserved), [Topic::Events, Topic::Outcomes, Topic::Commands, Topic::Scheduled]);
    let answered = world.next().unwrap();
    assert_eq!(topics(&answered), [Topic::Outcomes, Topic::Scheduled, Topic::Commands]);
    let decided = world.next().unwrap();
    assert_eq!(topics(&decided), [Topic::Events, Topic::Outcomes, Topic::Commands, Topic::Scheduled]);
    assert_eq!((decided[3].key.as_deref(), &decided[3].value), (Some(&b"u/c1"[..]), &None));
    assert_eq!(decided[1].header(names::ORIGIN), asked[0].header(names::ORIGIN));
    assert_eq!(world.users.scheduled(), (0, 0));
    world.settle();
    assert_eq!(world.reservations.scheduled().0, 0, "it is confirmed");
    world.is_answered("u", "c1", &["pending", "accepted"]);
    let again = world.tell("u", "register", REGISTER, "c1");
    assert_eq!(again[0].header(names::REPLAYED).as_deref(), Some("1"));

    // In another spelling it is theirs already.
    let changed = world.tell("u", "change-email", CHANGE, "c2");
    assert_eq!(topics(&changed), [Topic::Events, Topic::Outcomes]);
}

#[test]
fn g04_an_address_is_one_user_s_until_they_leave_it() {
    let mut world = World::new();
    world.tell("u", "register", REGISTER, "c1");
    world.tell("v", "register", REGISTER, "c1");
    world.settle();
    world.is_answered("u", "c1", &["pending", "accepted"]);
    world.is_answered("v", "c1", &["pending", "email-taken"]);
    assert_eq!(world.users.scheduled(), (0, 0));
    let again = world.tell("v", "register", REGISTER, "c1");
    assert_eq!(again[0].header(names::REPLAYED).as_deref(), Some("1"), "refusals are remembered");
    // What the rules refuse asks nobody.
    assert_eq!(topics(&world.tell("v", "change-email", CHANGE, "c2")), [Topic::Outcomes]);

    world.tell("u", "change-email", r#"{"email": "augusta@example.org"}"#, "c2");
    world.settle();
    world.tell("v", "register", REGISTER, "c3");
    world.settle();
    world.is_answered("v", "c3", &["pending", "accepted"]);
    for (id, command, body) in [("v", "erase", "{}"), ("w", "register", REGISTER)] {
        world.tell(id, command, body, "c4");
        world.settle();
    }
    world.is_answered("w", "c4", &["pending", "accepted"]);
}

#[test]
fn g02_one_that_is_asked_for_twice_is_decided_once() {
    let mut world = World::new();
    world.tell("u", "register", REGISTER, "c1");
    let impatient = world.tell("u", "register", REGISTER, "c1");
    assert_eq!(topics(&impatient), [Topic::Outcomes]);
    let other = world.tell("u", "register", OTHER, "c1");
    assert_eq!(world.outcome(&other[0]).reason.as_deref(), Some("idempotency-key-reused"));
    // Another command for the same: the first one has come first.
    world.tell("u", "register", REGISTER, "c2");
    world.settle();
    world.is_answered("u", "c1", &["pending", "pending", "idempotency-key-reused", "accepted"]);
    world.is_answered("u", "c2", &["pending", "user-already-registered"]);
    world.pass(61);
    world.settle();
    world.tell("v", "register", REGISTER, "c1");
    world.settle();
    world.is_answered("v", "c1", &["pending", "email-taken"]);
}

#[test]
fn g01_g16_a_full_room_refuses_new_questions_but_none_that_was_let_in() {
    let mut world = World::new();
    let due = "2026-01-01T00:00:30Z";
    let later = world.record("u", "register", REGISTER, &[(names::ID, "c1"), (names::NOT_BEFORE, due)]);
    world.take(USERS, &later);
    world.users.settings.room = Room::new(0, 1);
    world.tell("v", "register", OTHER, "c1");
    world.is_answered("v", "c1", &["unavailable"]);
    world.pass(31);
    world.settle();
    world.is_answered("u", "c1", &["scheduled", "pending", "accepted"]);
}

#[test]
fn what_is_refused_after_all_gives_the_address_back() {
    let mut world = World::new();
    world.tell("u", "register", OTHER, "c1");
    world.settle();
    world.tell("u", "change-email", CHANGE, "c2");
    world.tell("u", "deactivate", "{}", "c3");
    world.settle();
    world.is_answered("u", "c2", &["pending", "user-inactive"]);
    world.tell("v", "register", REGISTER, "c1");
    world.settle();
    world.is_answered("v", "c1", &["pending", "accepted"]);
}

#[test]
fn g01_a_lost_answer_is_asked_for_again() {
    let mut world = World::new();
    world.tell("u", "register", REGISTER, "c1");
    world.next();
    let lost = world.lose();
    world.pass(29);
    world.settle();
    world.is_answered("u", "c1", &["pending"]);
    world.pass(2);
    let again = world.on_its_way[0].clone();
    assert_eq!(again.kind, RESERVATIONS);
    world.settle();
    world.is_answered("u", "c1", &["pending", "accepted"]);
    // The first answer comes late.
    world.on_its_way.extend(lost);
    world.settle();
    world.is_answered("u", "c1", &["pending", "accepted"]);

    // Its copy can't be decided at the time.
    world.tell("v", "register", OTHER, "c1");
    world.next();
    world.next();
    assert_eq!(world.lose().len(), 1);
    world.pass(31);
    world.settle();
    world.is_answered("v", "c1", &["pending", "accepted"]);
}

#[test]
fn g01_what_waits_for_an_answer_outlives_a_restart() {
    let mut world = World::new();
    world.tell("u", "register", REGISTER, "c1");
    world.restart();
    world.next();
    world.restart();
    world.next();
    world.restart();
    world.settle();
    world.is_answered("u", "c1", &["pending", "accepted"]);
    world.restart();
    assert_eq!(world.users.scheduled(), (0, 0));

    world.tell("v", "register", OTHER, "c1");
    world.next();
    world.lose();
    world.restart();
    world.pass(31);
    world.settle();
    world.is_answered("v", "c1", &["pending", "accepted"]);
}

#[test]
fn g02_a_batch_that_is_taken_back_has_neither_asked_nor_answered() {
    let mut world = World::new();
    let record = world.record("u", "register", REGISTER, &[(names::ID, "c1")]);
    let mut sink = Collect::default();
    Decider::decide(&mut world.users, &record, world.now, &mut sink).unwrap();
    world.users.rollback();
    assert_eq!(world.users.scheduled(), (0, 0));
    world.take(USERS, &record);
    world.next();
    let answer = world.on_its_way.pop_front().unwrap();
    let answer = world.read(&answer);
    let mut sink = Collect::default();
    Decider::decide(&mut world.users, &answer, world.now, &mut sink).unwrap();
    world.users.rollback();
    let impatient = world.tell("u", "register", REGISTER, "c1");
    assert_eq!(world.outcome(&impatient[0]).reason.as_deref(), Some("pending"), "it was not answered");
    world.take(USERS, &answer);
    world.settle();
    world.is_answered("u", "c1", &["pending", "pending", "accepted"]);
}

#[test]
fn g14_nobody_can_say_of_a_command_that_it_was_answered() {
    let mut world = World::new();
    world.tell("u", "register", REGISTER, "c1");
    world.settle();
    let (claim, origin) = ("0".repeat(32), "user.commands/0/999999");
    let forged = [
        (names::ID, "c1"),
        (names::ORIGIN, origin),
        (names::FORWARDED, "1"),
        (names::RELEASED, "1"),
        (names::CLAIM, &claim),
        (names::ASKED, "2026-01-01T00:00:00Z"),
        (names::ANSWER, "granted"),
    ];
    let record = world.record("v", "register", REGISTER, &forged);
    assert_eq!(topics(&world.take(USERS, &record)), [Topic::Outcomes]);
    world.is_answered("v", "c1", &["unavailable"]);
    // Nor answer in the reservation's name, but under the id of its step.
    let answer = process::Answer::Accepted;
    let value = world.kind.conclude(&format!("reserve-{claim}"), answer).unwrap().unwrap();
    for command_id in ["c2", "user/w/reserve-1-accepted"] {
        world.offset += 1;
        let headers = [(names::ID.as_bytes(), Some(command_id.as_bytes()))];
        let record = CommandRecord::new(world.offset, None, Some(b"v"), Some(&value), headers.into_iter());
        assert_eq!(topics(&world.take(USERS, &record))[0], Topic::DeadLetters, "{command_id}");
    }
}

#[test]
fn an_address_that_nobody_confirms_is_released() {
    let mut world = World::new();
    world.tell("u", "register", OTHER, "c1");
    world.settle();
    // Kept for somebody who is erased while they are asked for it.
    world.tell("u", "change-email", CHANGE, "c2");
    world.tell("u", "erase", "{}", "c3");
    world.settle();
    world.is_answered("u", "c2", &["pending", "user-erased"]);
    world.tell("v", "register", REGISTER, "c1");
    world.settle();
    world.is_answered("v", "c1", &["pending", "email-taken"]);
    world.pass(61);
    world.settle();
    world.tell("v", "register", REGISTER, "c2");
    world.settle();
    world.is_answered("v", "c2", &["pending", "accepted"]);
    world.pass(61);
    assert!(world.on_its_way.is_empty(), "nothing is looked into any more");
}

#[test]
fn an_address_is_not_released_while_somebody_waits_for_it() {
    let mut world = World::new();
    world.tell("u", "register", REGISTER, "c1");
    world.next();
    let answer = world.lose();
    for _ in 0..3 {
        world.now += Duration::from_secs(61);
        let mut sink = Of(RESERVATIONS, Collect::default());
        Decider::release_due(&mut world.reservations, world.now, &mut sink);
        world.reservations.commit(world.now);
        world.file(sink.1.0);
        world.settle();
    }
    let of_process = |sent: &&Sent| sent.header(names::POSITION).is_some() && sent.kind == USERS;
    let asked: Vec<Outcome> = world.log.iter().filter(of_process).map(|sent| world.outcome(sent)).collect();
    let asked = asked.iter().filter(|outcome| StepId::parse(&outcome.command_id).is_some());
    assert_eq!(asked.map(|outcome| outcome.reason.as_deref()).collect::<Vec<_>>(), [Some("pending"); 3]);
    world.on_its_way.extend(answer);
    world.settle();
    world.is_answered("u", "c1", &["pending", "accepted"]);
    world.pass(61);
    world.settle();
    assert_eq!(world.reservations.scheduled().0, 0, "it is confirmed");
}

#[test]
fn what_waits_for_an_answer_is_not_cancelled_as_if_it_was_scheduled() {
    let mut world = World::new();
    world.tell("u", "register", REGISTER, "c1");
    world.offset += 1;
    let headers =
        [(names::ID, "x1"), (names::CANCELS, "c1")].map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
    let record = CommandRecord::new(world.offset, None, Some(b"u"), None, headers.into_iter());
    let refused = world.take(USERS, &record);
    assert_eq!(world.outcome(&refused[0]).reason.as_deref(), Some("not-scheduled"));
    world.settle();
    world.is_answered("u", "c1", &["pending", "accepted"]);
}

#[test]
fn what_was_scheduled_asks_when_it_is_due() {
    let mut world = World::new();
    let due = "2026-01-01T01:00:00Z";
    let record = world.record("u", "register", REGISTER, &[(names::ID, "c1"), (names::NOT_BEFORE, due)]);
    world.take(USERS, &record);
    assert!(world.on_its_way.is_empty(), "it may be cancelled, and keeps no address from others");
    world.pass(3_600);
    world.settle();
    world.is_answered("u", "c1", &["scheduled", "pending", "accepted"]);
}

#[test]
fn whoever_waits_for_the_answer_hears_of_the_decision_alone() {
    let mut world = World::new();
    let record = world.record("u", "register", REGISTER, &[(names::ID, "c1")]);
    let fingerprint = world.kind.encode("register", REGISTER.as_bytes()).unwrap().fingerprint;
    let slot = Slot { kind: USERS, partition: 0 };
    let awaited = Awaited { slot, aggregate_id: "u".into(), command_id: "c1".into(), fingerprint };
    let (mut waiting, _) = world.waiters.register(awaited);
    world.take(USERS, &record);
    world.settle();
    let answer = world.runtime.block_on(waiting.answer()).unwrap();
    assert_eq!((answer.outcome.outcome, answer.replayed), (Verdict::Accepted, false));
    assert_eq!(answer.command_offset, Some(record.offset), "where the command lay that is answered");
}
