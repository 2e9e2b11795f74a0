//! The rules as sentences, and that whatever happens on the way no address has two users.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::{prelude::*, sample::Index};

use super::{
    Rejection::{EmailTaken, NotReserved},
    *,
};
use crate::domain::{
    AggregateId, Projection,
    kit::given,
    process::{About, When},
    user::{self, User},
};

type Log = Vec<Event>;

fn holder(id: &str) -> AggregateId {
    AggregateId::new(id).unwrap()
}

fn reserve(id: &str, claim: &str) -> Command {
    Command::ReserveEmail(ReserveEmail { holder: holder(id), claim: claim.into() })
}

fn confirm(id: &str) -> Command {
    Command::ConfirmReservation(ConfirmReservation { holder: holder(id) })
}

fn release(id: &str, claim: Option<&str>) -> Command {
    Command::ReleaseReservation(ReleaseReservation { holder: holder(id), claim: claim.map(str::to_owned) })
}

fn settle(claim: &str, is_held: bool) -> Command {
    Command::SettleClaim(SettleClaim { claim: claim.into(), is_held })
}

const LOOK_INTO: Command = Command::LookIntoReservation(LookIntoReservation {});
const ASKED: Event = Event::HolderAsked(HolderAsked {});
const CONFIRMED: Event = Event::ReservationConfirmed(ReservationConfirmed {});
const RELEASED: Event = Event::ReservationReleased(ReservationReleased {});

fn reserved(id: &str, claim: &str) -> Event {
    Event::EmailReserved(EmailReserved { holder: id.into(), claim: claim.into() })
}

/// Kept for u under claim c, and confirmed.
fn kept() -> [Log; 2] {
    [vec![reserved("u", "c")], vec![reserved("u", "c"), CONFIRMED]]
}

#[test]
fn an_address_is_kept_for_the_first_who_asks() {
    given::<EmailReservation>([]).when(reserve("u", "c")).then([reserved("u", "c")]);
    for log in kept() {
        given::<EmailReservation>(log.clone()).when(reserve("u", "c")).then([]);
        given::<EmailReservation>(log.clone()).when(reserve("v", "d")).then_rejected(EmailTaken);
        // Should this command be refused, it must not release what the other one has.
        given::<EmailReservation>(log).when(reserve("u", "d")).then_rejected(EmailTaken);
    }
    given::<EmailReservation>([reserved("u", "c"), RELEASED]).when(reserve("v", "d")).then([reserved("v", "d")]);
}

#[test]
fn who_has_it_confirms_and_releases_it() {
    let [kept, confirmed] = kept();
    given::<EmailReservation>(kept.clone()).when(confirm("u")).then([CONFIRMED]);
    for log in [kept.clone(), confirmed.clone()] {
        given::<EmailReservation>(log.clone()).when(release("u", None)).then([RELEASED]);
        for other in [confirm("v"), release("v", None), release("u", Some("d"))] {
            given::<EmailReservation>(log.clone()).when(other).then_rejected(NotReserved);
        }
    }
    given::<EmailReservation>(kept).when(release("u", Some("c"))).then([RELEASED]);
    given::<EmailReservation>(confirmed).when(release("u", Some("c"))).then_rejected(NotReserved);
    for command in [confirm("u"), release("u", None), LOOK_INTO, settle("c", true), settle("c", false)] {
        given::<EmailReservation>([]).when(command).then_rejected(NotReserved);
    }
}

#[test]
fn one_that_nobody_confirms_is_looked_into() {
    let [kept, confirmed] = kept();
    given::<EmailReservation>(kept.clone()).when(LOOK_INTO).then([ASKED]);
    given::<EmailReservation>(kept.clone()).when(settle("c", true)).then([CONFIRMED]);
    given::<EmailReservation>(kept.clone()).when(settle("c", false)).then([RELEASED]);
    given::<EmailReservation>(kept).when(settle("d", false)).then_rejected(NotReserved);
    for command in [LOOK_INTO, settle("c", true), settle("c", false)] {
        given::<EmailReservation>(confirmed.clone()).when(command).then_rejected(NotReserved);
    }
}

