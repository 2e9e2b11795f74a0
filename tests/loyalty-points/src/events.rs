//! What happens. These names are the stored format: see `schemas/events`; they never change.

use millrace_shared::records;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

records! {
    /// A fact about one member's points.
    pub enum Event in "loyalty_points.events" {
        /// Some were added.
        PointsEarned {
            v1::PointsEarned = "schemas/events/PointsEarned.v1.avsc",
            PointsEarned = "schemas/events/PointsEarned.v2.avsc",
        },
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
    /// Whether they are 100 or more at once.
    pub large: bool,
}

/// What the first release wrote.
pub mod v1 {
    use serde::{Deserialize, Serialize};

    /// Up to when it was said whether they are many.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct PointsEarned {
        /// How many.
        pub points: i64,
        /// What for.
        pub reason: Option<String>,
    }

    impl From<PointsEarned> for super::PointsEarned {
        fn from(PointsEarned { points, reason }: PointsEarned) -> Self {
            Self { points, reason, large: false }
        }
    }
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
