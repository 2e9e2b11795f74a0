//! What can be asked for. These names are a stored format: see `schemas/commands`.

use millrace_shared::{
    domain::{CommandError, Fields},
    records,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

records! {
    /// A request to change one member's points.
    pub enum Command in "loyalty_points.commands" {
        /// Add some.
        Earn { Earn = "schemas/commands/Earn.v1.avsc" },
        /// Spend some.
        Redeem { Redeem = "schemas/commands/Redeem.v1.avsc" },
        /// Take some away that have become too old.
        Expire { Expire = "schemas/commands/Expire.v1.avsc" },
    }
}

/// Adds points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Earn {
    /// How many.
    #[schema(value_type = i64, minimum = 1, maximum = 1_000_000)]
    pub points: Points,
    /// What for.
    #[schema(required = false)]
    pub reason: Option<String>,
}

/// Spends points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Redeem {
    /// How many.
    #[schema(value_type = i64, minimum = 1, maximum = 1_000_000)]
    pub points: Points,
    /// On what.
    pub reward: String,
}

/// Takes points away that have become too old: as many as asked for, or what is left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Expire {
    /// How many.
    #[schema(value_type = i64, minimum = 1, maximum = 1_000_000)]
    pub points: Points,
}

/// A number of points, 1 to 1,000,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Points(i64);

impl TryFrom<i64> for Points {
    type Error = &'static str;

    fn try_from(points: i64) -> Result<Self, Self::Error> {
        if (1..=1_000_000).contains(&points) { Ok(Self(points)) } else { Err("must be from 1 to 1000000") }
    }
}

impl From<Points> for i64 {
    fn from(points: Points) -> Self {
        points.0
    }
}

pub(super) fn read(name: &str, mut fields: Fields) -> Result<Command, CommandError> {
    let points = fields.required("points");
    let command = match name {
        "earn" => {
            let reason = fields.optional("reason");
            points.map(|points| Command::Earn(Earn { points, reason }))
        }
        "redeem" => {
            let reward = fields.required("reward");
            points.zip(reward).map(|(points, reward)| Command::Redeem(Redeem { points, reward }))
        }
        "expire" => points.map(|points| Command::Expire(Expire { points })),
        _ => return Err(CommandError::Unknown),
    };
    fields.finish(command)
}