#[test]
fn the_process_asks_the_holder_and_sets_a_deadline() {
    let held = Reservation::Reserved(Held { holder: "u".into(), claim: "c".into() });
    let deadlines = |errands: &[Errand]| errands.iter().filter(|errand| errand.when != When::Now).count();
    let first = process::react("r", &Reservation::Free, &reserved("u", "c"));
    assert_eq!((first.len(), deadlines(&first)), (1, 1));
    let asked = process::react("r", &held, &ASKED);
    assert_eq!((asked.len(), deadlines(&asked)), (2, 1));
    let ask = asked[0].command::<UserAccount>().unwrap();
    assert_eq!(*ask, user::Command::AskClaim(user::AskClaim { reservation: "r".into(), claim: "c".into() }));
    assert_eq!((asked[0].aggregate_id.as_str(), asked[0].step_id(7).as_str()), ("u", "ask-c"));
    for last in [CONFIRMED, RELEASED] {
        let dropped = process::react("r", &held, &last);
        assert_eq!(dropped.iter().map(|errand| errand.when).collect::<Vec<_>>(), [When::Never]);
    }
    assert_eq!(process::conclude("ask-c", Answer::Accepted), Some(settle("c", true)));
    assert_eq!(process::conclude("ask-c", Answer::Refused("user-erased")), Some(settle("c", false)));
    assert_eq!(process::conclude("another", Answer::Accepted), None);
}

#[test]
fn only_those_whom_it_concerns_may_send_a_command() {
    for of_user in [reserve("u", "c"), confirm("u"), release("u", None)] {
        assert_eq!(EmailReservation::sender("r", &of_user), Some(("user", "u")));
    }
    for own in [LOOK_INTO, settle("c", true)] {
        assert_eq!(EmailReservation::sender("r", &own), Some(("email-reservation", "r")));
    }
}

#[test]
fn g04_an_audit_finds_every_broken_rule_and_a_state_comes_back_from_its_snapshot() {
    let log = [reserved("u", "c"), ASKED, CONFIRMED, RELEASED, reserved("v", "d"), RELEASED];
    let (mut state, mut view) = (Reservation::default(), None);
    for (sequence, event) in (1..).zip(&log) {
        assert_eq!(audit::audit(&state, event), Ok(()));
        state.evolve(event);
        assert_eq!(Reservation::from(Snapshot::from(&state)), state);
        view = Some(Reservations::fold(view.take(), "r", &meta(sequence), event).unwrap());
    }
    assert_eq!(view.unwrap().status, Status::Free);
    for event in [ASKED, CONFIRMED, RELEASED] {
        assert!(audit::audit(&Reservation::Free, &event).is_err(), "{event:?}");
        assert!(Reservations::fold(None, "r", &meta(1), &event).is_err(), "{event:?}");
    }
    for log in kept() {
        let mut state = Reservation::default();
        log.iter().for_each(|event| state.evolve(event));
        assert!(audit::audit(&state, &reserved("v", "d")).unwrap_err().contains("two"));
    }
}

fn meta(sequence: u64) -> crate::envelope::EventMeta {
    let sequence = sequence.to_string();
    let headers = [("ce_time", "2026-01-31T12:00:00.000000Z"), ("ce_sequence", &sequence), ("ce_commandid", "c")];
    crate::envelope::EventMeta::read(headers.into_iter().map(|(name, value)| (name, Some(value.as_bytes())))).unwrap()
}

#[test]
fn rejections_are_listed_as_refusals() {
    let all = [EmailTaken, NotReserved];
    assert_eq!(all.len(), EmailReservation::REFUSALS.len());
    for rejection in all {
        let json = serde_json::to_value(&rejection).unwrap();
        assert!(EmailReservation::REFUSALS.iter().any(|refusal| json["reason"] == refusal.name), "{rejection:?}");
    }
}

/// A command on its way.
#[derive(Clone, Debug)]
enum Message {
    /// For a reservation, from a user or from itself.
    Reservation(String, String, Command),
    /// For a user, from a client or from a process.
    User(String, String, user::Command),
    /// A command of a user that has waited under this claim.
    Copy(String, String),
}

