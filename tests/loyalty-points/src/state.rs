//! What a decision needs to know: how many points there are. It is also what snapshots keep.

use millrace_shared::records;
use serde::{Deserialize, Serialize};

use crate::events::Event;

/// A member's points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Balance {
    /// Those that can be spent.
    pub points: i64,
}

impl Balance {
    /// The state after an event. Events are facts: nothing is checked here.
    pub fn evolve(&mut self, event: &Event) {
        self.points += match event {
            Event::PointsEarned(earned) => earned.points,
            Event::PointsRedeemed(redeemed) => -redeemed.points,
            Event::PointsExpired(expired) => -expired.points,
        };
    }
}

records! {
    /// The state as it lies in the snapshot topic and in the partition store.
    pub enum Snapshot in "loyalty_points.snapshots" {
        /// The only record there is.
        Balance { Balance = "schemas/snapshots/Balance.v1.avsc" },
    }
}

impl From<&Balance> for Snapshot {
    fn from(balance: &Balance) -> Self {
        Self::Balance(*balance)
    }
}

impl From<Snapshot> for Balance {
    fn from(Snapshot::Balance(balance): Snapshot) -> Self {
        balance
    }
}
