//! The rules as sentences, and what must hold for any sequence of commands.

use proptest::prelude::*;

use super::{Rejection::*, *};
use crate::domain::{AggregateId, Projection, kit::given};
use crate::{codec::Codec, envelope::EventMeta, records::Records, registry::Registry, views::history};

fn amount(minor: i64) -> Amount {
    minor.try_into().unwrap()
}

fn open() -> Command {
    Command::OpenAccount(OpenAccount { owner: "Ada".to_owned().try_into().unwrap(), currency: "EUR".parse().unwrap() })
}

fn deposit(minor: i64) -> Command {
    Command::Deposit(Deposit { amount_minor: amount(minor), reference: None, channel: None })
}

fn withdraw(minor: i64) -> Command {
    Command::Withdraw(Withdraw { amount_minor: amount(minor), reference: None })
}

fn close() -> Command {
    Command::CloseAccount(CloseAccount {})
}

fn transfer(id: &str) -> AggregateId {
    AggregateId::new(id).unwrap()
}

fn debit(id: &str, minor: i64, currency: &str) -> Command {
    let (amount_minor, currency) = (amount(minor), currency.into());
    Command::DebitTransfer(DebitTransfer { transfer_id: transfer(id), amount_minor, currency })
}

fn credit(id: &str, minor: i64, currency: &str) -> Command {
    let (amount_minor, currency) = (amount(minor), currency.into());
    Command::CreditTransfer(CreditTransfer { transfer_id: transfer(id), amount_minor, currency })
}

fn refund(id: &str) -> Command {
    Command::RefundTransfer(RefundTransfer { transfer_id: transfer(id) })
}

fn settle(id: &str) -> Command {
    Command::SettleTransfer(SettleTransfer { transfer_id: transfer(id) })
}

fn held(id: &str, amount_minor: i64) -> Event {
    Event::TransferHeld(TransferHeld { transfer_id: id.into(), amount_minor })
}

fn released(id: &str) -> Event {
    Event::TransferReleased(TransferReleased { transfer_id: id.into() })
}

/// With the reference that a transfer's movements carry.
fn of(id: &str, event: Event) -> Event {
    let reference = Some(format!("transfer:{id}"));
    match event {
        Event::MoneyDeposited(deposited) => Event::MoneyDeposited(MoneyDeposited { reference, ..deposited }),
        Event::MoneyWithdrawn(withdrawn) => Event::MoneyWithdrawn(MoneyWithdrawn { reference, ..withdrawn }),
        event => event,
    }
}

fn opened() -> Event {
    Event::AccountOpened(AccountOpened { owner: "Ada".into(), currency: "EUR".into() })
}

fn deposited(amount_minor: i64) -> Event {
    Event::MoneyDeposited(MoneyDeposited { amount_minor, reference: None, channel: None })
}

fn withdrawn(amount_minor: i64) -> Event {
    Event::MoneyWithdrawn(MoneyWithdrawn { amount_minor, reference: None })
}

fn closed() -> Event {
    Event::AccountClosed(super::AccountClosed {})
}

#[test]
fn an_account_is_opened_once() {
    given::<BankAccount>([]).when(open()).then([opened()]);
    given::<BankAccount>([opened()]).when(open()).then_rejected(AccountAlreadyOpen);
    given::<BankAccount>([opened(), closed()]).when(open()).then_rejected(AccountClosed);
}

#[test]
fn g04_money_moves_only_on_an_open_account() {
    for command in [deposit(1), withdraw(1), close()] {
        given::<BankAccount>([]).when(command.clone()).then_rejected(AccountNotFound);
        given::<BankAccount>([opened(), closed()]).when(command).then_rejected(AccountClosed);
    }
    given::<BankAccount>([opened()]).when(deposit(10_000)).then([deposited(10_000)]);
}

#[test]
fn g04_an_account_is_never_overdrawn() {
    given::<BankAccount>([opened(), deposited(10_000)]).when(withdraw(10_000)).then([withdrawn(10_000)]);
    given::<BankAccount>([opened(), deposited(10_000)])
        .when(withdraw(10_001))
        .then_rejected(InsufficientFunds { balance_minor: 10_000, requested_minor: 10_001 });
}