impl Message {
    /// In whose partition it lies.
    fn place(&self) -> String {
        match self {
            Self::Reservation(id, ..) => format!("reservation {id}"),
            Self::User(id, ..) | Self::Copy(id, _) => format!("user {id}"),
        }
    }

    /// Whether somebody will do it again should it be in vain, as when its aggregate can't be read at the time.
    fn may_be_in_vain(&self) -> bool {
        match self {
            Self::Reservation(_, _, Command::ReleaseReservation(release)) => release.claim.is_some(),
            Self::Reservation(_, _, Command::LookIntoReservation(_)) => false,
            Self::Reservation(..) => true,
            Self::User(_, _, command) => UserAccount::about(command).is_some(),
            Self::Copy(..) => true,
        }
    }
}

/// Users and reservations without a pipeline between them, and what the pipeline does for commands that ask. What is sent to
/// one of them arrives in the order in which it was sent, since it lies in one partition; beyond that in any order, and again.
#[derive(Default)]
struct World {
    users: BTreeMap<String, User>,
    reservations: BTreeMap<String, Reservation>,
    /// By user and claim: a command, and its answer.
    waiting: BTreeMap<(String, String), (user::Command, Option<bool>)>,
    /// Reservations that have a deadline.
    deadlines: BTreeSet<String>,
    on_its_way: BTreeMap<String, VecDeque<Message>>,
    /// As writers remember outcomes, by place and command id.
    remembered: BTreeMap<(String, String), Result<(), String>>,
    count: usize,
}

impl World {
    fn send(&mut self, message: Message) {
        self.on_its_way.entry(message.place()).or_default().push_back(message);
    }

    fn next(&mut self, which: Index, stays: bool) -> Option<Message> {
        let waiting: Vec<String> =
            self.on_its_way.iter().filter(|(_, all)| !all.is_empty()).map(|(at, _)| at.clone()).collect();
        let queue = self.on_its_way.get_mut(waiting.get(which.index(waiting.len().max(1)))?)?;
        if stays { queue.front().cloned() } else { queue.pop_front() }
    }

