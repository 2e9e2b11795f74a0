//! The rules as sentences.

use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::json;

use super::{
    Rejection::{NotWaitedFor, UserActive, UserAlreadyRegistered, UserInactive, UserNotFound},
    *,
};
use crate::{
    codec::Codec,
    domain::{CommandError, Counted, Fields, Projection, email_reservation, kit::given},
    envelope::EventMeta,
    personal::{self, DataKey, HashSecret, Personal, Secret},
    records::Records,
};

type Log = Vec<Event>;

fn command(name: &str, body: serde_json::Value) -> Command {
    UserAccount::command(name, Fields::parse(body.to_string().as_bytes()).unwrap()).unwrap()
}

fn register() -> Command {
    let address = json!({"street": "Main Street 1", "postal_code": "53111", "city": "Bonn", "country": "DE"});
    let body = json!({"given_name": "Ada", "family_name": "King", "email": "ada@example.org", "address": address});
    command("register", body)
}

fn open(text: &str) -> Personal<String> {
    Personal::Open(text.into())
}

fn home() -> PostalAddress {
    PostalAddress {
        street: "Main Street 1".into(),
        postal_code: "53111".into(),
        city: "Bonn".into(),
        country: "DE".into(),
    }
}

fn registered() -> Event {
    Event::UserRegistered(UserRegistered {
        given_name: open("Ada"),
        family_name: open("King"),
        email: open("ada@example.org"),
        address: Personal::Open(Some(home())),
        reservation: Personal::Open(None),
    })
}

fn deactivated() -> Event {
    Event::UserDeactivated(UserDeactivated {})
}

fn erased(was_active: bool) -> Event {
    Event::UserErased(UserErased { was_active })
}

/// All that can be asked, but to register.
fn others() -> [(Command, Event); 6] {
    [
        (
            command("change-name", json!({"given_name": "Augusta", "family_name": "Byron"})),
            Event::NameChanged(NameChanged { given_name: open("Augusta"), family_name: open("Byron") }),
        ),
        (
            command("change-email", json!({"email": "augusta@example.org"})),
            Event::EmailChanged(EmailChanged { email: open("augusta@example.org"), reservation: Personal::Open(None) }),
        ),
        (
            command(
                "change-address",
                json!({"street": "Main Street 1", "postal_code": "53111", "city": "Bonn", "country": "DE"}),
            ),
            Event::AddressChanged(AddressChanged { address: Personal::Open(home()) }),
        ),
        (command("deactivate", json!({})), deactivated()),
        (command("reactivate", json!({})), Event::UserReactivated(UserReactivated {})),
        (command("erase", json!({})), erased(true)),
    ]
}

#[test]
fn a_user_is_registered_once() {
    given::<UserAccount>([]).when(register()).then([registered()]);
    given::<UserAccount>([registered()]).when(register()).then_rejected(UserAlreadyRegistered);
    given::<UserAccount>([registered(), deactivated()]).when(register()).then_rejected(UserAlreadyRegistered);
    for (command, _) in others() {
        given::<UserAccount>([]).when(command).then_rejected(UserNotFound);
    }
}

#[test]
fn a_user_changes_while_active() {
    for (command, event) in others() {
        match command {
            Command::ReactivateUser(_) => {
                given::<UserAccount>([registered()]).when(command.clone()).then_rejected(UserActive);
                given::<UserAccount>([registered(), deactivated()]).when(command).then([event]);
            }
            Command::EraseUser(_) => {
                given::<UserAccount>([registered()]).when(command.clone()).then([event]);
                given::<UserAccount>([registered(), deactivated()]).when(command).then([erased(false)]);
            }
            command => {
                given::<UserAccount>([registered()]).when(command.clone()).then([event]);
                given::<UserAccount>([registered(), deactivated()]).when(command).then_rejected(UserInactive);
            }
        }
    }
}

#[test]
fn nothing_can_be_done_with_a_user_who_was_erased() {
    given::<UserAccount>([registered(), erased(true)]).when(register()).then_rejected(Rejection::UserErased);
    for (command, _) in others() {
        given::<UserAccount>([registered(), erased(true)]).when(command).then_rejected(Rejection::UserErased);
    }
}

