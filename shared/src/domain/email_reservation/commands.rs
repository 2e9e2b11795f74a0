//! What a reservation can be asked to do, by users and by itself. These names are a stored format: see `schemas/commands`.

use serde::{Deserialize, Serialize};

use crate::{domain::AggregateId, records};

records! {
    /// A request to change one reservation.
    pub enum Command in "millrace.email_reservation.commands" {
        /// A user wants the address.
        ReserveEmail { ReserveEmail = "schemas/commands/ReserveEmail.v1.avsc" },
        /// The user has it.
        ConfirmReservation { ConfirmReservation = "schemas/commands/ConfirmReservation.v1.avsc" },
        /// The user does not have it.
        ReleaseReservation { ReleaseReservation = "schemas/commands/ReleaseReservation.v1.avsc" },
        /// Nobody has confirmed in time.
        LookIntoReservation { LookIntoReservation = "schemas/commands/LookIntoReservation.v1.avsc" },
        /// What the user has answered then.
        SettleClaim { SettleClaim = "schemas/commands/SettleClaim.v1.avsc" },
    }
}

/// Keeps the address for a user. Their command waits for the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReserveEmail {
    /// Id of the user.
    pub holder: AggregateId,
    /// Tells this asking from all others.
    pub claim: String,
}

/// The user has the address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfirmReservation {
    /// Id of the user.
    pub holder: AggregateId,
}

/// The user does not have the address, or no longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseReservation {
    /// Id of the user.
    pub holder: AggregateId,
    /// Only what was asked for under this claim and never confirmed; else whatever it was reserved for.
    pub claim: Option<String>,
}

/// Asks the user, when nobody has confirmed in time. Sent by the reservation itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookIntoReservation {}

/// What the user has answered. Sent by the reservation itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettleClaim {
    /// What was asked about.
    pub claim: String,
    /// Whether the user has the address.
    pub is_held: bool,
}
