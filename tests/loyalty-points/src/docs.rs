//! What the API's description says.

use millrace_shared::domain::docs::{Docs, command, described, event};
use serde_json::json;
use utoipa::ToSchema;

use crate::{Earn, Expire, PointsEarned, PointsExpired, PointsRedeemed, PointsView, Redeem};

/// The answer of `…/stats`.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only described")]
struct Stats {
    members: u64,
    earned: u64,
    redeemed: u64,
    expired: u64,
}

pub(super) fn docs() -> Docs {
    Docs {
        noun: "member's points",
        commands: vec![
            command::<Earn>("earn", "Adds points", json!({"points": 100, "reason": "order 17"})),
            command::<Redeem>("redeem", "Spends points", json!({"points": 80, "reward": "mug"})),
            command::<Expire>("expire", "Takes old points away", json!({"points": 20})),
        ],
        events: vec![
            event::<PointsEarned>("PointsEarned", json!({"points": 100, "reason": "order 17", "large": true})),
            event::<PointsRedeemed>("PointsRedeemed", json!({"points": 80, "reward": "mug"})),
            event::<PointsExpired>("PointsExpired", json!({"points": 20})),
        ],
        view: described::<PointsView>(json!({
            "id": "ada", "points": 20, "earned": 100, "last_reward": "mug", "version": 2,
            "updated_at": "2026-02-01T08:30:00.250000Z",
        })),
        stats: described::<Stats>(json!({"members": 1, "earned": 100, "redeemed": 80, "expired": 0})),
    }
}