fn prepared(name: &str, body: serde_json::Value) -> Command {
    let mut command = command(name, body);
    UserAccount::prepare(&mut command, &HashSecret::new("a secret for tests").unwrap());
    command
}

fn reservation_of(email: &str) -> String {
    let Command::ChangeEmail(change) = prepared("change-email", json!({"email": email})) else { unreachable!() };
    change.reservation.unwrap()
}

#[test]
fn spellings_of_an_address_have_one_reservation_which_tells_nothing_without_the_secret() {
    let it = reservation_of("ada@example.org");
    assert_eq!(it.len(), 64);
    assert!(crate::domain::AggregateId::new(&it).is_ok());
    assert_eq!(it, reservation_of("ADA@Example.ORG"));
    assert_ne!(it, reservation_of("ada@example.com"));
    // Composed or not; the host as people write it, or as DNS has it.
    assert_eq!(reservation_of("\u{e4}@ex\u{e4}mple.org"), reservation_of("A\u{308}@xn--exmple-cua.org"));
    let mut other = command("change-email", json!({"email": "ada@example.org"}));
    UserAccount::prepare(&mut other, &HashSecret::new("another secret for tests").unwrap());
    let Command::ChangeEmail(other) = other else { unreachable!() };
    assert_ne!(other.reservation, Some(it));
}

/// A user with this address, as events have it that were written since there are reservations.
fn with(email: &str) -> Event {
    let Event::UserRegistered(registered) = registered() else { unreachable!() };
    Event::UserRegistered(UserRegistered {
        email: open(email),
        reservation: Personal::Open(Some(reservation_of(email))),
        ..registered
    })
}

fn state_of(log: &[Event]) -> User {
    let mut state = User::default();
    log.iter().for_each(|event| state.evolve(event));
    state
}

#[test]
fn who_wants_another_address_asks_first() {
    let change = |email: &str| prepared("change-email", json!({"email": email}));
    let body = json!({"given_name": "Ada", "family_name": "King", "email": "ada@example.org"});
    assert!(UserAccount::must_ask(&User::Unknown, &prepared("register", body)));
    let user = state_of(&[with("ada@example.org")]);
    assert!(UserAccount::must_ask(&user, &change("augusta@example.org")));
    assert!(!UserAccount::must_ask(&user, &change("Ada@example.org")), "it is theirs");
    // From before there were reservations: also for the address that they have.
    assert!(UserAccount::must_ask(&state_of(&[registered()]), &change("ada@example.org")));
    assert!(!UserAccount::must_ask(&user, &command("erase", json!({}))));

    let question = UserAccount::question("u", &change("ada@example.org"), "c").unwrap();
    assert_eq!(question.ask.aggregate_id, reservation_of("ada@example.org"));
    assert_eq!((question.ask.step_id(3), question.undo.step_id(3)), ("reserve-c".to_owned(), "undo-c".to_owned()));
    let granted = UserAccount::conclude("reserve-c", Answer::Accepted).unwrap();
    assert_eq!(UserAccount::about(&granted), Some(About::Granted("c")));
    let denied = UserAccount::conclude("reserve-c", Answer::Refused("email-taken")).unwrap();
    assert_eq!(UserAccount::about(&denied), Some(About::Denied("c", "email-taken")));
    for step in ["undo-c", "confirm-3", "release-3"] {
        assert_eq!(UserAccount::conclude(step, Answer::Accepted), None, "{step}");
    }
}

/// Reservation, step and command of each errand.
fn asked(before: &[Event], event: &Event) -> Vec<(String, String, email_reservation::Command)> {
    let errands = UserAccount::react("u", &state_of(before), event);
    let of = |errand: &Errand| errand.command::<EmailReservation>().unwrap().clone();
    errands.iter().map(|errand| (errand.aggregate_id.clone(), errand.step_id(3), of(errand))).collect()
}