#[test]
fn a_balance_stays_exact_in_javascript() {
    let full = MAX_BALANCE_MINOR;
    given::<BankAccount>([opened(), deposited(full - 1)]).when(deposit(1)).then([deposited(1)]);
    given::<BankAccount>([opened(), deposited(full)]).when(deposit(1)).then_rejected(BalanceLimitExceeded {
        balance_minor: full,
        requested_minor: 1,
        limit_minor: full,
    });
}

#[test]
fn only_an_empty_account_is_closed() {
    given::<BankAccount>([opened()]).when(close()).then([closed()]);
    given::<BankAccount>([opened(), deposited(5)]).when(close()).then_rejected(BalanceNotZero { balance_minor: 5 });
}

#[test]
fn g11_a_debit_is_remembered_until_the_transfer_has_ended() {
    let rich = || vec![opened(), deposited(100)];
    let debited = || [rich(), vec![of("t", withdrawn(60)), held("t", 60)]].concat();
    given::<BankAccount>(rich()).when(debit("t", 60, "EUR")).then([of("t", withdrawn(60)), held("t", 60)]);
    given::<BankAccount>(rich())
        .when(debit("t", 101, "EUR"))
        .then_rejected(InsufficientFunds { balance_minor: 100, requested_minor: 101 });
    given::<BankAccount>(debited()).when(debit("t", 60, "EUR")).then_rejected(TransferAlreadyDebited);
    given::<BankAccount>(debited()).when(refund("t")).then([of("t", deposited(60)), released("t")]);
    given::<BankAccount>(debited()).when(settle("t")).then([released("t")]);
    for (done, refused) in [(refund("t"), TransferNotDebited), (settle("t"), TransferNotPending)] {
        let over = [debited(), vec![released("t")]].concat();
        given::<BankAccount>(over).when(done.clone()).then_rejected(refused.clone());
        given::<BankAccount>(rich()).when(done).then_rejected(refused);
    }
}

#[test]
fn g02_a_credit_is_remembered_until_the_transfer_has_ended() {
    let credited = || vec![opened(), of("t", deposited(9)), held("t", 0)];
    given::<BankAccount>([opened()]).when(credit("t", 9, "EUR")).then([of("t", deposited(9)), held("t", 0)]);
    given::<BankAccount>(credited()).when(credit("t", 9, "EUR")).then_rejected(TransferAlreadyCredited);
    given::<BankAccount>(credited()).when(refund("t")).then_rejected(TransferNotDebited);
    given::<BankAccount>(credited()).when(settle("t")).then([released("t")]);
    given::<BankAccount>([credited(), vec![withdrawn(9)]].concat())
        .when(close())
        .then_rejected(TransferPending { pending: 1 });
}

#[test]
fn g11_a_refund_can_always_be_paid() {
    let empty = vec![opened(), deposited(60), of("t", withdrawn(60)), held("t", 60)];
    given::<BankAccount>(empty.clone()).when(close()).then_rejected(TransferPending { pending: 1 });
    given::<BankAccount>([empty.clone(), vec![released("t")]].concat()).when(close()).then([closed()]);
    let room = MAX_BALANCE_MINOR - 60;
    let nearly = [[empty, vec![deposited(1_000_000_000_000_000); 8]].concat(), vec![deposited(999_999_999_999_940)]];
    let nearly = nearly.concat();
    for more in [deposit(1), credit("u", 1, "EUR")] {
        given::<BankAccount>(nearly.clone()).when(more).then_rejected(BalanceLimitExceeded {
            balance_minor: room,
            requested_minor: 1,
            limit_minor: MAX_BALANCE_MINOR,
        });
    }
    given::<BankAccount>(nearly).when(refund("t")).then([of("t", deposited(60)), released("t")]);
}

#[test]
fn transfers_stay_in_their_currency_and_are_bounded() {
    let mismatch = || CurrencyMismatch { currency: "EUR".into(), requested: "USD".into() };
    given::<BankAccount>([opened(), deposited(9)]).when(debit("t", 9, "USD")).then_rejected(mismatch());
    given::<BankAccount>([opened()]).when(credit("t", 9, "USD")).then_rejected(mismatch());
    let mut many = vec![opened(), deposited(10_000)];
    for number in 0..Held::MAX_TO_PAY {
        many.extend([withdrawn(1), held(&number.to_string(), 1)]);
    }
    given::<BankAccount>(many).when(debit("t", 1, "EUR")).then_rejected(TooManyTransfers { limit: 1_000 });
}

