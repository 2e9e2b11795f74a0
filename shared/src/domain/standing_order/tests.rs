//! The rules as sentences, and when what is due.

use jiff::Timestamp;

use super::{Rejection::*, *};
use crate::domain::{
    kit::given,
    process::When,
    transfer::{self, MoneyTransfer},
};

const FIRST: &str = "2027-01-31T08:00:00Z";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn place(to: &str, first_at: Option<&str>) -> Command {
    Command::PlaceStandingOrder(PlaceStandingOrder {
        from: "a".to_owned().try_into().unwrap(),
        to: to.to_owned().try_into().unwrap(),
        amount_minor: 60.try_into().unwrap(),
        currency: "EUR".parse().unwrap(),
        reference: None,
        every: Every::Month,
        first_at: first_at.map(time),
    })
}

fn placed(every: Every, first_at: &str) -> Event {
    Event::StandingOrderPlaced(StandingOrderPlaced {
        from: "a".into(),
        to: "b".into(),
        amount_minor: 60,
        currency: "EUR".into(),
        reference: None,
        every,
        first_at: time(first_at),
    })
}

fn executed(number: u32, next_at: Option<&str>) -> Event {
    Event::StandingOrderExecuted(StandingOrderExecuted {
        number,
        from: "a".into(),
        to: "b".into(),
        amount_minor: 60,
        currency: "EUR".into(),
        reference: None,
        next_at: next_at.map(time),
    })
}

fn execute(number: u32) -> Command {
    Command::ExecuteStandingOrder(ExecuteStandingOrder { number })
}

const CANCEL: Command = Command::CancelStandingOrder(CancelStandingOrder {});
const CANCELLED: Event = Event::StandingOrderCancelled(events::StandingOrderCancelled {});

#[test]
fn an_order_is_placed_once_between_two_and_not_in_the_past() {
    let order = || given::<StandingOrder>([]);
    order().when_at(place("b", Some(FIRST)), time("2027-01-01T00:00:00Z")).then([placed(Every::Month, FIRST)]);
    order().when_at(place("b", None), time(FIRST)).then([placed(Every::Month, FIRST)]);
    order().when_at(place("b", Some(FIRST)), time("2027-01-31T08:00:01Z")).then_rejected(FirstInThePast);
    order().when(place("a", None)).then_rejected(SameAccount);
    order().when(CANCEL).then_rejected(StandingOrderNotFound);
    given::<StandingOrder>([placed(Every::Month, FIRST)])
        .when(place("b", None))
        .then_rejected(StandingOrderAlreadyPlaced);
}

#[test]
fn g02_each_transfer_is_requested_once() {
    let log = || vec![placed(Every::Month, FIRST)];
    given::<StandingOrder>(log()).when(execute(1)).then([executed(1, Some("2027-02-28T08:00:00Z"))]);
    given::<StandingOrder>(log()).when(execute(2)).then_rejected(NotDue);
    let log = || [log(), vec![executed(1, Some("2027-02-28T08:00:00Z"))]].concat();
    given::<StandingOrder>(log()).when(execute(1)).then_rejected(NotDue);
    given::<StandingOrder>(log()).when(execute(2)).then([executed(2, Some("2027-03-31T08:00:00Z"))]);
    given::<StandingOrder>(log()).when(CANCEL).then([CANCELLED]);
    given::<StandingOrder>(log())
        .when_at(execute(2), time("2110-01-01T00:00:00Z"))
        .then([executed(2, Some("2027-03-31T08:00:00Z"))]);
    given::<StandingOrder>(log()).when_at(execute(2), time("2111-01-01T00:00:00Z")).then([CANCELLED]);
    let over = || [log(), vec![CANCELLED]].concat();
    for command in [execute(2), CANCEL] {
        given::<StandingOrder>(over()).when(command).then_rejected(Rejection::StandingOrderCancelled);
    }
}

