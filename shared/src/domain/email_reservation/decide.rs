//! The rules.

use serde::Serialize;

use super::{
    TAKEN,
    commands::{Command, ReserveEmail},
    events::{EmailReserved, Event, HolderAsked, ReservationConfirmed, ReservationReleased},
    state::{Held, Reservation},
};
use crate::domain::Refusal;

/// Why a rule refuses a command. The names are part of the contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Rejection {
    /// Another user has the address, or has asked for it before.
    EmailTaken,
    /// The reservation does not wait for this.
    NotReserved,
}

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        name: TAKEN,
        title: "The e-mail address is taken",
        meaning: "Another user has this e-mail address, or has asked for it before. Choose another one.",
    },
    Refusal {
        name: "not-reserved",
        title: "The reservation does not wait for this",
        meaning: "It is not kept for this user any more, or is confirmed already. Only Millrace itself is answered so.",
    },
];

pub(super) fn decide(reservation: &Reservation, command: &Command) -> Result<Vec<Event>, Rejection> {
    let confirmed = || Ok(vec![Event::ReservationConfirmed(ReservationConfirmed {})]);
    let released = || Ok(vec![Event::ReservationReleased(ReservationReleased {})]);
    match (reservation, command) {
        (Reservation::Free, Command::ReserveEmail(ReserveEmail { holder, claim })) => {
            let reserved = EmailReserved { holder: holder.as_str().to_owned(), claim: claim.clone() };
            Ok(vec![Event::EmailReserved(reserved)])
        }
        (Reservation::Reserved(held) | Reservation::Confirmed(held), Command::ReserveEmail(reserve)) => {
            // The same once more, when the first answer was lost. Two commands of one user are two askings: one that is
            // refused must not release what the other one has.
            match *held == (Held { holder: reserve.holder.as_str().to_owned(), claim: reserve.claim.clone() }) {
                true => Ok(Vec::new()),
                false => Err(Rejection::EmailTaken),
            }
        }
        (Reservation::Reserved(held), Command::ConfirmReservation(confirm))
            if held.holder == confirm.holder.as_str() =>
        {
            confirmed()
        }
        (Reservation::Reserved(held), Command::ReleaseReservation(release))
            if held.holder == release.holder.as_str()
                && release.claim.as_ref().is_none_or(|claim| *claim == held.claim) =>
        {
            released()
        }
        (Reservation::Confirmed(held), Command::ReleaseReservation(release))
            if held.holder == release.holder.as_str() && release.claim.is_none() =>
        {
            released()
        }
        (Reservation::Reserved(held), Command::SettleClaim(settle)) if held.claim == settle.claim => {
            if settle.is_held {
                confirmed()
            } else {
                released()
            }
        }
        (Reservation::Reserved(_), Command::LookIntoReservation(_)) => Ok(vec![Event::HolderAsked(HolderAsked {})]),
        (
            _,
            Command::ConfirmReservation(_)
            | Command::ReleaseReservation(_)
            | Command::SettleClaim(_)
            | Command::LookIntoReservation(_),
        ) => Err(Rejection::NotReserved),
    }
}
