//! The personal data of a batch: opened with the keys that Redis has of its people, else with those of the key topic.

use std::{
    collections::{BTreeMap, HashMap},
    marker::PhantomData,
};

use millrace_shared::{
    domain::Aggregate,
    personal,
    views::{Keys, people},
};

use crate::{command::Command, keyring::Keyring, store::Store, target::Error};

/// The people of some events of a partition. To be made after these were read, since a key that is not found then was
/// destroyed.
pub struct People<'a, A> {
    /// `None`: nothing of this type is personal.
    keyring: Option<&'a Keyring>,
    partition: i32,
    /// As Redis has them.
    stored: HashMap<String, Vec<u8>>,
    caught_up: bool,
    changed: BTreeMap<String, Option<Vec<u8>>>,
    of: PhantomData<fn() -> A>,
}

/// What becomes of the keys that Redis has: those that were found, and those that are to be taken away.
pub type Changed = BTreeMap<String, Option<Vec<u8>>>;

impl<'a, A: Aggregate> People<'a, A> {
    /// Those of a partition, with the keys that Redis has of them.
    pub fn new(keyring: Option<&'a Keyring>, partition: i32, stored: HashMap<String, Vec<u8>>) -> Self {
        Self { keyring, partition, stored, caught_up: false, changed: BTreeMap::new(), of: PhantomData }
    }

    /// Nobody's: of a type without personal data.
    pub fn nobody() -> Self {
        Self::new(None, 0, HashMap::new())
    }

    /// Opens the next event of an aggregate. The inner error tells why it can't ever be.
    ///
    /// # Errors
    /// When that is not known yet.
    pub fn open(&mut self, id: &str, event: &mut A::Event) -> Result<Result<(), String>, Error> {
        let (Some(keyring), true) = (self.keyring, has_fields::<A>(event)) else { return Ok(Ok(())) };
        let (mut key, mut is_new) = self.key(keyring, id)?;
        let mut opened = keyring.opener.open::<A>(event, key.as_deref(), id);
        if let Err(people::Error::Key(_) | people::Error::Missing(_)) = opened
            && self.stored.remove(id).is_some()
        {
            // What Redis has is not the key of this person, or as it was before master keys were rotated.
            self.changed.insert(id.to_owned(), None);
            (key, is_new) = self.key(keyring, id)?;
            opened = keyring.opener.open::<A>(event, key.as_deref(), id);
        }
        match opened {
            Ok(()) => {
                if is_new && personal::is_open::<A>(event) {
                    self.changed.insert(id.to_owned(), key);
                }
                Ok(Ok(()))
            }
            Err(missing @ people::Error::Missing(_)) => Err(Error::Again(format!("{} {id}: {missing}", A::TYPE))),
            Err(never) => Ok(Err(never.to_string())),
        }
    }

    /// An event has become part of its aggregate's view.
    pub fn applied(&mut self, id: &str, event: &A::Event) {
        if A::erases(event) {
            self.erased(id);
        }
    }

    /// An event of this batch has erased somebody.
    pub fn erased(&mut self, id: &str) {
        self.changed.insert(id.to_owned(), None);
    }

    /// What the events before these have changed.
    pub fn follow(&mut self, earlier: Self) {
        for (id, key) in earlier.changed {
            self.changed.entry(id).or_insert(key);
        }
    }

    /// Whether one is erased by these events.
    pub fn is_erased(&self, id: &str) -> bool {
        self.changed.get(id).is_some_and(Option::is_none)
    }

    /// What becomes of the keys in Redis.
    pub fn changed(&self) -> &Changed {
        &self.changed
    }

    /// The same as commands.
    pub fn commands(&self, keys: &Keys) -> Vec<Command> {
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        for (id, key) in &self.changed {
            match key {
                Some(key) => found.push([id.as_str().into(), key.clone()]),
                None => gone.push([id.as_str().into()]),
            }
        }
        let mut commands: Vec<Command> = Command::chunked(&Command::new("HSET", keys.keys()), found).collect();
        commands.extend(Command::chunked(&Command::new("HDEL", keys.keys()), gone));
        commands
    }

    /// The key of a person, and whether Redis has none.
    fn key(&mut self, keyring: &Keyring, id: &str) -> Result<(Option<Vec<u8>>, bool), Error> {
        match (self.changed.get(id), self.stored.get(id)) {
            (Some(Some(key)), _) => return Ok((Some(key.clone()), true)),
            (None, Some(key)) => return Ok((Some(key.clone()), false)),
            (Some(None) | None, _) => {}
        }
        if !self.caught_up {
            keyring.catch_up(self.partition).map_err(Error::Again)?;
            self.caught_up = true;
        }
        Ok((keyring.find(self.partition, id), true))
    }
}

/// Whether there is anything to open, as there is not in most events of some types.
fn has_fields<A: Aggregate>(event: &mut A::Event) -> bool {
    let mut found = false;
    A::personal(event, &mut |_| found = true);
    found
}

/// What brings keys into Redis that it has as they were before master keys were rotated. Where the topic has no other, or
/// none, nothing changes.
pub fn renewed(keyring: &Keyring, partition: i32, keys: &Keys, store: &mut Store) -> Result<Vec<Command>, Error> {
    let (mut outdated, mut cursor) = (Vec::new(), 0);
    loop {
        let (next, some) = store.some_fields(&keys.keys(), cursor)?;
        outdated.extend(some.into_iter().filter(|(_, packed)| keyring.opener.is_outdated(packed)));
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    if outdated.is_empty() {
        return Ok(Vec::new());
    }
    keyring.catch_up(partition).map_err(Error::Again)?;
    let renewed = outdated.into_iter().filter_map(|(id, packed)| {
        let found = keyring.find(partition, &id).filter(|found| *found != packed && !found.is_empty())?;
        Some([id.into_bytes(), found])
    });
    Ok(Command::chunked(&Command::new("HSET", keys.keys()), renewed).collect())
}