#[test]
fn a_state_comes_back_from_its_snapshot() {
    let mut account = Account::default();
    for event in [opened(), deposited(100), of("t", withdrawn(60)), held("t", 60)] {
        account.evolve(&event);
        assert_eq!(Account::from(Snapshot::from(&account)), account);
    }
}

#[test]
fn rejections_are_listed_as_refusals() {
    let all = [
        AccountNotFound,
        AccountAlreadyOpen,
        AccountClosed,
        InsufficientFunds { balance_minor: 0, requested_minor: 1 },
        BalanceLimitExceeded { balance_minor: 0, requested_minor: 1, limit_minor: 1 },
        BalanceNotZero { balance_minor: 1 },
        CurrencyMismatch { currency: String::new(), requested: String::new() },
        TransferPending { pending: 1 },
        TooManyTransfers { limit: 1 },
        TransferAlreadyDebited,
        TransferAlreadyCredited,
        TransferNotDebited,
        TransferNotPending,
    ];
    assert_eq!(all.len(), BankAccount::REFUSALS.len());
    for rejection in all {
        let json = serde_json::to_value(&rejection).unwrap();
        let name = json["reason"].as_str().unwrap();
        assert!(BankAccount::REFUSALS.iter().any(|refusal| refusal.name == name), "{name}");
    }
}

