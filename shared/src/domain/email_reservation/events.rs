//! What happens to reservations. These names are the stored format: see `schemas/events`; they never change.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::records;

records! {
    /// A fact about one reservation.
    pub enum Event in "millrace.email_reservation.events" {
        /// The address is kept for a user.
        EmailReserved { EmailReserved = "schemas/events/EmailReserved.v1.avsc" },
        /// Nobody has confirmed in time.
        HolderAsked { HolderAsked = "schemas/events/HolderAsked.v1.avsc" },
        /// The user has it.
        ReservationConfirmed { ReservationConfirmed = "schemas/events/ReservationConfirmed.v1.avsc" },
        /// Anybody may have it.
        ReservationReleased { ReservationReleased = "schemas/events/ReservationReleased.v1.avsc" },
    }
}

/// The address is kept for a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EmailReserved {
    /// Id of the user.
    pub holder: String,
    /// Tells this asking from all others.
    pub claim: String,
}

/// It was not confirmed in time, and the user is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HolderAsked {}

/// The user has the address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReservationConfirmed {}

/// Anybody may have the address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReservationReleased {}
