use millrace_shared::domain::{kit::given, recorded};

use super::{Rejection::*, *};

fn points(points: i64) -> Points {
    points.try_into().unwrap()
}

fn earned(points: i64) -> Event {
    Event::PointsEarned(PointsEarned { points, reason: None, large: points >= 100 })
}

fn redeem(count: i64) -> Command {
    Command::Redeem(Redeem { points: points(count), reward: "mug".into() })
}

fn redeemed(points: i64) -> Event {
    Event::PointsRedeemed(PointsRedeemed { points, reward: "mug".into() })
}

fn expire(count: i64) -> Command {
    Command::Expire(Expire { points: points(count) })
}

#[test]
fn g04_nobody_spends_more_than_there_is() {
    given::<LoyaltyPoints>([]).when(redeem(1)).then_rejected(NotEnoughPoints { points: 0, requested: 1 });
    given::<LoyaltyPoints>([earned(100)]).when(redeem(100)).then([redeemed(100)]);
    given::<LoyaltyPoints>([earned(100), redeemed(80)])
        .when(redeem(21))
        .then_rejected(NotEnoughPoints { points: 20, requested: 21 });
}

#[test]
fn what_expires_is_what_is_left_at_most() {
    let expired = |points| Event::PointsExpired(PointsExpired { points });
    given::<LoyaltyPoints>([earned(100), redeemed(80)]).when(expire(50)).then([expired(20)]);
    given::<LoyaltyPoints>([earned(100), redeemed(80)]).when(expire(5)).then([expired(5)]);
    given::<LoyaltyPoints>([earned(100), expired(100)]).when(expire(1)).then_rejected(NothingToExpire);
}

#[test]
fn g04_an_audit_finds_what_breaks_the_rules() {
    let audit = |points, event| LoyaltyPoints::audit(&Balance { points }, &event);
    assert_eq!(audit(5, redeemed(5)), Ok(()));
    assert_eq!(audit(5, redeemed(6)), Err("6 points were taken from 5".into()));
    assert_eq!(audit(5, earned(0)), Err("0 is no number of points".into()));
}

#[test]
fn g12_every_version_is_as_it_was_recorded() {
    recorded::check::<LoyaltyPoints>(concat!(env!("CARGO_MANIFEST_DIR"), "/src/schemas"));
}
