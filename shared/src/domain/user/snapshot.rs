//! A user's state as it lies in the snapshot topic and in the partition store.

use serde::{Deserialize, Serialize};

use super::state;
use crate::{personal::Personal, records};

records! {
    /// The state of a user.
    pub enum Snapshot in "millrace.user.snapshots" {
        /// The only record there is.
        User {
            v1::User = "schemas/snapshots/User.v1.avsc",
            User = "schemas/snapshots/User.v2.avsc",
        },
    }
}

/// The state of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Which of the states.
    pub status: Status,
    /// E-mail address, where the state has one.
    pub email: Personal<String>,
    /// Id of its reservation, where it has one.
    pub reservation: Personal<Option<String>>,
}

/// Before e-mail addresses were reserved.
mod v1 {
    use serde::Deserialize;

    use crate::personal::Personal;

    #[derive(Deserialize)]
    pub(super) struct User {
        status: super::Status,
        email: Personal<String>,
    }

    impl From<User> for super::User {
        fn from(User { status, email }: User) -> Self {
            Self { status, email, reservation: Personal::Erased }
        }
    }
}

/// Names of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing has happened yet.
    Unknown,
    /// Registered.
    Active,
    /// Suspended.
    Inactive,
    /// Forgotten.
    Erased,
}

impl From<&state::User> for Snapshot {
    fn from(state: &state::User) -> Self {
        let of = |status, person: Option<&state::Person>| {
            let (email, reservation) = match person {
                Some(person) => (person.email.clone(), person.reservation.clone()),
                None => (Personal::Erased, Personal::Erased),
            };
            Self::User(User { status, email, reservation })
        };
        match state {
            state::User::Unknown => of(Status::Unknown, None),
            state::User::Active(person) => of(Status::Active, Some(person)),
            state::User::Inactive(person) => of(Status::Inactive, Some(person)),
            state::User::Erased => of(Status::Erased, None),
        }
    }
}

impl From<Snapshot> for state::User {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot::User(User { status, email, reservation }) = snapshot;
        match status {
            Status::Unknown => Self::Unknown,
            Status::Active => Self::Active(state::Person { email, reservation }),
            Status::Inactive => Self::Inactive(state::Person { email, reservation }),
            Status::Erased => Self::Erased,
        }
    }
}
