//! What an event must be for the log to hold the rules. Written apart from `decide`, which wrote that log.

use super::{events::Event, state::Reservation};

pub(super) fn audit(reservation: &Reservation, event: &Event) -> Result<(), String> {
    match (event, reservation) {
        (Event::EmailReserved(_), Reservation::Free) => Ok(()),
        (Event::EmailReserved(_), _) => Err("the address was reserved for two".into()),
        (Event::ReservationReleased(_), Reservation::Free) => Err("it was released, but was not reserved".into()),
        (Event::ReservationReleased(_), _) => Ok(()),
        (Event::HolderAsked(_) | Event::ReservationConfirmed(_), Reservation::Reserved(_)) => Ok(()),
        (Event::HolderAsked(_) | Event::ReservationConfirmed(_), _) => {
            Err("nobody waited for it to be confirmed".into())
        }
    }
}
