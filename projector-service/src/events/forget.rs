//! The erasure of somebody whose events wait. It can't become part of the view before these do, but what the view tells must
//! be gone: so the view is folded again from the history, now without a key. It stays where it was, and what is personal is
//! null. Where the history does not give it, nothing is kept: the log has all that may be known.

use std::collections::BTreeMap;

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Projection},
    personal,
    views::{Keys, history},
};

use super::{
    Memory, View,
    fold::{self, Forgotten, Touched},
    parse,
};
use crate::{command::Command, store::Store, target::Error};

/// Commands to be done after those of the batch.
pub fn forget<A: Aggregate>(
    keys: &Keys,
    codec: &Codec<A::Event>,
    forgotten: Vec<Forgotten<View<A>>>,
    store: &mut Store,
) -> Result<Vec<Command>, Error> {
    let mut commands = Vec::new();
    for Forgotten { id, view, fresh } in forgotten {
        let mut found = store.strings(&[keys.view(&id), keys.base(&id)])?.into_iter();
        let (stored, base) = (found.next().flatten(), found.next().flatten());
        let before = view.or_else(|| parse::<View<A>>(stored).ok().flatten());
        let version = before.as_ref().map_or(0, A::Projection::version);
        let mut entries = if version > 0 { store.list(&keys.history(&id), version)? } else { Vec::new() };
        entries.extend(fresh);
        let folded = match base {
            // It tells in clear what can't be folded again.
            Some(_) => Err("its beginning was trimmed".to_owned()),
            None => without_key::<A>(codec, &id, &entries, version),
        };
        match folded {
            Ok(now) => {
                let touched = BTreeMap::from([(id, Touched { before, now: Some(now), history: Vec::new() })]);
                commands.extend(fold::write::<A>(
                    keys,
                    &Memory::default(),
                    &touched,
                    &Default::default(),
                    &Default::default(),
                )?);
            }
            Err(reason) => {
                tracing::warn!(
                    view = keys.view(&id),
                    "the view of somebody who was erased is dropped, since events of it wait: {reason}"
                );
                commands.extend(dropped::<A>(keys, &id, before.as_ref()));
            }
        }
    }
    Ok(commands)
}

/// The view after a number of events, of which nothing personal is known.
fn without_key<A: Aggregate>(
    codec: &Codec<A::Event>,
    id: &str,
    entries: &[Vec<u8>],
    version: u64,
) -> Result<View<A>, String> {
    let mut view = None;
    for (entry, sequence) in entries.iter().zip(1..=version) {
        let (meta, mut event) = history::unpack(codec, entry).ok_or("an event can't be unpacked")?;
        if meta.sequence != sequence {
            return Err(format!("event {} lies where {sequence} should", meta.sequence));
        }
        personal::open_event::<A>(&mut event, None, id).map_err(|error| error.to_string())?;
        view = Some(A::Projection::fold(view, id, &meta, &event)?);
    }
    view.filter(|view| A::Projection::version(view) == version)
        .ok_or_else(|| "its history is shorter than it".to_owned())
}

/// All that is kept of an aggregate, and its places in the indexes.
fn dropped<A: Aggregate>(keys: &Keys, id: &str, view: Option<&View<A>>) -> Vec<Command> {
    let sorts = A::Projection::SORTS.iter().flat_map(|sort| [keys.sort(sort.name, false), keys.sort(sort.name, true)]);
    let filters = A::Projection::FILTERS.iter().filter(|filter| filter.selective);
    let filters = view.into_iter().flat_map(|view| {
        filters.clone().map(|filter| (filter.name, (filter.value)(view))).filter(|(_, value)| !value.is_empty())
    });
    let indexes = sorts.chain(filters.map(|(name, value)| keys.filter(name, value)));
    let mut commands: Vec<Command> = indexes.map(|key| Command::new("ZREM", key).with(id)).collect();
    commands.extend(keys.of_aggregate(id).into_iter().map(|key| Command::new("UNLINK", key)));
    commands
}
