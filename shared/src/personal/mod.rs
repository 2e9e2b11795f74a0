//! Personal data: what can be forgotten although the log never forgets.
//!
//! A personal field is a [`Personal`] one. It lies in the log, in snapshots and in stores encrypted under a key of its
//! person (AES-256-GCM), and that key lies, encrypted in turn under a master key, in the compacted topic `<type>.keys`. When
//! the key is destroyed, the field is [`Personal::Erased`] for everybody and for ever, and everything else still folds.
//!
//! A domain sees open fields only. Whoever reads the log opens what was decoded ([`open_event`]), whoever writes seals it
//! before it is encoded: an open one can't be written by mistake.

mod hash;
mod keys;
mod sealed;
#[cfg(test)]
mod tests;

pub use hash::HashSecret;
pub use keys::{DataKey, KeyError, KeyRecord, Lock, MasterKeys, WrappedKey};
pub use sealed::{Error, Personal, Secret};

use crate::domain::Aggregate;

/// Opens the personal fields of an event; without a key they are erased.
///
/// # Errors
/// When a field was not sealed under this key, or for another aggregate: somebody has tampered with the log.
pub fn open_event<A: Aggregate>(event: &mut A::Event, key: Option<&DataKey>, id: &str) -> Result<(), Error> {
    all::<A>(|each| A::personal(event, each), key, id, |secret, key, place| secret.open(key, place))
}

/// The same of a state as it was kept.
///
/// # Errors
/// As [`open_event`].
pub fn open_snapshot<A: Aggregate>(snapshot: &mut A::Snapshot, key: Option<&DataKey>, id: &str) -> Result<(), Error> {
    all::<A>(|each| A::personal_in_snapshot(snapshot, each), key, id, |secret, key, place| secret.open(key, place))
}

/// Whether an event holds something that has to be sealed.
pub fn is_open<A: Aggregate>(event: &mut A::Event) -> bool {
    let mut found = false;
    A::personal(event, &mut |secret| found |= secret.is_open());
    found
}

/// Seals the personal fields of an event.
///
/// # Errors
/// When there is an open field, but no key, or a value is no JSON: a fault of ours.
pub fn seal_event<A: Aggregate>(event: &mut A::Event, key: Option<&DataKey>, id: &str) -> Result<(), Error> {
    all::<A>(|each| A::personal(event, each), key, id, |secret, key, place| secret.seal(key, place))
}

/// The same of a state that is to be kept.
///
/// # Errors
/// As [`seal_event`].
pub fn seal_snapshot<A: Aggregate>(snapshot: &mut A::Snapshot, key: Option<&DataKey>, id: &str) -> Result<(), Error> {
    all::<A>(|each| A::personal_in_snapshot(snapshot, each), key, id, |secret, key, place| secret.seal(key, place))
}

/// What a sealed value belongs to, and can't be moved away from. Not the field, nor the event: who may write to the log could
/// put a person's former name in the place of the present one, but could write any other event as well. What is sealed keeps
/// readers out; writers are kept out by the topics' access lists.
pub fn place<A: Aggregate>(id: &str) -> String {
    format!("{}/{id}", A::TYPE)
}

type Each<'a> = &'a mut dyn FnMut(&mut dyn Secret);

fn all<A: Aggregate>(
    fields: impl FnOnce(Each<'_>),
    key: Option<&DataKey>,
    id: &str,
    act: impl Fn(&mut dyn Secret, Option<&Lock>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    // Most events and states have no such field.
    let (mut result, mut made) = (Ok(()), None);
    fields(&mut |secret| {
        if result.is_ok() {
            let (lock, place) = made.get_or_insert_with(|| (key.map(Lock::from), place::<A>(id)));
            result = act(secret, lock.as_ref(), place);
        }
    });
    result
}
