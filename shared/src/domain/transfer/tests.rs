//! The rules as sentences, and that every transfer ends well, in whatever order and however often things arrive.

use std::collections::{BTreeMap, VecDeque};

use proptest::{prelude::*, sample::Index};

use super::{Rejection::*, *};
use crate::domain::{
    AggregateId,
    bank_account::{self, Account, AccountOpened, BankAccount, MoneyDeposited},
    kit::given,
    process::{Errand, When},
};

fn request(from: &str, to: &str, minor: i64, currency: &str) -> Command {
    Command::RequestTransfer(RequestTransfer {
        from: from.to_owned().try_into().unwrap(),
        to: to.to_owned().try_into().unwrap(),
        amount_minor: minor.try_into().unwrap(),
        currency: currency.parse().unwrap(),
        reference: Some("rent".to_owned().try_into().unwrap()),
    })
}

fn requested() -> Event {
    Event::TransferRequested(TransferRequested {
        from: "a".into(),
        to: "b".into(),
        amount_minor: 60,
        currency: "EUR".into(),
        reference: Some("rent".into()),
    })
}

fn debited() -> Event {
    Event::TransferDebited(TransferDebited {
        from: "a".into(),
        to: "b".into(),
        amount_minor: 60,
        currency: "EUR".into(),
    })
}

fn completed() -> Event {
    Event::TransferCompleted(TransferCompleted { from: "a".into(), to: "b".into() })
}

fn refused(reason: &str) -> Event {
    Event::TransferRefused(TransferRefused { reason: reason.into() })
}

fn refund_ordered() -> Event {
    Event::RefundOrdered(RefundOrdered { from: "a".into(), reason: "account-closed".into(), late: false })
}

fn compensated() -> Event {
    Event::TransferCompensated(TransferCompensated { reason: "account-closed".into() })
}

fn retried(step: Step) -> Event {
    Event::TransferRetried(TransferRetried {
        step,
        from: "a".into(),
        to: "b".into(),
        amount_minor: 60,
        currency: "EUR".into(),
    })
}

fn reason(name: &str) -> Reason {
    name.to_owned().try_into().unwrap()
}

fn refuse() -> Command {
    Command::RefuseTransfer(RefuseTransfer { reason: reason("insufficient-funds") })
}

fn order_refund() -> Command {
    Command::OrderRefund(OrderRefund { reason: reason("account-closed") })
}

const RECORD_DEBIT: Command = Command::RecordDebit(RecordDebit {});
const COMPLETE: Command = Command::CompleteTransfer(CompleteTransfer {});
const RECORD_REFUND: Command = Command::RecordRefund(RecordRefund {});
const LOOK_INTO: Command = Command::LookIntoTransfer(LookIntoTransfer {});
const RETRY: Command = Command::RetryTransfer(RetryTransfer {});

#[test]
fn a_transfer_is_requested_once_and_between_two() {
    given::<MoneyTransfer>([]).when(request("a", "b", 60, "EUR")).then([requested()]);
    given::<MoneyTransfer>([requested()]).when(request("a", "b", 60, "EUR")).then_rejected(TransferAlreadyRequested);
    given::<MoneyTransfer>([]).when(request("a", "a", 60, "EUR")).then_rejected(SameAccount);
    given::<MoneyTransfer>([]).when(RECORD_DEBIT).then_rejected(TransferNotFound);
}

#[test]
fn g11_a_transfer_goes_on_step_by_step() {
    given::<MoneyTransfer>([requested()]).when(RECORD_DEBIT).then([debited()]);
    given::<MoneyTransfer>([requested()]).when(refuse()).then([refused("insufficient-funds")]);
    given::<MoneyTransfer>([requested(), debited()]).when(COMPLETE).then([completed()]);
    given::<MoneyTransfer>([requested(), debited()]).when(order_refund()).then([refund_ordered()]);
    given::<MoneyTransfer>([requested(), debited(), refund_ordered()]).when(RECORD_REFUND).then([compensated()]);
}

