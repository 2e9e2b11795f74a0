//! What is personal: a field that is missing here can't be written at all.

use super::{events::Event, snapshot::Snapshot};
use crate::personal::Secret;

type Each<'a> = &'a mut dyn FnMut(&mut dyn Secret);

pub(super) fn of_event(event: &mut Event, each: Each<'_>) {
    match event {
        Event::UserRegistered(registered) => {
            each(&mut registered.given_name);
            each(&mut registered.family_name);
            each(&mut registered.email);
            each(&mut registered.address);
            each(&mut registered.reservation);
        }
        Event::NameChanged(changed) => {
            each(&mut changed.given_name);
            each(&mut changed.family_name);
        }
        Event::EmailChanged(changed) => {
            each(&mut changed.email);
            each(&mut changed.reservation);
        }
        Event::AddressChanged(changed) => each(&mut changed.address),
        Event::UserDeactivated(_) | Event::UserReactivated(_) | Event::UserErased(_) => {}
    }
}

pub(super) fn of_snapshot(snapshot: &mut Snapshot, each: Each<'_>) {
    let Snapshot::User(user) = snapshot;
    each(&mut user.email);
    each(&mut user.reservation);
}
