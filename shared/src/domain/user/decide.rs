//! The rules.

use serde::Serialize;

use super::{
    commands::{ChangeAddress, Command, RegisterUser},
    events::{
        AddressChanged, EmailChanged, Event, NameChanged, UserDeactivated, UserErased, UserReactivated, UserRegistered,
    },
    state::User,
    values::Address,
};
use crate::{
    domain::{Refusal, email_reservation},
    personal::Personal,
};

/// Why a rule refuses a command. The names are part of the contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Rejection {
    /// There is no such user.
    UserNotFound,
    /// There is one already.
    UserAlreadyRegistered,
    /// The user is suspended.
    UserInactive,
    /// The user is not suspended.
    UserActive,
    /// The user was forgotten.
    UserErased,
    /// The user does not wait for this.
    NotWaitedFor,
}

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "user-not-found",
        title: "There is no such user",
        meaning: "No user was registered under this id.",
    },
    Refusal {
        name: "user-already-registered",
        title: "The user was registered before",
        meaning: "A user was registered under this id before. Choose another id.",
    },
    Refusal {
        name: "user-inactive",
        title: "The user is not active",
        meaning: "The user was deactivated: only `reactivate` and `erase` are possible.",
    },
    Refusal {
        name: "user-active",
        title: "The user is active",
        meaning: "Only a user who was deactivated can be reactivated.",
    },
    Refusal {
        name: "user-erased",
        title: "The user was erased",
        meaning: "The user's personal data was destroyed on request. Nothing can be done with this id any more.",
    },
    Refusal {
        name: email_reservation::TAKEN,
        title: "The e-mail address is taken",
        meaning: "Another user has this e-mail address, or has asked for it before. Choose another one.",
    },
    Refusal {
        name: "not-waited-for",
        title: "The user does not wait for this",
        meaning: "The user has no such address, and no command waits for it. Only Millrace itself is answered so.",
    },
];

pub(super) fn decide(user: &User, command: &Command) -> Result<Vec<Event>, Rejection> {
    match (user, command) {
        (User::Erased, _) => Err(Rejection::UserErased),
        (User::Unknown, Command::RegisterUser(register)) => Ok(vec![registered(register)]),
        (User::Unknown, _) => Err(Rejection::UserNotFound),
        (User::Active(_) | User::Inactive(_), Command::RegisterUser(_)) => Err(Rejection::UserAlreadyRegistered),
        (User::Active(_), Command::EraseUser(_)) => Ok(vec![Event::UserErased(UserErased { was_active: true })]),
        (User::Inactive(_), Command::EraseUser(_)) => Ok(vec![Event::UserErased(UserErased { was_active: false })]),
        (User::Inactive(_), Command::ReactivateUser(_)) => Ok(vec![Event::UserReactivated(UserReactivated {})]),
        (User::Active(_), Command::ReactivateUser(_)) => Err(Rejection::UserActive),
        (User::Active(_) | User::Inactive(_), Command::AskClaim(ask)) => {
            // That the answer is yes, is all.
            if user.reservation() == Some(&ask.reservation) { Ok(Vec::new()) } else { Err(Rejection::NotWaitedFor) }
        }
        // While a command waits for it, it never comes here.
        (User::Active(_) | User::Inactive(_), Command::AnswerClaim(_)) => Err(Rejection::NotWaitedFor),
        (
            User::Inactive(_),
            Command::ChangeName(_) | Command::ChangeEmail(_) | Command::ChangeAddress(_) | Command::DeactivateUser(_),
        ) => Err(Rejection::UserInactive),
        (User::Active(_), Command::ChangeName(change)) => Ok(vec![Event::NameChanged(NameChanged {
            given_name: Personal::Open(change.given_name.clone().into()),
            family_name: Personal::Open(change.family_name.clone().into()),
        })]),
        (User::Active(_), Command::ChangeEmail(change)) => Ok(vec![Event::EmailChanged(EmailChanged {
            email: Personal::Open(change.email.clone().into()),
            reservation: Personal::Open(change.reservation.clone()),
        })]),
        (User::Active(_), Command::ChangeAddress(change)) => Ok(vec![moved(change.clone())]),
        (User::Active(_), Command::DeactivateUser(_)) => Ok(vec![Event::UserDeactivated(UserDeactivated {})]),
    }
}

fn registered(register: &RegisterUser) -> Event {
    let RegisterUser { given_name, family_name, email, address, reservation } = register.clone();
    Event::UserRegistered(UserRegistered {
        given_name: Personal::Open(given_name.into()),
        family_name: Personal::Open(family_name.into()),
        email: Personal::Open(email.into()),
        address: Personal::Open(address.map(Into::into)),
        reservation: Personal::Open(reservation),
    })
}

fn moved(ChangeAddress { street, postal_code, city, country }: ChangeAddress) -> Event {
    let address = Address { street, postal_code, city, country };
    Event::AddressChanged(AddressChanged { address: Personal::Open(address.into()) })
}