#[test]
fn g11_what_comes_again_or_late_changes_nothing() {
    let refunding = || vec![requested(), debited(), refund_ordered()];
    let cases = [
        (vec![requested()], vec![COMPLETE, order_refund(), RECORD_REFUND]),
        (vec![requested(), debited()], vec![RECORD_DEBIT, refuse(), RECORD_REFUND]),
        (refunding(), vec![RECORD_DEBIT, refuse(), COMPLETE, order_refund()]),
        (
            vec![requested(), debited(), completed()],
            vec![RECORD_DEBIT, refuse(), COMPLETE, order_refund(), RECORD_REFUND],
        ),
        (vec![requested(), refused("x")], vec![refuse(), COMPLETE, order_refund(), RECORD_REFUND, RETRY]),
        (
            [refunding(), vec![compensated()]].concat(),
            vec![RECORD_DEBIT, COMPLETE, order_refund(), RECORD_REFUND, RETRY],
        ),
    ];
    for (events, commands) in cases {
        for command in commands {
            given::<MoneyTransfer>(events.clone()).when(command).then_rejected(NotWaitedFor);
        }
    }
}

#[test]
fn g11_a_source_that_pays_after_it_refused_gets_its_money_back() {
    let late = Event::RefundOrdered(RefundOrdered { from: "a".into(), reason: "x".into(), late: true });
    given::<MoneyTransfer>([requested(), refused("x")]).when(RECORD_DEBIT).then([late.clone()]);
    let compensated = Event::TransferCompensated(TransferCompensated { reason: "x".into() });
    given::<MoneyTransfer>([requested(), refused("x"), late]).when(RECORD_REFUND).then([compensated]);
}

#[test]
fn a_retry_sends_what_is_waited_for() {
    given::<MoneyTransfer>([requested()]).when(RETRY).then([retried(Step::Debit)]);
    given::<MoneyTransfer>([requested(), debited()]).when(RETRY).then([retried(Step::Credit)]);
    given::<MoneyTransfer>([requested(), debited(), refund_ordered()]).when(RETRY).then([retried(Step::Refund)]);
    given::<MoneyTransfer>([requested(), debited(), completed()]).when(RETRY).then([retried(Step::Settle)]);
    for (first, step) in [
        (requested(), Step::Debit),
        (debited(), Step::Credit),
        (refund_ordered(), Step::Refund),
        (completed(), Step::Settle),
    ] {
        assert_eq!(asked(&first), asked(&retried(step)), "the same step is the same command");
    }
}

/// Account, step and command of each errand.
fn asked(event: &Event) -> Vec<(String, &'static str, bank_account::Command)> {
    let of = |errand: &Errand| errand.command::<BankAccount>().unwrap().clone();
    let errands = process::react("t", event);
    let now = errands.iter().filter(|errand| errand.when == When::Now);
    now.map(|errand| (errand.aggregate_id.clone(), errand.step, of(errand))).collect()
}

#[test]
fn g11_while_money_is_under_way_the_transfer_is_looked_into() {
    let deadline = |event: &Event| {
        let deadlines = process::react("t", event).into_iter().filter(|errand| errand.when != When::Now);
        deadlines
            .map(|errand| (errand.step, errand.when, errand.command::<MoneyTransfer>().cloned()))
            .collect::<Vec<_>>()
    };
    let in_30_s = [("look-into", When::After(std::time::Duration::from_secs(30)), Some(LOOK_INTO))];
    for event in [debited(), refund_ordered(), retried(Step::Credit), retried(Step::Refund)] {
        assert_eq!(deadline(&event), in_30_s, "{event:?}");
    }
    for event in [completed(), compensated()] {
        assert_eq!(deadline(&event), [("look-into", When::Never, None)], "{event:?}");
    }
    for event in [requested(), refused("x"), retried(Step::Debit), retried(Step::Settle)] {
        assert_eq!(deadline(&event), [], "{event:?}");
    }
    given::<MoneyTransfer>([requested(), debited()]).when(LOOK_INTO).then([retried(Step::Credit)]);
    given::<MoneyTransfer>([requested(), debited(), refund_ordered()]).when(LOOK_INTO).then([retried(Step::Refund)]);
    for log in [vec![requested()], vec![requested(), debited(), completed()]] {
        given::<MoneyTransfer>(log).when(LOOK_INTO).then_rejected(NotWaitedFor);
    }
}

