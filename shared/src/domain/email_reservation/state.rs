//! What a decision needs to know of a reservation's past.

use serde::Serialize;

use super::events::Event;

/// A reservation as the rules see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Reservation {
    /// Nobody has the address.
    #[default]
    Free,
    /// It is kept for a user, whose command is not decided yet.
    Reserved(Held),
    /// A user has it.
    Confirmed(Held),
}

/// For whom.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Held {
    /// Id of the user.
    pub holder: String,
    /// Under which claim they asked.
    pub claim: String,
}

impl Reservation {
    /// For whom it is kept.
    pub fn held(&self) -> Option<&Held> {
        match self {
            Self::Free => None,
            Self::Reserved(held) | Self::Confirmed(held) => Some(held),
        }
    }

    /// The state after an event. Events are facts: nothing is checked here.
    pub fn evolve(&mut self, event: &Event) {
        *self = match (std::mem::take(self), event) {
            (_, Event::EmailReserved(reserved)) => {
                Self::Reserved(Held { holder: reserved.holder.clone(), claim: reserved.claim.clone() })
            }
            (Self::Reserved(held), Event::ReservationConfirmed(_)) => Self::Confirmed(held),
            (_, Event::ReservationReleased(_)) => Self::Free,
            (state, Event::HolderAsked(_) | Event::ReservationConfirmed(_)) => state,
        };
    }
}
