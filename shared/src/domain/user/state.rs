//! What a decision needs to know of a user's past.

use serde::Serialize;

use super::events::Event;
use crate::personal::Personal;

/// A user as the rules see them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum User {
    /// Nothing has happened yet.
    #[default]
    Unknown,
    /// Registered.
    Active(Person),
    /// Suspended.
    Inactive(Person),
    /// Forgotten, with all that was known.
    Erased,
}

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Person {
    /// E-mail address.
    pub email: Personal<String>,
    /// Id of its reservation, where it has one: it has none from before there were reservations.
    pub reservation: Personal<Option<String>>,
}

impl User {
    /// Id of the reservation of the present e-mail address.
    pub fn reservation(&self) -> Option<&str> {
        match self {
            Self::Active(person) | Self::Inactive(person) => person.reservation.get()?.as_deref(),
            Self::Unknown | Self::Erased => None,
        }
    }

    /// The state after an event. Events are facts: nothing is checked here.
    pub fn evolve(&mut self, event: &Event) {
        *self = match (std::mem::take(self), event) {
            (_, Event::UserRegistered(registered)) => {
                Self::Active(Person { email: registered.email.clone(), reservation: registered.reservation.clone() })
            }
            (Self::Active(_), Event::EmailChanged(changed)) => {
                Self::Active(Person { email: changed.email.clone(), reservation: changed.reservation.clone() })
            }
            (Self::Active(person), Event::UserDeactivated(_)) => Self::Inactive(person),
            (Self::Inactive(person), Event::UserReactivated(_)) => Self::Active(person),
            (_, Event::UserErased(_)) => Self::Erased,
            (
                state,
                Event::NameChanged(_)
                | Event::EmailChanged(_)
                | Event::AddressChanged(_)
                | Event::UserDeactivated(_)
                | Event::UserReactivated(_),
            ) => state,
        };
    }
}