#[test]
fn the_process_asks_one_account_at_a_time() {
    let (amount_minor, currency) = (60.try_into().unwrap(), "EUR".into());
    let transfer_id = || AggregateId::new("t").unwrap();
    let debit = bank_account::DebitTransfer { transfer_id: transfer_id(), amount_minor, currency };
    let credit = bank_account::CreditTransfer { transfer_id: transfer_id(), amount_minor, currency };
    let refund = bank_account::RefundTransfer { transfer_id: transfer_id() };
    let settle = bank_account::SettleTransfer { transfer_id: transfer_id() };
    assert_eq!(asked(&requested()), [("a".to_owned(), "debit", bank_account::Command::DebitTransfer(debit))]);
    assert_eq!(asked(&debited()), [("b".to_owned(), "credit", bank_account::Command::CreditTransfer(credit))]);
    assert_eq!(asked(&refund_ordered()), [("a".to_owned(), "refund", bank_account::Command::RefundTransfer(refund))]);
    let settle = bank_account::Command::SettleTransfer(settle);
    let both = ["a", "b"].map(|account| (account.to_owned(), "settle", settle.clone()));
    assert_eq!(asked(&completed()), both);
    for last in [refused("x"), compensated()] {
        assert_eq!(asked(&last), []);
    }
}

#[test]
fn answers_become_commands() {
    let told = |step, answer| process::conclude(step, answer);
    assert_eq!(told("debit", Answer::Accepted), Some(RECORD_DEBIT));
    assert_eq!(told("debit", Answer::Refused("transfer-already-debited")), Some(RECORD_DEBIT));
    assert_eq!(told("debit", Answer::Refused("insufficient-funds")), Some(refuse()));
    assert_eq!(told("credit", Answer::Accepted), Some(COMPLETE));
    assert_eq!(told("credit", Answer::Refused("account-closed")), Some(order_refund()));
    assert_eq!(told("credit", Answer::Refused("transfer-already-credited")), Some(COMPLETE));
    assert_eq!(told("refund", Answer::Accepted), Some(RECORD_REFUND));
    assert_eq!(told("refund", Answer::Refused("transfer-not-debited")), Some(RECORD_REFUND));
    for (step, answer) in [
        ("settle", Answer::Accepted),
        ("settle", Answer::Refused("transfer-not-debited")),
        ("another", Answer::Accepted),
    ] {
        assert_eq!(told(step, answer), None, "{step} {answer:?}");
    }
}

#[test]
fn a_state_comes_back_from_its_snapshot() {
    let logs = [
        vec![requested(), debited(), completed()],
        vec![requested(), debited(), refund_ordered(), compensated()],
        vec![requested(), refused("x")],
    ];
    for log in logs {
        let mut state = Transfer::default();
        for event in log {
            assert_eq!(audit::audit(&state, &event), Ok(()));
            state.evolve(&event);
            assert_eq!(Transfer::from(Snapshot::from(&state)), state);
        }
    }
}

#[test]
fn g04_an_audit_finds_every_broken_rule() {
    #[track_caller]
    fn breaks(log: &[Event], event: &Event, said: &str) {
        let mut state = Transfer::default();
        for event in log {
            assert_eq!(audit::audit(&state, event), Ok(()));
            state.evolve(event);
        }
        let reason = audit::audit(&state, event).unwrap_err();
        assert!(reason.contains(said), "{reason}");
    }
    breaks(&[], &debited(), "before");
    breaks(&[requested()], &requested(), "twice");
    breaks(&[requested()], &completed(), "elsewhere");
    breaks(&[requested(), refused("x")], &debited(), "elsewhere");
    breaks(&[requested(), debited(), completed()], &refund_ordered(), "elsewhere");
    breaks(&[requested(), debited()], &retried(Step::Debit), "is what it waits for");
    let Event::TransferDebited(other) = debited() else { unreachable!() };
    breaks(&[requested()], &Event::TransferDebited(TransferDebited { amount_minor: 61, ..other }), "terms");
    let Event::TransferRequested(own) = requested() else { unreachable!() };
    breaks(&[], &Event::TransferRequested(TransferRequested { to: "a".into(), ..own }), "itself");
}

