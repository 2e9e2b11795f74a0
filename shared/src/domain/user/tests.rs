//! The rules as sentences.

use serde_json::json;

use super::{
    Rejection::{UserActive, UserAlreadyRegistered, UserInactive, UserNotFound},
    *,
};
use crate::{
    codec::Codec,
    domain::{CommandError, Fields, Projection, kit::given},
    envelope::EventMeta,
    personal::{self, DataKey, Personal},
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
            Event::EmailChanged(EmailChanged { email: open("augusta@example.org") }),
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
            let mut read = codec.decode_datum(0, 0, &bytes).unwrap();
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
            let read = || codec.decode_datum(event.index(), 0, &bytes).unwrap();
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
            Users::count(&event, &after, &mut |key, by| *counters.entry(key).or_insert(0) += by);
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
    let all = [UserNotFound, UserAlreadyRegistered, UserInactive, UserActive, Rejection::UserErased];
    assert_eq!(all.len(), UserAccount::REFUSALS.len());
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