#[test]
fn what_a_user_gets_is_confirmed_and_what_they_leave_is_released() {
    let holder = || crate::domain::AggregateId::new("u").unwrap();
    let confirm = |email: &str| {
        let confirm = email_reservation::ConfirmReservation { holder: holder() };
        (reservation_of(email), "confirm-3".to_owned(), email_reservation::Command::ConfirmReservation(confirm))
    };
    let release = |email: &str| {
        let release = email_reservation::ReleaseReservation { holder: holder(), claim: None };
        (reservation_of(email), "release-3".to_owned(), email_reservation::Command::ReleaseReservation(release))
    };
    let (ada, augusta) = ("ada@example.org", "augusta@example.org");
    let changed = |email: &str| {
        let reservation = Personal::Open(Some(reservation_of(email)));
        Event::EmailChanged(EmailChanged { email: open(email), reservation })
    };
    assert_eq!(asked(&[], &with(ada)), [confirm(ada)]);
    assert_eq!(asked(&[with(ada)], &changed(augusta)), [confirm(augusta), release(ada)]);
    assert_eq!(asked(&[with(ada)], &changed(ada)), []);
    assert_eq!(asked(&[registered()], &changed(ada)), [confirm(ada)]);
    for event in [deactivated(), others()[0].1.clone()] {
        assert_eq!(asked(&[with(ada)], &event), []);
    }
    assert_eq!(asked(&[with(ada), changed(augusta)], &erased(true)), [release(augusta)]);
    assert_eq!(asked(&[registered()], &erased(true)), []);
}

#[test]
fn a_user_tells_whether_they_have_an_address() {
    let ask = |email: &str| Command::AskClaim(AskClaim { reservation: reservation_of(email), claim: "c".into() });
    given::<UserAccount>([with("ada@example.org")]).when(ask("ada@example.org")).then([]);
    given::<UserAccount>([with("ada@example.org")]).when(ask("b@example.org")).then_rejected(NotWaitedFor);
    given::<UserAccount>([]).when(ask("ada@example.org")).then_rejected(UserNotFound);
    let gone = [with("ada@example.org"), erased(true)];
    given::<UserAccount>(gone).when(ask("ada@example.org")).then_rejected(Rejection::UserErased);
    let answer = Command::AnswerClaim(AnswerClaim { claim: "c".into(), is_granted: true });
    given::<UserAccount>([with("ada@example.org")]).when(answer).then_rejected(NotWaitedFor);
}

/// Every way on from every state.
fn logs() -> Vec<Log> {
    let [name, email, address, deactivated, reactivated, _] = others().map(|(_, event)| event);
    vec![
        vec![registered(), name, email.clone(), address, deactivated.clone(), reactivated, erased(true)],
        vec![registered(), email, deactivated, erased(false)],
    ]
}

#[test]
fn a_state_comes_back_from_its_snapshot_and_nothing_personal_is_left_of_an_erased_one() {
    let codec = Codec::<Snapshot>::datums().unwrap();
    let key = DataKey::generate();
    for log in logs() {
        let mut state = User::default();
        for event in log {
            assert_eq!(audit::audit(&state, &event), Ok(()));
            state.evolve(&event);
            let mut snapshot = Snapshot::from(&state);
            personal::seal_snapshot::<UserAccount>(&mut snapshot, Some(&key), "u").unwrap();
            let mut bytes = Vec::new();
            codec.encode_datum(&snapshot, &mut bytes).unwrap();
            let mut read = codec.decode_datum(0, 1, &bytes).unwrap();
            personal::open_snapshot::<UserAccount>(&mut read, Some(&key), "u").unwrap();
            assert_eq!(User::from(read), state);
        }
        assert_eq!(state, User::Erased);
        assert_eq!(serde_json::to_value(&state).unwrap(), json!({"status": "erased"}));
    }
}

