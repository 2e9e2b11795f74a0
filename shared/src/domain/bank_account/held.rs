//! Transfers that an account takes part in and that have not ended.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, Serializer};

/// What may come back, in minor units, by the transfer's id: nothing at a target, which only remembers that it was paid.
/// Nearly always there is none, so it takes no more than a pointer then; a state is copied for each command, but this not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held(Option<Arc<BTreeMap<Box<str>, i64>>>);

impl Held {
    /// As many transfers may be under way before an account pays for no other.
    pub const MAX_TO_PAY: usize = 1_000;
    /// The same for being paid: a state must fit into a snapshot.
    pub const MAX_TO_BE_PAID: usize = 5_000;

    pub(super) fn insert(&mut self, transfer_id: &str, amount_minor: i64) {
        Arc::make_mut(self.0.get_or_insert_default()).insert(transfer_id.into(), amount_minor);
    }

    pub(super) fn remove(&mut self, transfer_id: &str) {
        if let Some(held) = &mut self.0 {
            Arc::make_mut(held).remove(transfer_id);
        }
        self.0.take_if(|held| held.is_empty());
    }

    /// What may come back of a transfer that is under way.
    pub fn of(&self, transfer_id: &str) -> Option<i64> {
        self.0.as_ref()?.get(transfer_id).copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All of it, in minor units.
    pub fn total_minor(&self) -> i64 {
        self.iter().map(|(_, amount_minor)| amount_minor).sum()
    }

    /// By id.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().flat_map(|held| held.iter()).map(|(id, amount_minor)| (&**id, *amount_minor))
    }
}

impl<'a> FromIterator<(&'a str, i64)> for Held {
    fn from_iter<T: IntoIterator<Item = (&'a str, i64)>>(held: T) -> Self {
        let mut all = Self::default();
        held.into_iter().for_each(|(id, amount_minor)| all.insert(id, amount_minor));
        all
    }
}

impl Serialize for Held {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}