#[test]
fn g13_values_are_checked_where_they_are_read() {
    let fields = |body: &str| Fields::parse(body.as_bytes()).unwrap();
    let refused = |name: &str, body: &str| BankAccount::command(name, fields(body)).is_err();
    for amount in ["0", "-1", "10.0", "1e3", "1000000000000001", "\"1\"", "null", "true", "99999999999999999999"] {
        assert!(refused("deposit", &format!("{{\"amount_minor\": {amount}}}")), "{amount}");
    }
    for currency in ["eur", "EURO", "", "HRK", "ZZZ"] {
        assert!(refused("open", &format!("{{\"owner\": \"Ada\", \"currency\": \"{currency}\"}}")), "{currency}");
    }
    for owner in ["", "a\\nb", &"x".repeat(201)] {
        assert!(refused("open", &format!("{{\"owner\": \"{owner}\", \"currency\": \"EUR\"}}")), "{owner}");
    }
    assert!(refused("deposit", &format!("{{\"amount_minor\": 1, \"reference\": \"{}\"}}", "x".repeat(141))));
    for channel in ["", "Card", "a b", &"x".repeat(41)] {
        assert!(refused("deposit", &format!("{{\"amount_minor\": 1, \"channel\": \"{channel}\"}}")), "{channel}");
    }
    assert!(!refused("deposit", r#"{"amount_minor": 1000000000000000, "reference": null, "channel": "card"}"#));
    assert_eq!(BankAccount::command("rob", fields("{}")), Err(CommandError::Unknown));
}

#[test]
fn commands_and_events_come_back_from_avro() {
    fn there_and_back<R: Records + PartialEq + std::fmt::Debug>(values: Vec<R>) {
        let codec = Codec::<R>::reading(Registry::new("http://127.0.0.1:1").unwrap()).unwrap();
        for value in values {
            let mut datum = Vec::new();
            codec.encode_datum(&value, &mut datum).unwrap();
            let newest = R::TYPES[value.index()].versions.len() - 1;
            assert_eq!(codec.decode_datum(value.index(), newest, &datum), Some(value));
        }
    }
    let reference = Some("rent".to_owned().try_into().unwrap());
    there_and_back(vec![
        open(),
        deposit(1),
        Command::Withdraw(Withdraw { amount_minor: amount(2), reference }),
        close(),
        debit("t", 1, "EUR"),
        credit("t", 1, "EUR"),
        refund("t"),
        settle("t"),
    ]);
    there_and_back(vec![opened(), deposited(1), withdrawn(2), closed(), held("t", 1), released("t")]);
}

/// A record of an earlier release, as the bytes of its datum.
#[track_caller]
fn recorded<R: Records>(record: &str, version: usize, datum: &[u8]) -> R {
    let index = R::TYPES.iter().position(|known| known.name == record).unwrap();
    Codec::<R>::datums().unwrap().decode_datum(index, version - 1, datum).unwrap()
}

#[test]
fn g12_what_earlier_releases_wrote_is_read_as_what_it_is_today() {
    let reference = Some("rent".to_owned());
    let deposited = |amount_minor| {
        let channel = None;
        Event::MoneyDeposited(MoneyDeposited { amount_minor, reference: reference.clone(), channel })
    };
    let withdrawn = |amount_minor| Event::MoneyWithdrawn(MoneyWithdrawn { amount_minor, reference: reference.clone() });
    assert_eq!(recorded::<Event>("MoneyDeposited", 1, b"\x0e\x02\x08rent"), deposited(7));
    assert_eq!(recorded::<Event>("BalanceChanged", 1, b"\x0e\x02\x08rent"), deposited(7));
    assert_eq!(recorded::<Event>("BalanceChanged", 1, b"\x0d\x02\x08rent"), withdrawn(7));
    // No fold panics at what nobody can have meant.
    let least = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x08rent";
    assert_eq!(recorded::<Event>("BalanceChanged", 1, least), withdrawn(i64::MAX));
    let Command::Deposit(old) = recorded("Deposit", 1, b"\x0e\x02\x08rent") else { panic!("a deposit") };
    assert_eq!((old.amount_minor, old.channel), (amount(7), None));
}

#[test]
fn g12_histories_of_earlier_releases_are_read() {
    let codec = Codec::<Event>::datums().unwrap();
    let meta = EventMeta { sequence: 300, time: jiff::Timestamp::UNIX_EPOCH, command_id: "c1".into() };
    let event = Event::MoneyDeposited(MoneyDeposited { amount_minor: 7, reference: None, channel: None });
    let today = history::pack(&meta, &codec.record(event.clone()).unwrap());
    // Record 1 in version 1: without the channel's byte at the end.
    let mut earlier = today[..today.len() - 1].to_vec();
    let version = earlier.len() - 3;
    assert_eq!(std::mem::replace(&mut earlier[version], 0), 1);
    assert_eq!(history::unpack(&codec, &earlier), Some((meta, event)));
    assert_eq!(history::unpack(&codec, b"garbage"), None);
}

/// An event that breaks a rule after these, and what is said about it.
#[track_caller]
fn breaks(log: &[Event], event: Event, said: &str) {
    let mut account = Account::default();
    for event in log {
        assert_eq!(audit::audit(&account, event), Ok(()));
        account.evolve(event);
    }
    let reason = audit::audit(&account, &event).unwrap_err();
    assert!(reason.contains(said), "{reason}");
}

#[test]
fn g04_an_audit_finds_every_broken_rule() {
    breaks(&[], deposited(1), "before the account was opened");
    breaks(&[], closed(), "before the account was opened");
    breaks(&[opened()], opened(), "opened twice");
    breaks(&[opened()], withdrawn(1), "from a balance of 0");
    breaks(&[opened(), deposited(5), withdrawn(3)], withdrawn(3), "from a balance of 2");
    breaks(&[opened(), deposited(5)], closed(), "with a balance of 5");
    let debited = [opened(), deposited(5), withdrawn(5), held("t", 5)];
    breaks(&debited, closed(), "while transfers were held");
    breaks(&debited, held("t", 5), "held twice");
    breaks(&debited, released("u"), "but not held");
    breaks(&debited, held("u", -1), "is no amount");
    for late in [opened(), deposited(1), withdrawn(1), closed()] {
        breaks(&[opened(), closed()], late, "after the account was closed");
    }
    for no_amount in [0, -1, i64::MIN, 1_000_000_000_000_001] {
        breaks(&[opened(), deposited(5)], deposited(no_amount), "is no amount");
        breaks(&[opened(), deposited(5)], withdrawn(no_amount), "is no amount");
    }
    breaks(&[vec![opened()], vec![deposited(1_000_000_000_000_000); 9]].concat(), deposited(1), "grew beyond");
    let long =
        Event::MoneyDeposited(MoneyDeposited { amount_minor: 1, reference: Some("x".repeat(141)), channel: None });
    breaks(&[opened()], long, "reference");
    let open = |owner: &str, currency: &str| {
        Event::AccountOpened(AccountOpened { owner: owner.into(), currency: currency.into() })
    };
    breaks(&[], open("Ada", "eur"), "no currency");
    breaks(&[], open("", "EUR"), "nobody");
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => Just(open()),
        4 => (1..1_000i64).prop_map(deposit),
        4 => (1..1_000i64).prop_map(withdraw),
        1 => Just(close()),
        2 => ("[a-c]", 1..1_000i64).prop_map(|(id, minor)| debit(&id, minor, "EUR")),
        1 => "[a-c]".prop_map(|id| credit(&id, 5, "EUR")),
        1 => "[a-c]".prop_map(|id| refund(&id)),
        1 => "[a-c]".prop_map(|id| settle(&id)),
    ]
}

/// What a log of these commands holds.
fn log(commands: &[Command]) -> Vec<Event> {
    run(commands).0
}

/// The log, and the state that the last command left.
fn run(commands: &[Command]) -> (Vec<Event>, Account) {
    let mut account = Account::default();
    let mut log = Vec::new();
    for command in commands {
        for event in decide::decide(&account, command).unwrap_or_default() {
            account.evolve(&event);
            log.push(event);
        }
    }
    (log, account)
}

proptest! {
    #[test]
    fn g04_the_balance_is_never_negative(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut account = Account::default();
        for event in log(&commands) {
            account.evolve(&event);
            if let Account::Open(open) = &account {
                prop_assert!((0..=MAX_BALANCE_MINOR).contains(&open.balance_minor));
            }
        }
    }

    #[test]
    fn g04_what_is_decided_passes_the_audit(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut account = Account::default();
        for event in log(&commands) {
            prop_assert_eq!(audit::audit(&account, &event), Ok(()));
            account.evolve(&event);
        }
    }

    #[test]
    fn replay_gives_the_running_state_and_the_view_agrees(commands in prop::collection::vec(any_command(), 0..60)) {
        let (log, running) = run(&commands);
        let mut replayed = Account::default();
        let mut view = None;
        for (at, event) in log.iter().enumerate() {
            let meta = EventMeta { sequence: at as u64 + 1, time: jiff::Timestamp::UNIX_EPOCH, command_id: "c".into() };
            view = Some(BankAccounts::fold(view, "a", &meta, event).unwrap());
        }
        log.iter().for_each(|event| replayed.evolve(event));
        prop_assert_eq!(&running, &replayed);
        match (running, view) {
            (Account::Unopened, None) => {}
            (Account::Open(open), Some(view)) => prop_assert_eq!(open.balance_minor, view.balance_minor),
            (Account::Closed, Some(view)) => prop_assert_eq!((view.status, view.balance_minor), (Status::Closed, 0)),
            (state, view) => prop_assert!(false, "{:?} is not {:?}", state, view),
        }
    }

    /// Commands are no idempotent updates: the second time is judged by the state that the first one left. (That a
    /// repeated *command id* has no second effect is the writer's doing.)
    #[test]
    fn a_command_applied_twice_is_judged_twice(
        commands in prop::collection::vec(any_command(), 0..30),
        command in any_command(),
    ) {
        let mut account = Account::default();
        log(&commands).iter().for_each(|event| account.evolve(event));
        let first = decide::decide(&account, &command);
        first.iter().flatten().for_each(|event| account.evolve(event));
        let second = decide::decide(&account, &command);
        match (&first, &command) {
            (Err(rejection), _) => prop_assert_eq!(second.unwrap_err(), rejection.clone()),
            (Ok(_), Command::OpenAccount(_)) => prop_assert_eq!(second.unwrap_err(), AccountAlreadyOpen),
            (Ok(_), Command::CloseAccount(_)) => prop_assert_eq!(second.unwrap_err(), AccountClosed),
            (Ok(_), Command::Deposit(_)) => prop_assert!(second.is_ok()),
            (Ok(_), Command::Withdraw(_)) => {
                let expected = matches!(second, Ok(_) | Err(InsufficientFunds { .. }));
                prop_assert!(expected);
            }
            (Ok(_), Command::DebitTransfer(_)) => prop_assert_eq!(second.unwrap_err(), TransferAlreadyDebited),
            (Ok(_), Command::RefundTransfer(_)) => prop_assert_eq!(second.unwrap_err(), TransferNotDebited),
            (Ok(_), Command::SettleTransfer(_)) => prop_assert_eq!(second.unwrap_err(), TransferNotPending),
            (Ok(_), Command::CreditTransfer(_)) => prop_assert_eq!(second.unwrap_err(), TransferAlreadyCredited),
        }
    }
}