#[test]
fn what_is_due_when_is_counted_from_the_first_time() {
    let due = |every, first_at: &str, number| {
        let mut order = Order::default();
        order.evolve(&placed(every, first_at));
        let Order::Active { terms, .. } = order else { unreachable!() };
        terms.due(number).map(|due| due.to_string())
    };
    let months = [1, 2, 3, 14].map(|number| due(Every::Month, FIRST, number).unwrap());
    assert_eq!(months, [FIRST, "2027-02-28T08:00:00Z", "2027-03-31T08:00:00Z", "2028-02-29T08:00:00Z"]);
    assert_eq!(due(Every::Day, FIRST, 2).as_deref(), Some("2027-02-01T08:00:00Z"));
    assert_eq!(due(Every::Minute, FIRST, 61).as_deref(), Some("2027-01-31T09:00:00Z"));
    assert_eq!(due(Every::Month, FIRST, u32::MAX), None, "there is a last day");
}

#[test]
fn the_process_sets_itself_a_deadline_and_requests_transfers() {
    let asked = |event: &Event| process::react("o", event);
    let deadline = |errand: &crate::domain::process::Errand, number, at| {
        assert_eq!((errand.aggregate_type, errand.aggregate_id.as_str()), ("standing-order", "o"));
        assert_eq!((errand.step, errand.when), ("execute", When::At(time(at))));
        assert_eq!(errand.command::<StandingOrder>(), Some(&execute(number)));
    };
    let first = asked(&placed(Every::Month, FIRST));
    assert_eq!(first.len(), 1);
    deadline(&first[0], 1, FIRST);
    let next = asked(&executed(7, Some("2027-08-31T08:00:00Z")));
    assert_eq!(next.len(), 2);
    deadline(&next[1], 8, "2027-08-31T08:00:00Z");
    let request = next[0].command::<MoneyTransfer>().unwrap();
    let transfer::Command::RequestTransfer(request) = request else { unreachable!() };
    assert_eq!((request.from.as_str(), request.to.as_str(), request.amount_minor.minor()), ("a", "b", 60));
    assert_eq!((next[0].when, &next[0].aggregate_id), (When::Now, &process::transfer_id("o", 7)));
    assert_ne!(process::transfer_id("o", 7), process::transfer_id("o", 8));
    assert_eq!(asked(&executed(7, None)).len(), 1, "there is no next one");
    let over = asked(&CANCELLED);
    assert_eq!(over.iter().map(|errand| (errand.step, errand.when)).collect::<Vec<_>>(), [("execute", When::Never)]);
}

#[test]
fn g04_states_come_back_from_snapshots_and_an_audit_finds_broken_rules() {
    let mut order = Order::default();
    for event in [placed(Every::Day, FIRST), executed(1, None), CANCELLED] {
        assert_eq!(audit::audit(&order, &event), Ok(()));
        order.evolve(&event);
        assert_eq!(Order::from(Snapshot::from(&order)), order);
        assert!(audit::audit(&order, &placed(Every::Day, FIRST)).unwrap_err().contains("twice"));
        assert!(audit::audit(&order, &executed(9, None)).is_err());
    }
    assert!(audit::audit(&Order::default(), &CANCELLED).unwrap_err().contains("before"));
    let Event::StandingOrderPlaced(own) = placed(Every::Day, FIRST) else { unreachable!() };
    let own = Event::StandingOrderPlaced(StandingOrderPlaced { to: "a".into(), ..own });
    assert!(audit::audit(&Order::default(), &own).unwrap_err().contains("itself"));
}

#[test]
fn rejections_are_listed_as_refusals() {
    let all = [
        StandingOrderNotFound,
        StandingOrderAlreadyPlaced,
        Rejection::StandingOrderCancelled,
        SameAccount,
        FirstInThePast,
        NotDue,
    ];
    assert_eq!(all.len(), StandingOrder::REFUSALS.len());
    for rejection in all {
        let json = serde_json::to_value(&rejection).unwrap();
        let name = json["reason"].as_str().unwrap();
        assert!(StandingOrder::REFUSALS.iter().any(|refusal| refusal.name == name), "{name}");
    }
}