#[test]
fn every_event_is_written_sealed_and_folds_when_its_key_is_gone() {
    let codec = Codec::<Event>::datums().unwrap();
    let key = DataKey::generate();
    for log in logs() {
        let (mut known, mut erased, mut view) = (User::default(), User::default(), None);
        for (sequence, event) in (1..).zip(log) {
            let mut written = event.clone();
            assert_eq!(
                personal::is_open::<UserAccount>(&mut written),
                codec.encode_datum(&event, &mut vec![]).is_err()
            );
            personal::seal_event::<UserAccount>(&mut written, Some(&key), "u").unwrap();
            let mut bytes = Vec::new();
            codec.encode_datum(&written, &mut bytes).unwrap();
            for text in ["Ada", "King", "Augusta", "Byron", "example.org", "Main Street", "53111", "Bonn"] {
                assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text} in {event:?}");
            }
            let version = Event::TYPES[event.index()].versions.len() - 1;
            let read = || codec.decode_datum(event.index(), version, &bytes).unwrap();
            let (mut opened, mut gone) = (read(), read());
            personal::open_event::<UserAccount>(&mut opened, Some(&key), "u").unwrap();
            personal::open_event::<UserAccount>(&mut gone, None, "u").unwrap();
            assert_eq!(opened, event);
            known.evolve(&opened);
            erased.evolve(&gone);
            assert_eq!(std::mem::discriminant(&known), std::mem::discriminant(&erased));
            let folded = Users::fold(view.take(), "u", &meta(sequence), &gone).unwrap();
            assert_eq!((&folded.given_name, &folded.email, &folded.address), (&None, &None, &None));
            view = Some(folded);
        }
    }
}

#[test]
fn g12_names_of_one_field_are_split_when_they_are_opened() {
    let codec = Codec::<Event>::datums().unwrap();
    let key = DataKey::generate();
    let read = |record: &str, datum: &dyn Fn(&GenericDatumWriter<'_>, &mut Vec<u8>) -> usize| {
        let index = Event::TYPES.iter().position(|known| known.name == record).unwrap();
        let schema = apache_avro::Schema::parse_str(Event::TYPES[index].versions[0]).unwrap();
        let mut bytes = Vec::new();
        datum(&GenericDatumWriter::builder(&schema).human_readable(false).build().unwrap(), &mut bytes);
        codec.decode_datum(index, 0, &bytes).unwrap()
    };
    let sealed = |text: &str| {
        let mut field = open(text);
        field.seal(Some(&(&key).into()), "user/u").unwrap();
        field
    };
    for (whole, given, family) in [
        ("Ada King", "Ada", "King"),
        (" Ada Augusta\tKing ", "Ada Augusta", "King"),
        ("King", "", "King"),
        ("", "", ""),
    ] {
        let renamed = upcasts::v1::UserRenamed { name: sealed(whole) };
        let read = || read("UserRenamed", &|writer, out| writer.write_ser(out, &renamed).unwrap());
        let (mut opened, mut gone) = (read(), read());
        assert_eq!(opened, gone);
        assert!(codec.encode_datum(&opened, &mut vec![]).is_err(), "it would be read as another name");
        personal::open_event::<UserAccount>(&mut opened, Some(&key), "u").unwrap();
        let (given_name, family_name) = (open(given), open(family));
        assert_eq!(opened, Event::NameChanged(NameChanged { given_name, family_name }));
        personal::open_event::<UserAccount>(&mut gone, None, "u").unwrap();
        let (given_name, family_name) = (Personal::Erased, Personal::Erased);
        assert_eq!(gone, Event::NameChanged(NameChanged { given_name, family_name }));
    }
    let (email, address) = (sealed("ada@example.org"), Personal::Erased);
    let enrolled = upcasts::v1::UserEnrolled { name: sealed("Ada King"), email, address };
    let mut opened = read("UserEnrolled", &|writer, out| writer.write_ser(out, &enrolled).unwrap());
    personal::open_event::<UserAccount>(&mut opened, Some(&key), "u").unwrap();
    assert_eq!(
        opened,
        Event::UserRegistered(UserRegistered {
            given_name: open("Ada"),
            family_name: open("King"),
            email: open("ada@example.org"),
            address: Personal::Erased,
            reservation: Personal::Erased,
        })
    );
}

fn meta(sequence: u64) -> EventMeta {
    let (id, time) = (format!("user/u/{sequence}"), "2026-01-31T12:00:00.000000Z");
    let sequence = sequence.to_string();
    let headers =
        [("ce_id", id.as_str()), ("ce_time", time), ("ce_sequence", sequence.as_str()), ("ce_commandid", "c")];
    EventMeta::read(headers.into_iter().map(|(name, value)| (name, Some(value.as_bytes())))).unwrap()
}

