//! What happens. These names are the stored format: see `schemas/events`; they never change.

use millrace_shared::records;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

records! {
    /// A fact about one member's points.
    pub enum Event in "loyalty_points.events" {
        /// Some were added.
        PointsEarned { PointsEarned = "schemas/events/PointsEarned.v1.avsc" },
        /// Some were spent.
        PointsRedeemed { PointsRedeemed = "schemas/events/PointsRedeemed.v1.avsc" },
        /// Some became too old.
        PointsExpired { PointsExpired = "schemas/events/PointsExpired.v1.avsc" },
    }
}

/// Points were added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PointsEarned {
    /// How many.
    pub points: i64,
    /// What for.
    #[schema(required)]
    pub reason: Option<String>,
}

/// Points were spent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PointsRedeemed {
    /// How many.
    pub points: i64,
    /// On what.
    pub reward: String,
}

/// Points became too old.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PointsExpired {
    /// How many.
    pub points: i64,
}