    fn number(&mut self) -> usize {
        self.count += 1;
        self.count
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Reservation(id, command_id, command) => self.at_reservation(&id, command_id, &command),
            Message::User(id, command_id, command) => self.at_user(&id, command_id, command),
            Message::Copy(id, claim) => {
                if let Some((command, answer)) = self.waiting.get(&(id.clone(), claim.clone())).cloned() {
                    self.judge(&id, &claim, &command, Some(answer));
                }
            }
        }
    }

    fn at_reservation(&mut self, id: &str, command_id: String, command: &Command) {
        let key = (format!("reservation {id}"), command_id.clone());
        if !self.remembered.contains_key(&key) {
            let mut state = self.reservations.get(id).cloned().unwrap_or_default();
            let decided = decide::decide(&state, command);
            self.remembered.insert(key.clone(), decided.as_ref().map(|_| ()).map_err(reason));
            for event in decided.unwrap_or_default() {
                assert_eq!(audit::audit(&state, &event), Ok(()));
                for errand in process::react(id, &state, &event) {
                    match errand.when {
                        When::Never => {
                            self.deadlines.remove(id);
                        }
                        When::After(_) | When::At(_) => {
                            self.deadlines.insert(id.to_owned());
                        }
                        When::Now => {
                            let ask = errand.command::<UserAccount>().unwrap().clone();
                            let command_id = format!("{id}/{}", errand.step_id(0));
                            self.send(Message::User(errand.aggregate_id, command_id, ask));
                        }
                    }
                }
                state.evolve(&event);
            }
            self.reservations.insert(id.to_owned(), state);
        }
        let Some(("user", user)) = EmailReservation::sender(id, command) else { return };
        let (user, step) = (user.to_owned(), command_id.rsplit('/').next().unwrap_or_default());
        if let Some(told) = UserAccount::conclude(step, answer(&self.remembered[&key])) {
            self.send(Message::User(user, format!("{command_id}-told"), told));
        }
    }

    fn at_user(&mut self, id: &str, command_id: String, command: user::Command) {
        let key = (format!("user {id}"), command_id.clone());
        if !self.remembered.contains_key(&key) {
            match UserAccount::about(&command) {
                Some(About::Awaited(claim)) if self.waiting.contains_key(&(id.to_owned(), claim.to_owned())) => return,
                Some(About::Awaited(_)) | None => {}
                Some(About::Granted(claim) | About::Denied(claim, _)) => {
                    let is_granted = matches!(UserAccount::about(&command), Some(About::Granted(_)));
                    self.remembered.insert(key, Ok(()));
                    if let Some((_, answer)) = self.waiting.get_mut(&(id.to_owned(), claim.to_owned())) {
                        *answer = Some(is_granted);
                        self.send(Message::Copy(id.to_owned(), claim.to_owned()));
                    }
                    return;
                }
            }
            self.judge(id, &command_id, &command, None);
        }
        let Some(("email-reservation", reservation)) = UserAccount::sender(id, &command) else { return };
        let (reservation, step) = (reservation.to_owned(), command_id.rsplit('/').next().unwrap_or_default());
        if let Some(told) = process::conclude(step, answer(&self.remembered[&key])) {
            self.send(Message::Reservation(reservation, format!("{command_id}-told"), told));
        }
    }

    /// As `partition/asking.rs` does it. A client's command has its id as its claim.
    fn judge(&mut self, id: &str, claim: &str, command: &user::Command, answered: Option<Option<bool>>) {
        let state = self.users.get(id).cloned().unwrap_or_default();
        let key = (id.to_owned(), claim.to_owned());
        let question = UserAccount::question(id, command, claim);
        let decided = match UserAccount::decide(&state, command, jiff::Timestamp::UNIX_EPOCH) {
            Ok(events) if UserAccount::must_ask(&state, command) => match answered {
                Some(Some(true)) => Ok(events),
                Some(Some(false)) => Err(TAKEN.to_owned()),
                Some(None) => return,
                None => {
                    self.waiting.insert(key, (command.clone(), None));
                    return self.errand(id, &question.unwrap().ask);
                }
            },
            decided => decided.map_err(|why| reason(&why)),
        };
        if answered.is_some() {
            self.waiting.remove(&key);
            if decided.is_err() && answered != Some(Some(false)) {
                self.errand(id, &question.unwrap().undo);
            }
        }
        self.remembered
            .insert((format!("user {id}"), claim.to_owned()), decided.as_ref().map(|_| ()).map_err(Clone::clone));
        let mut state = state;
        for event in decided.unwrap_or_default() {
            assert_eq!(UserAccount::audit(&state, &event), Ok(()));
            for errand in UserAccount::react(id, &state, &event) {
                self.errand(id, &errand);
            }
            if UserAccount::erases(&event) {
                // What waits is dropped with the key.
                self.waiting.retain(|(user, _), _| user != id);
            }
            state.evolve(&event);
        }
        self.users.insert(id.to_owned(), state);
    }

    fn errand(&mut self, user: &str, errand: &Errand) {
        let command = errand.command::<EmailReservation>().unwrap().clone();
        let command_id = format!("{user}/{}", errand.step_id(self.number() as u64));
        self.send(Message::Reservation(errand.aggregate_id.clone(), command_id, command));
    }

    /// One that has waited for long.
    fn ask_again(&mut self, which: Index) {
        let one = self.waiting.iter().nth(which.index(self.waiting.len().max(1)));
        let Some(((id, claim), (command, answer))) = one.map(|(key, value)| (key.clone(), value.clone())) else {
            return;
        };
        match answer {
            Some(_) => self.send(Message::Copy(id, claim)),
            None => {
                let question = UserAccount::question(&id, &command, &claim).unwrap();
                self.errand(&id, &question.ask);
            }
        }
    }

    fn pass_deadline(&mut self, which: Index) {
        let one = self.deadlines.iter().nth(which.index(self.deadlines.len().max(1))).cloned();
        if let Some(id) = one {
            self.deadlines.remove(&id);
            let number = self.number();
            self.send(Message::Reservation(id, format!("look-into-{number}"), LOOK_INTO));
        }
    }

    fn users_of(&self, reservation: &str) -> Vec<&str> {
        let has = |state: &User| state.reservation() == Some(reservation);
        self.users.iter().filter(|(_, state)| has(state)).map(|(id, _)| id.as_str()).collect()
    }
}