#[test]
fn a_view_tells_what_is_known_and_an_erased_one_nothing() {
    let mut view = None;
    for (sequence, event) in (1..).zip(logs().remove(0)) {
        view = Some(Users::fold(view.take(), "u", &meta(sequence), &event).unwrap());
        if sequence == 4 {
            let shown = serde_json::to_value(&view).unwrap();
            assert_eq!((&shown["given_name"], &shown["address"]["city"]), (&json!("Augusta"), &json!("Bonn")));
            assert_eq!(shown["email"], "augusta@example.org");
        }
    }
    let shown = serde_json::to_value(&view).unwrap();
    assert_eq!(
        shown,
        json!({
            "id": "u", "given_name": null, "family_name": null, "email": null, "address": null, "status": "erased",
            "version": 7, "registered_at": "2026-01-31T12:00:00.000000Z", "updated_at": "2026-01-31T12:00:00.000000Z",
        })
    );
}

#[test]
fn statuses_are_counted() {
    let counted = |log: Log| {
        let (mut view, mut counters) = (None, std::collections::BTreeMap::new());
        for (sequence, event) in (1..).zip(log) {
            let after = Users::fold(view.take(), "u", &meta(sequence), &event).unwrap();
            let mut counted = Counted::default();
            Users::count(&event, &after, &mut counted);
            counted.moves().for_each(|(name, by)| *counters.entry(name.to_owned()).or_insert(0) += by);
            view = Some(after);
        }
        Users::stats(&counters)["users"].clone()
    };
    for log in logs() {
        let before = log[..log.len() - 1].to_vec();
        let inactive = i64::from(log.len() == 4);
        assert_eq!(counted(before), json!({"active": 1 - inactive, "inactive": inactive, "erased": 0}));
        assert_eq!(counted(log), json!({"active": 0, "inactive": 0, "erased": 1}));
    }
}

#[test]
fn g04_an_audit_finds_every_broken_rule() {
    #[track_caller]
    fn breaks(log: &[Event], event: &Event, said: &str) {
        let mut state = User::default();
        for event in log {
            state.evolve(event);
        }
        let reason = audit::audit(&state, event).unwrap_err();
        assert!(reason.contains(said), "{reason}");
    }
    breaks(&[], &deactivated(), "before");
    breaks(&[registered()], &registered(), "twice");
    breaks(&[registered(), deactivated()], &deactivated(), "not active");
    breaks(&[registered()], &Event::UserReactivated(UserReactivated {}), "was active");
    breaks(&[registered()], &erased(false), "otherwise");
    breaks(&[registered(), erased(true)], &registered(), "after");
}

#[test]
fn rejections_are_listed_as_refusals() {
    let all = [UserNotFound, UserAlreadyRegistered, UserInactive, UserActive, Rejection::UserErased, NotWaitedFor];
    // The reservation's answer is the one more.
    assert_eq!(all.len() + 1, UserAccount::REFUSALS.len());
    for rejection in all {
        let json = serde_json::to_value(&rejection).unwrap();
        let name = json["reason"].as_str().unwrap();
        assert!(UserAccount::REFUSALS.iter().any(|refusal| refusal.name == name), "{name}");
    }
}

#[test]
fn g13_what_is_no_value_is_refused_without_being_quoted() {
    let long = format!("{}@example.org", "x".repeat(65));
    for bad in
        ["", "ada", "@example.org", "ada@", "ada@localhost", "a b@example.org", "a@b@example.org", "a@-x.org", &long]
    {
        assert!(!is_email(bad), "{bad}");
    }
    for good in ["ada@example.org", "a.b+c@sub.example.org", "ädä@exämple.org", "x@1.2"] {
        assert!(is_email(good), "{good}");
    }
    let body = json!({
        "given_name": "secret\u{7}", "family_name": ["secret"], "email": "secret",
        "address": {"street": "s", "postal_code": "1", "city": "c", "country": "secret"},
    });
    let read = UserAccount::command("register", Fields::parse(body.to_string().as_bytes()).unwrap());
    let Err(CommandError::Malformed(errors)) = read else { panic!("{read:?}") };
    assert_eq!(errors.len(), 4);
    assert!(!format!("{errors:?}").contains("secret"), "{errors:?}");
}

#[test]
fn nothing_personal_is_shown_in_logs() {
    let shown = format!("{:?} {:?} {:?}", register(), registered(), home());
    for text in ["Ada", "King", "ada@", "Bonn", "DE"] {
        assert!(!shown.contains(text), "{shown}");
    }
}
