//! A reservation's state as it lies in the snapshot topic and in the partition store.

use serde::{Deserialize, Serialize};

use super::state::{self, Held};
use crate::records;

records! {
    /// The state of a reservation.
    pub enum Snapshot in "millrace.email_reservation.snapshots" {
        /// The only record there is.
        Reservation { Reservation = "schemas/snapshots/Reservation.v1.avsc" },
    }
}

/// The state of a reservation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reservation {
    /// Which of the states.
    pub status: Status,
    /// Id of the user; empty when it is free.
    pub holder: String,
    /// What it was reserved under; empty when it is free.
    pub claim: String,
}

/// Names of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nobody has the address.
    Free,
    /// It is kept for a user.
    Reserved,
    /// A user has it.
    Confirmed,
}

impl From<&state::Reservation> for Snapshot {
    fn from(state: &state::Reservation) -> Self {
        let status = match state {
            state::Reservation::Free => Status::Free,
            state::Reservation::Reserved(_) => Status::Reserved,
            state::Reservation::Confirmed(_) => Status::Confirmed,
        };
        let text = |of: fn(&Held) -> &String| state.held().map(of).cloned().unwrap_or_default();
        Self::Reservation(Reservation { status, holder: text(|held| &held.holder), claim: text(|held| &held.claim) })
    }
}

impl From<Snapshot> for state::Reservation {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot::Reservation(Reservation { status, holder, claim }) = snapshot;
        match status {
            Status::Free => Self::Free,
            Status::Reserved => Self::Reserved(Held { holder, claim }),
            Status::Confirmed => Self::Confirmed(Held { holder, claim }),
        }
    }
}