fn reason(why: &impl serde::Serialize) -> String {
    serde_json::to_value(why).unwrap()["reason"].as_str().unwrap().to_owned()
}

fn answer(outcome: &Result<(), String>) -> Answer<'_> {
    match outcome {
        Ok(()) => Answer::Accepted,
        Err(reason) => Answer::Refused(reason),
    }
}

/// What a client may want.
fn wish(which: usize, reservation: usize) -> user::Command {
    let reservation = Some(format!("r{reservation}"));
    let email = || "a@example.org".to_owned().try_into().unwrap();
    let line = || "A".to_owned().try_into().unwrap();
    match which {
        0..4 => user::Command::RegisterUser(user::RegisterUser {
            given_name: line(),
            family_name: line(),
            email: email(),
            address: None,
            reservation,
        }),
        4..8 => user::Command::ChangeEmail(user::ChangeEmail { email: email(), reservation }),
        8 => user::Command::DeactivateUser(user::DeactivateUser {}),
        9 => user::Command::ReactivateUser(user::ReactivateUser {}),
        _ => user::Command::EraseUser(user::EraseUser {}),
    }
}

proptest! {
    #[test]
    fn g04_no_address_ever_has_two_users_and_none_is_kept_for_nobody(
        wishes in prop::collection::vec((0..4usize, 0..11usize, 0..3usize), 1..25),
        order in prop::collection::vec((any::<Index>(), 0..14u8), 0..400),
        last in any::<Index>(),
    ) {
        let mut world = World::default();
        let mut wishes = wishes.into_iter().enumerate();
        for (which, how) in order {
            match how {
                // Again, and later once more. A client's command lies there once.
                0 => {
                    let is_client = |message: &Message| matches!(message, Message::User(_, id, _) if id.starts_with("client"));
                    if let Some(message) = world.next(which, true).filter(|message| !is_client(message)) {
                        world.arrive(message);
                    }
                }
                1 => world.ask_again(which),
                2 => world.pass_deadline(which),
                // The window of an answer is over.
                3 => {
                    let key = world.remembered.keys().nth(which.index(world.remembered.len().max(1))).cloned();
                    key.and_then(|key| world.remembered.remove(&key));
                }
                // In vain.
                4 => {
                    if world.next(which, true).is_some_and(|message| message.may_be_in_vain()) {
                        world.next(which, false);
                    }
                }
                5..8 => {
                    if let Some((number, (user, what, reservation))) = wishes.next() {
                        let command = wish(what, reservation);
                        world.send(Message::User(format!("u{user}"), format!("client-{number}"), command));
                    }
                }
                _ => {
                    if let Some(message) = world.next(which, false) {
                        world.arrive(message);
                    }
                }
            }
            for reservation in ["r0", "r1", "r2"] {
                let users = world.users_of(reservation);
                prop_assert!(users.len() < 2, "{} has {:?}", reservation, users);
            }
        }
        loop {
            while let Some(message) = world.next(last, false) {
                world.arrive(message);
            }
            if world.waiting.is_empty() && world.deadlines.is_empty() {
                break;
            }
            for _ in 0..world.waiting.len() {
                world.ask_again(last);
            }
            for _ in 0..world.deadlines.len() {
                world.pass_deadline(last);
            }
        }
        for (id, state) in &world.reservations {
            match state {
                Reservation::Free => prop_assert_eq!(world.users_of(id), Vec::<&str>::new()),
                Reservation::Confirmed(held) => prop_assert_eq!(world.users_of(id), [held.holder.as_str()]),
                Reservation::Reserved(_) => prop_assert!(false, "{} is kept for nobody", id),
            }
        }
        let taken = |state: &User| state.reservation().map(str::to_owned);
        for reservation in world.users.values().filter_map(taken) {
            prop_assert!(world.reservations.contains_key(&reservation));
        }
    }
}
