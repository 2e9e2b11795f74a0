//! The fold of a batch, in two steps: which group an event belongs to is known once its aggregate's member is, and what
//! Redis has of those groups is read in between. No I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use millrace_shared::{
    domain::Grouping,
    views::{Keys, Parked},
};

use super::{Event, Loaded, Member, Memory};
use crate::{
    command::Command,
    events::{Happened, Incoming, fold::park},
    target::{At, Batch, Error},
};

/// A batch whose events have found their groups.
pub struct Placed<G: Grouping> {
    events: Vec<Placing<G>>,
    repeated: u64,
}

/// One event, with its aggregate's member after it; or why it waits.
struct Placing<G: Grouping> {
    offset: i64,
    id: String,
    event: Result<(Member<G::Member>, Event<G>), String>,
}

impl<G: Grouping> Placed<G> {
    /// The groups that it is about.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.events.iter().filter_map(|placing| Some(G::key(&placing.event.as_ref().ok()?.0.member)))
    }
}

/// Finds the groups of a batch's events.
pub fn place<G: Grouping>(
    memory: &Memory,
    mut members: Loaded<Member<G::Member>>,
    items: Vec<At<Incoming<Event<G>>>>,
) -> Placed<G> {
    let mut placed = Placed { events: Vec::with_capacity(items.len()), repeated: 0 };
    // An aggregate's later events are not placed once one could not be: see `fold`.
    let mut waiting: BTreeSet<String> = memory.parked.keys().cloned().collect();
    for At { offset, item: Incoming { id, content } } in items {
        let before = match members.get(&id) {
            Some(Ok(member)) => Ok(Some(member)),
            Some(Err(reason)) => Err(reason.clone()),
            None => Ok(None),
        };
        let event = match (content, before) {
            _ if waiting.contains(&id) => Err(String::new()),
            (Err(reason), _) | (Ok(_), Err(reason)) => Err(reason),
            (Ok(Happened { meta, event, .. }), Ok(before)) => {
                let last = before.map_or(0, |member| member.sequence);
                if meta.sequence <= last {
                    placed.repeated += 1;
                    continue;
                }
                let member = || {
                    if meta.sequence != last + 1 {
                        return Err(format!("sequence {} follows on {last}: events are missing", meta.sequence));
                    }
                    let member = G::member(before.map(|before| before.member.clone()), &id, &meta, &event)?;
                    if before.is_some_and(|before| G::key(&before.member) != G::key(&member)) {
                        return Err("it would move to another group".into());
                    }
                    Ok(Member { sequence: meta.sequence, member })
                };
                let member = catch_unwind(AssertUnwindSafe(member));
                member.unwrap_or_else(|_| Err("folding it panicked".into())).map(|member| (member, event))
            }
        };
        match &event {
            Ok((member, _)) => drop(members.insert(id.clone(), Ok(member.clone()))),
            Err(_) => drop(waiting.insert(id.clone())),
        }
        placed.events.push(Placing { offset, id, event });
    }
    placed
}

/// Folds a batch. The memory is changed with it.
///
/// # Errors
/// [`Error::Stop`] when more aggregates would be parked than may be.
pub fn fold<G: Grouping>(
    keys: &Keys,
    parked_max: usize,
    memory: &mut Memory,
    mut parts: Loaded<G::Part>,
    placed: Placed<G>,
) -> Result<Batch, Error> {
    let mut batch = Batch { repeated: placed.repeated, ..Batch::default() };
    let mut members: BTreeMap<String, Member<G::Member>> = BTreeMap::new();
    let (mut groups, mut parked): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    for Placing { offset, id, event } in placed.events {
        let applied = match event {
            _ if memory.parked.contains_key(&id) => Err(String::new()),
            Err(reason) => Err(reason),
            Ok((member, event)) => apply::<G>(&mut parts, &member, &event).map(|()| member),
        };
        match applied {
            Ok(member) => {
                batch.applied += 1;
                groups.insert(G::key(&member.member).to_owned());
                members.insert(id, member);
            }
            Err(reason) => {
                batch.parked += 1;
                park(&mut memory.parked, &id, offset, reason);
                parked.insert(id);
            }
        }
    }
    if memory.parked.values().filter(|parked| !parked.discarded).count() > parked_max {
        let reason = parked.last().and_then(|id| memory.parked.get(id)).map_or("", |parked| &parked.reason);
        return Err(crate::events::fold::too_many_parked(parked_max, reason));
    }
    let json = |document: Result<Vec<u8>, serde_json::Error>| {
        document.map_err(|error| Error::Stop(format!("a view can't be written: {error}")))
    };
    let mut written = [Vec::new(), Vec::new(), Vec::new()];
    for (id, member) in &members {
        written[0].push([id.as_bytes().to_vec(), json(serde_json::to_vec(member))?]);
    }
    for group in &groups {
        if let Some(Ok(part)) = parts.get(group) {
            written[1].push([group.as_bytes().to_vec(), json(serde_json::to_vec(part))?]);
        }
    }
    for id in &parked {
        if let Some(parked) = memory.parked.get(id) {
            written[2].push([id.as_bytes().to_vec(), json(serde_json::to_vec::<Parked>(parked))?]);
        }
    }
    for (key, fields) in [keys.members(), keys.parts(), keys.parked()].into_iter().zip(written) {
        batch.commands.extend(Command::chunked(&Command::new("HSET", key), fields));
    }
    Ok(batch)
}

/// One event on its group's part; on an error the part stays as it was.
fn apply<G: Grouping>(parts: &mut Loaded<G::Part>, member: &Member<G::Member>, event: &Event<G>) -> Result<(), String> {
    let key = G::key(&member.member);
    let before = match parts.get(key) {
        Some(Ok(part)) => part.clone(),
        Some(Err(reason)) => return Err(reason.clone()),
        None => G::Part::default(),
    };
    let folded = catch_unwind(AssertUnwindSafe(|| G::fold(before, &member.member, event)));
    let after = folded.unwrap_or_else(|_| Err("folding it panicked".into()))?;
    parts.insert(key.to_owned(), Ok(after));
    Ok(())
}

#[cfg(test)]
mod tests;
