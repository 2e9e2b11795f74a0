//! Drops the oldest events of long histories, in the script call of the batch that made them too long. What they come to
//! is kept as the base, from which the rest is folded on.

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Projection},
    views::{
        Keys,
        history::{self, Base},
    },
};

use super::{View, fold::Grown, people::People};
use crate::{
    command::Command,
    store::{self, Store},
    target::Error,
};

/// Commands to be done after those of the batch.
pub fn trim<A: Aggregate>(
    keys: &Keys,
    codec: &Codec<A::Event>,
    grown: Vec<Grown>,
    people: &mut People<'_, A>,
    store: &mut Store,
) -> Result<Vec<Command>, Error> {
    let names: Vec<String> = grown.iter().map(|grown| keys.base(&grown.id)).collect();
    let bases = store.strings(&names)?;
    let mut commands = Vec::new();
    for (grown, base) in grown.into_iter().zip(bases) {
        // A base of before tells in clear what was erased: all that led to the erasure goes with it.
        let Some(upto) = grown.erased.filter(|_| base.is_some()).or(grown.upto) else { continue };
        match moved::<A>(keys, codec, (&grown, upto), base, people, store) {
            Ok(Some((dropped, base))) => {
                commands.push(Command::new("SET", keys.base(&grown.id)).with(base));
                let history = Command::new("LTRIM", keys.history(&grown.id));
                commands.push(history.with(dropped.to_string()).with("-1"));
            }
            Ok(None) => {}
            Err(Failed::Damaged(_)) if grown.erased.is_some() => {
                commands.push(Command::new("UNLINK", keys.base(&grown.id)));
                commands.push(Command::new("UNLINK", keys.history(&grown.id)));
            }
            // Nothing is lost by keeping it.
            Err(Failed::Damaged(reason)) => {
                tracing::warn!(history = keys.history(&grown.id), "a long history is not trimmed: {reason}");
            }
            Err(Failed::Target(error)) => return Err(error),
        }
    }
    Ok(commands)
}

/// Why a history can't be trimmed.
enum Failed {
    Target(Error),
    Damaged(String),
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        Self::Target(error.into())
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Target(error)
    }
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

/// How many entries go, and the base that stands for them and for those before.
fn moved<A: Aggregate>(
    keys: &Keys,
    codec: &Codec<A::Event>,
    (grown, upto): (&Grown, u64),
    base: Option<Vec<u8>>,
    people: &mut People<'_, A>,
    store: &mut Store,
) -> Result<Option<(u64, Vec<u8>)>, Failed> {
    let damaged = |error: serde_json::Error| format!("its base can't be read or written: {error}");
    let base: Option<Base<View<A>>> = base.map(|json| serde_json::from_slice(&json)).transpose().map_err(damaged)?;
    let since = base.as_ref().map_or(0, |base| A::Projection::version(&base.view));
    if upto <= since {
        return Ok(None);
    }
    let dropped = upto - since;
    let mut entries = store.list(&keys.history(&grown.id), dropped)?;
    let fresh = upto.saturating_sub(grown.before) as usize;
    entries.extend(grown.fresh.iter().take(fresh).cloned());
    let mut base = base;
    for (entry, sequence) in entries.iter().zip(since + 1..) {
        base = Some(step::<A>(codec, people, &grown.id, base, entry, sequence)?);
    }
    if entries.len() as u64 != dropped {
        return Err(Failed::Damaged("it has fewer events than its view".into()));
    }
    Ok(Some((dropped, serde_json::to_vec(&base).map_err(damaged)?)))
}

fn step<A: Aggregate>(
    codec: &Codec<A::Event>,
    people: &mut People<'_, A>,
    id: &str,
    base: Option<Base<View<A>>>,
    entry: &[u8],
    sequence: u64,
) -> Result<Base<View<A>>, Failed> {
    let (meta, mut event) =
        history::unpack(codec, entry).ok_or_else(|| format!("event {sequence} can't be unpacked"))?;
    if meta.sequence != sequence {
        return Err(format!("event {} lies where {sequence} should", meta.sequence).into());
    }
    people.open(id, &mut event)??;
    let (first, view) = base.map_or((meta.time, None), |base| (base.first, Some(base.view)));
    Ok(Base { first, time: meta.time, view: A::Projection::fold(view, id, &meta, &event)? })
}
