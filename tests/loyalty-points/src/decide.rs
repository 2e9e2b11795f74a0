//! The rules, as they decide commands and as the log is held against them.

use millrace_shared::domain::Refusal;
use serde::Serialize;

use crate::{
    commands::Command,
    events::{Event, PointsEarned, PointsExpired, PointsRedeemed},
    state::Balance,
};

/// Why a rule refuses a command.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Rejection {
    /// There are not so many points.
    NotEnoughPoints {
        /// What is there.
        points: i64,
        /// What was asked for.
        requested: i64,
    },
    /// There are no points that could become too old.
    NothingToExpire,
}

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "not-enough-points",
        title: "There are not so many points",
        meaning: "`points` is what is there, `requested` what was asked for.",
    },
    Refusal {
        name: "nothing-to-expire",
        title: "There are no points",
        meaning: "All points are spent already, or none were ever earned.",
    },
];

pub(super) fn decide(balance: &Balance, command: &Command) -> Result<Vec<Event>, Rejection> {
    let event = match command {
        Command::Earn(earn) => {
            let points = earn.points.into();
            Event::PointsEarned(PointsEarned { points, reason: earn.reason.clone(), large: points >= 100 })
        }
        Command::Redeem(redeem) => {
            let requested = redeem.points.into();
            if requested > balance.points {
                return Err(Rejection::NotEnoughPoints { points: balance.points, requested });
            }
            Event::PointsRedeemed(PointsRedeemed { points: requested, reward: redeem.reward.clone() })
        }
        Command::Expire(_) if balance.points == 0 => return Err(Rejection::NothingToExpire),
        Command::Expire(expire) => {
            Event::PointsExpired(PointsExpired { points: balance.points.min(expire.points.into()) })
        }
    };
    Ok(vec![event])
}

pub(super) fn audit(balance: &Balance, event: &Event) -> Result<(), String> {
    let (points, left) = match event {
        Event::PointsEarned(earned) => (earned.points, balance.points),
        Event::PointsRedeemed(redeemed) => (redeemed.points, balance.points - redeemed.points),
        Event::PointsExpired(expired) => (expired.points, balance.points - expired.points),
    };
    match points {
        ..1 => Err(format!("{points} is no number of points")),
        _ if left < 0 => Err(format!("{points} points were taken from {}", balance.points)),
        _ => Ok(()),
    }
}
