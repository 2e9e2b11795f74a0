//! Freeing a version: its keys go in small steps, each fenced, and the partition's `…:meta` goes last. Whatever happens
//! in between, it says that the partition is not complete, so nobody ever takes what is left for views.

use std::time::Duration;

use millrace_shared::views::{BY_ID, Keys, meta, versions::State};
use redis::Script;
use serde_json::json;

use super::{
    Error, Rebuild,
    lock::Lock,
    switch::{Field, NOTICED, state},
};
use crate::{
    command::Command,
    store::{Applied, Claim, Meta, Scan, Store, Write},
};

/// Aggregates in one step: a few milliseconds of Redis.
const STEP: usize = 500;
const PAUSE: Duration = Duration::from_millis(200);

impl Rebuild {
    /// `--drop-old`.
    pub fn drop_old(&self, lock: &Lock) -> Result<(), Error> {
        let mut store = self.means.store();
        let versions = self.versions(&mut store)?;
        let others: Vec<(u32, State)> =
            versions.states.into_iter().filter(|(number, _)| *number != versions.active).collect();
        if others.is_empty() {
            eprintln!("there is nothing but version {}, which answers", versions.active);
        }
        for (version, was) in others {
            let active = Field("active".into(), versions.active.to_string());
            self.change(&mut store, &[active, state(version, was)], &[state(version, State::Dropping)])?;
            self.free(&mut store, version, lock)?;
        }
        Ok(())
    }

    /// Frees a version that is listed as `dropping`, and takes it off the list.
    pub fn free(&self, store: &mut Store, version: u32, lock: &Lock) -> Result<(), Error> {
        eprintln!("freeing version {version} of {}", self.kind.name);
        // Projectors let go of it, and queries that began before the switch come to their end.
        std::thread::sleep(NOTICED);
        let mut freed = 0;
        for keys in self.keys(version) {
            freed += self.free_partition(store, &keys, &mut |freed_here| {
                lock.renew(|| json!({"version": version, "state": "dropping", "freed": freed + freed_here}))
            })?;
        }
        let previous = self.versions(store)?.previous.filter(|previous| *previous == version);
        let forget = previous.map(|_| Field("previous".into(), String::new()));
        let gone = Field(version.to_string(), String::new());
        self.change(store, &[state(version, State::Dropping)], &[vec![gone], forget.into_iter().collect()].concat())?;
        eprintln!("version {version} is gone, with {freed} views");
        Ok(())
    }

    fn free_partition(
        &self,
        store: &mut Store,
        keys: &Keys,
        told: &mut dyn FnMut(u64) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let owned = loop {
            match store.claim(keys, None)? {
                Claim::Granted(meta) => break meta,
                Claim::Lent | Claim::OtherOwner | Claim::Gone => std::thread::sleep(PAUSE),
            }
        };
        // Not `live` any more from here on.
        step(store, keys, &owned, vec![Command::new("HSET", keys.meta()).with(meta::STATE).with(meta::DROPPING)])?;
        let owned = Meta { offset: Some(owned.offset.unwrap_or(0)), ..owned };
        let by_id = keys.sort(BY_ID, false);
        // What an earlier form of the projection kept, this release can't name.
        let (mut freed, mut strange) = (0, owned.fold.is_some_and(|fold| fold != self.kind.fold));
        loop {
            let ids: Vec<String> =
                store.ask(|redis| redis::cmd("ZRANGE").arg(&by_id).arg(0).arg(STEP - 1).query(redis))?;
            if ids.is_empty() {
                break;
            }
            let mut unlink = Vec::new();
            let views = store.strings(&ids.iter().map(|id| keys.view(id)).collect::<Vec<_>>())?;
            for view in views {
                // Without its view nobody knows which filters' sets have it.
                match view.and_then(|view| (self.kind.indexes)(&view)) {
                    Some(indexes) => unlink.extend(indexes.iter().map(|(field, value)| keys.filter(field, value))),
                    None => strange = true,
                }
            }
            unlink.extend(ids.iter().flat_map(|id| keys.of_aggregate(id)));
            freed += ids.len() as u64;
            let last = ids.into_iter().map(|id| [id.into_bytes()]);
            let mut commands = unlinked(unlink);
            commands.extend(Command::chunked(&Command::new("ZREM", &*by_id), last));
            step(store, keys, &owned, commands)?;
            told(freed)?;
        }
        let mut rest = vec![keys.counters(), keys.changes(), keys.parked(), keys.keys(), keys.members(), keys.parts()];
        for sort in (self.kind.sorts)() {
            rest.extend([keys.sort(sort, false), keys.sort(sort, true)]);
        }
        step(store, keys, &owned, unlinked(rest))?;
        if strange {
            self.sweep(store, keys, &owned, &mut || told(freed))?;
        }
        let script = Script::new(
            "if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end return redis.call('UNLINK', KEYS[1])",
        );
        let mut call = script.key(keys.meta());
        call.arg(owned.epoch);
        if store.ask(|redis| call.invoke::<bool>(redis))? { Ok(freed) } else { Err(taken()) }
    }

    /// Looks through all of Redis for what is left of a partition.
    fn sweep(
        &self,
        store: &mut Store,
        keys: &Keys,
        owned: &Meta,
        alive: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut scan = Scan::default();
        while let Some(found) = store.scan(&mut scan, &keys.pattern(), 1_000)? {
            let found = found.into_iter().filter(|key| *key != keys.meta().into_bytes()).collect();
            step(store, keys, owned, unlinked(found))?;
            alive()?;
        }
        Ok(())
    }
}

fn unlinked(keys: Vec<impl Into<Vec<u8>>>) -> Vec<Command> {
    Command::chunked(&Command::bare("UNLINK"), keys.into_iter().map(|key| [key.into()])).collect()
}

fn step(store: &mut Store, keys: &Keys, owned: &Meta, commands: Vec<Command>) -> Result<(), Error> {
    let write = Write {
        epoch: owned.epoch,
        topic_id: owned.topic_id.as_deref().unwrap_or("none"),
        expected: owned.offset,
        next: owned.offset.unwrap_or(0),
        commands: &commands,
    };
    match store.apply(keys, &write)? {
        Applied::Written => Ok(()),
        Applied::OtherOwner | Applied::OtherCheckpoint => Err(taken()),
    }
}

fn taken() -> Error {
    Error::Refused(
        "somebody has claimed a partition that is being freed (a projector that was frozen?): run --drop-old again"
            .into(),
    )
}