#[test]
fn rejections_are_listed_as_refusals() {
    let all = [TransferNotFound, TransferAlreadyRequested, SameAccount, NotWaitedFor];
    assert_eq!(all.len(), MoneyTransfer::REFUSALS.len());
    for rejection in all {
        let json = serde_json::to_value(&rejection).unwrap();
        let name = json["reason"].as_str().unwrap();
        assert!(MoneyTransfer::REFUSALS.iter().any(|refusal| refusal.name == name), "{name}");
    }
}

/// A command on its way.
#[derive(Clone)]
enum Message {
    /// Step `.1` of transfer `.0`, for account `.2`.
    Account(String, &'static str, String, bank_account::Command),
    /// Under this command id.
    Transfer(String, String, Command),
}

impl Message {
    /// In whose partition it lies.
    fn place(&self) -> String {
        match self {
            Self::Account(_, _, id, _) => format!("account {id}"),
            Self::Transfer(id, ..) => format!("transfer {id}"),
        }
    }
}

/// Accounts and transfers without a pipeline between them. What is sent to one of them arrives in the order in which it was
/// sent, since it lies in one partition; beyond that in any order, and again.
#[derive(Default)]
struct World {
    accounts: BTreeMap<String, Account>,
    transfers: BTreeMap<String, Transfer>,
    /// Transfers that have a deadline.
    deadlines: BTreeMap<String, Command>,
    /// By place.
    on_its_way: BTreeMap<String, VecDeque<Message>>,
    /// As writers remember outcomes, by aggregate and command id.
    remembered: BTreeMap<(String, String), Result<(), String>>,
}

impl World {
    fn send(&mut self, message: Message) {
        self.on_its_way.entry(message.place()).or_default().push_back(message);
    }

    /// The next one at some place; it may stay there, to come again.
    fn next(&mut self, which: Index, stays: bool) -> Option<Message> {
        let waiting: Vec<String> =
            self.on_its_way.iter().filter(|(_, all)| !all.is_empty()).map(|(at, _)| at.clone()).collect();
        let queue = self.on_its_way.get_mut(waiting.get(which.index(waiting.len().max(1)))?)?;
        if stays { queue.front().cloned() } else { queue.pop_front() }
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Account(transfer, step, id, command) => {
                let key = (format!("account {id}"), format!("{transfer}/{step}"));
                let account = self.accounts.entry(id).or_default();
                let outcome = self.remembered.entry(key).or_insert_with(|| {
                    match BankAccount::decide(account, &command, jiff::Timestamp::UNIX_EPOCH) {
                        Ok(events) => {
                            for event in events {
                                assert_eq!(BankAccount::audit(account, &event), Ok(()));
                                account.evolve(&event);
                            }
                            Ok(())
                        }
                        Err(rejection) => {
                            let json = serde_json::to_value(&rejection).unwrap();
                            Err(json["reason"].as_str().unwrap().to_owned())
                        }
                    }
                });
                let answer = match outcome {
                    Ok(()) => Answer::Accepted,
                    Err(reason) => Answer::Refused(reason),
                };
                let told = format!("{step} {}", matches!(answer, Answer::Accepted));
                if let Some(command) = process::conclude(step, answer) {
                    self.send(Message::Transfer(transfer, told, command));
                }
            }
            Message::Transfer(id, command_id, command) => {
                let key = (format!("transfer {id}"), command_id);
                if self.remembered.contains_key(&key) {
                    return;
                }
                let state = self.transfers.entry(id.clone()).or_default();
                let decided = decide::decide(state, &command);
                self.remembered.insert(key, decided.as_ref().map(|_| ()).map_err(|why| format!("{why:?}")));
                if let Ok(event) = decided {
                    assert_eq!(audit::audit(state, &event), Ok(()));
                    state.evolve(&event);
                    for errand in process::react(&id, &event) {
                        match errand.when {
                            When::Now => {}
                            When::Never => {
                                self.deadlines.remove(&id);
                                continue;
                            }
                            When::After(_) | When::At(_) => {
                                let command = errand.command::<MoneyTransfer>().unwrap().clone();
                                self.deadlines.insert(id.clone(), command);
                                continue;
                            }
                        }
                        let command = errand.command::<BankAccount>().unwrap().clone();
                        self.send(Message::Account(id.clone(), errand.step, errand.aggregate_id, command));
                    }
                }
            }
        }
    }

