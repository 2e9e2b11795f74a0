//! What an event must be for the log to hold the rules. Written apart from `decide`, which wrote that log.

use super::{events::Event, state::User};

pub(super) fn audit(user: &User, event: &Event) -> Result<(), String> {
    let is_first = matches!(user, User::Unknown);
    match event {
        _ if matches!(user, User::Erased) => Err("it happened after the user was erased".into()),
        Event::UserRegistered(_) if is_first => Ok(()),
        Event::UserRegistered(_) => Err("the user was registered twice".into()),
        _ if is_first => Err("it happened before the user was registered".into()),
        Event::UserErased(erased) if erased.was_active == matches!(user, User::Active(_)) => Ok(()),
        Event::UserErased(_) => Err("it tells otherwise whether the user was active".into()),
        Event::UserReactivated(_) if matches!(user, User::Inactive(_)) => Ok(()),
        Event::UserReactivated(_) => Err("a user who was active was reactivated".into()),
        _ if matches!(user, User::Inactive(_)) => Err("it happened to a user who was not active".into()),
        Event::NameChanged(_) | Event::EmailChanged(_) | Event::AddressChanged(_) | Event::UserDeactivated(_) => Ok(()),
    }
}