    /// All balances, and what has left a source and not reached a target.
    fn money(&self) -> i64 {
        let open = |account: &Account| match account {
            Account::Open(open) => Some(open.clone()),
            Account::Unopened | Account::Closed => None,
        };
        let accounts: Vec<bank_account::Open> = self.accounts.values().filter_map(open).collect();
        let balances: i64 = accounts.iter().map(|account| account.balance_minor).sum();
        let arrived = |id: &str| {
            let credited = accounts.iter().any(|account| account.held.of(id) == Some(0));
            credited || matches!(self.transfers.get(id), Some(Transfer::Completed(_)))
        };
        let under_way = accounts.iter().flat_map(|account| account.held.iter()).filter(|(id, _)| !arrived(id));
        balances + under_way.map(|(_, amount_minor)| amount_minor).sum::<i64>()
    }
}

proptest! {
    #[test]
    fn g11_every_transfer_ends_and_money_is_conserved(
        transfers in prop::collection::vec((0..5usize, 0..5usize, 1..150i64), 1..12),
        order in prop::collection::vec((any::<Index>(), 0..10u8), 0..300),
        last in any::<Index>(),
    ) {
        let mut world = World::default();
        // d is kept in another currency, e is not there.
        for (id, currency) in [("a", "EUR"), ("b", "EUR"), ("c", "EUR"), ("d", "USD")] {
            let account = world.accounts.entry(id.into()).or_default();
            let opened = AccountOpened { owner: "Ada".into(), currency: currency.into() };
            account.evolve(&bank_account::Event::AccountOpened(opened));
            let deposited = MoneyDeposited { amount_minor: 100, reference: None, channel: None };
            account.evolve(&bank_account::Event::MoneyDeposited(deposited));
        }
        let names = ["a", "b", "c", "d", "e"];
        for (number, (from, to, minor)) in transfers.into_iter().enumerate() {
            let command = request(names[from], names[to], minor, "EUR");
            world.send(Message::Transfer(format!("t{number}"), "request".into(), command));
        }
        let mut retries = 0;
        for (which, how) in order {
            match how {
                // Again, and later once more.
                0 => {
                    if let Some(message) = world.next(which, true) {
                        world.arrive(message);
                    }
                }
                // Somebody is impatient.
                1 => {
                    let id = format!("t{}", which.index(12));
                    retries += 1;
                    world.send(Message::Transfer(id, format!("retry-{retries}"), RETRY));
                }
                // A deadline passes.
                3 => {
                    let id = world.deadlines.keys().nth(which.index(world.deadlines.len().max(1))).cloned();
                    if let Some((id, command)) = id.and_then(|id| world.deadlines.remove_entry(&id)) {
                        retries += 1;
                        world.send(Message::Transfer(id, format!("look-into-{retries}"), command));
                    }
                }
                // The window of an answer is over.
                2 => {
                    let key = world.remembered.keys().nth(which.index(world.remembered.len().max(1))).cloned();
                    key.and_then(|key| world.remembered.remove(&key));
                }
                _ => {
                    if let Some(message) = world.next(which, false) {
                        world.arrive(message);
                    }
                }
            }
            prop_assert_eq!(world.money(), 400, "at every moment");
        }
        while let Some(message) = world.next(last, false) {
            world.arrive(message);
        }
        for (id, state) in &world.transfers {
            let ended = matches!(
                state,
                Transfer::Completed(_) | Transfer::Refused { .. } | Transfer::Compensated | Transfer::Unknown
            );
            prop_assert!(ended, "{} is {:?}", id, state);
            prop_assert!(!world.deadlines.contains_key(id), "{} has ended", id);
        }
        prop_assert_eq!(world.money(), 400);
        for (id, account) in &world.accounts {
            if let Account::Open(open) = account {
                prop_assert!(open.held.is_empty(), "{} holds {:?}", id, open.held);
                prop_assert!(open.balance_minor >= 0);
            }
        }
    }
}
