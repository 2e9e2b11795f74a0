//! The steps of a rebuild, and the list of versions that they are noted in.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use millrace_shared::{
    kafka::{REQUEST_TIMEOUT, topic_id, topics::Topic, watermarks},
    views::{
        Keys,
        versions::{self, ACTIVE, PREVIOUS, State, Versions},
    },
};
use serde_json::json;

use super::{Error, Rebuild, fill::metas, lock::Lock, sample};
use crate::store::{Meta, Store};

/// Projectors look at the list of versions every second; after so long none has a version that is no longer listed, and
/// no query is answered from one that is no longer active.
pub const NOTICED: Duration = Duration::from_secs(3);
/// A version keeps up when it has got within so long to where the log ended.
const NEAR: Duration = Duration::from_secs(2);
/// A version that is to answer again must keep up within so long.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);
const TELL: Duration = Duration::from_secs(5);

/// Why a version does not keep up with the log.
struct Behind {
    partitions: Vec<usize>,
    records: i64,
}

impl Rebuild {
    /// The events topic.
    pub fn topic(&self) -> String {
        self.means.names.topic(self.kind.aggregate_type, Topic::Events)
    }

    /// A version's keys, by partition.
    pub fn keys(&self, version: u32) -> Vec<Keys> {
        self.kind.keys(self.means.names.redis_prefix(), version, self.means.partitions)
    }

    /// Which versions there are.
    pub fn versions(&self, store: &mut Store) -> Result<Versions, Error> {
        Ok(store.versions(self.means.names.redis_prefix(), self.kind.name)?)
    }

    /// Changes the list of versions.
    ///
    /// # Errors
    /// When it is not as expected: somebody else has changed it, or Redis was emptied.
    pub fn change(&self, store: &mut Store, expected: &[Field], set: &[Field]) -> Result<(), Error> {
        let script = versions::change();
        let mut call = script.key(versions::key(self.means.names.redis_prefix(), self.kind.name));
        call.arg(expected.len());
        for Field(name, value) in expected.iter().chain(set) {
            call.arg(name).arg(value);
        }
        if store.ask(|redis| call.invoke::<bool>(redis))? {
            return Ok(());
        }
        Err(Error::Refused(
            "the list of versions has changed meanwhile, or Redis was emptied: look with --status".into(),
        ))
    }

    /// From where it is to the end.
    pub fn run(&self, lock: &Lock) -> Result<bool, Error> {
        let mut store = self.means.store();
        let version = self.target(&mut store, lock)?;
        let name = self.kind.name;
        if self.versions(&mut store)?.states.get(&version) == Some(&State::Filling) {
            eprintln!("filling version {version} of {name}");
            self.fill(version, lock)?;
            let filled: Vec<u64> = metas(&mut store, &self.keys(version))?.iter().map(|meta| meta.epoch).collect();
            self.change(&mut store, &[state(version, State::Filling)], &[state(version, State::Following)])?;
            self.taken(&mut store, version, &filled, lock)?;
        }
        self.caught_up(&mut store, version, lock, None)?;
        let found = self.sampled(&mut store, version, lock)?;
        for line in &found.differences {
            println!("{line}");
        }
        if !found.differences.is_empty() {
            self.change(&mut store, &[state(version, State::Following)], &[state(version, State::Refused)])?;
            eprintln!(
                "version {version} of {name} is not what the log says, so it does not answer; it is kept up to date to be \
                 looked at, until --drop-old"
            );
            return Ok(false);
        }
        eprintln!("{} aggregates of version {version} are as the log says", found.compared);
        if !self.parked_as_before(&mut store, version)? {
            return Ok(false);
        }
        // The sample took its time.
        self.caught_up(&mut store, version, lock, Some(PATIENCE))?;
        let old = self.activate(&mut store, version)?;
        eprintln!(
            "version {version} of {name} answers now; version {old} is kept up to date for --rollback, until --drop-old"
        );
        Ok(true)
    }

    /// The version to be built: one whose rebuild was ended early, or the next.
    fn target(&self, store: &mut Store, lock: &Lock) -> Result<u32, Error> {
        let versions = self.versions(store)?;
        let begun = |number: &u32| {
            // What was rolled back from is not what somebody wants to have built now.
            *number > versions.active && versions.previous != Some(*number)
        };
        let found = versions.states.iter().rev().find(|(number, state)| begun(number) && **state != State::Dropping);
        if let Some((number, State::Refused)) = found {
            return Err(Error::Refused(format!("version {number} was found wrong: free it with --drop-old first")));
        }
        if let Some((number, _)) = found {
            let there = metas(store, &self.keys(*number))?;
            if there.iter().all(|meta| meta.fold.is_none_or(|fold| fold == self.kind.fold)) {
                eprintln!("going on with version {number}");
                return Ok(*number);
            }
            return Err(Error::Refused(format!(
                "version {number} was begun by a release that folds otherwise: free it with --drop-old, then run again"
            )));
        }
        let others: Vec<String> =
            versions.states.keys().filter(|n| **n != versions.active).map(ToString::to_string).collect();
        if !others.is_empty() {
            return Err(Error::Refused(format!(
                "there is room for two versions at a time, and beside the active {} there is {}: free it with --drop-old \
                 first",
                versions.active,
                others.join(", ")
            )));
        }
        let next = versions.active + 1;
        let active = versions.active.to_string();
        let before = if self.is_listed(store)? {
            Field(ACTIVE.into(), active.clone())
        } else {
            Field(ACTIVE.into(), String::new())
        };
        // What may lie there is of a list that was lost, and nobody knows what it is.
        if metas(store, &self.keys(next))?.iter().any(|meta| meta.epoch > 0) {
            eprintln!("freeing what is left of an unlisted version {next}");
            let set = [Field(ACTIVE.into(), active.clone()), state(versions.active, State::Following)];
            self.change(store, std::slice::from_ref(&before), &[&set[..], &[state(next, State::Dropping)]].concat())?;
            self.free(store, next, lock)?;
            return self.target(store, lock);
        }
        let set = [Field(ACTIVE.into(), active), state(versions.active, State::Following), state(next, State::Filling)];
        self.change(store, &[before, Field(next.to_string(), String::new())], &set)?;
        Ok(next)
    }

    fn is_listed(&self, store: &mut Store) -> Result<bool, Error> {
        let key = versions::key(self.means.names.redis_prefix(), self.kind.name);
        Ok(store.hash(&key)?.iter().any(|(name, _)| name == ACTIVE))
    }

    /// Makes sure that a version is still listed as it was: Redis may have been emptied meanwhile.
    pub fn require(&self, store: &mut Store, version: u32, state: State) -> Result<(), Error> {
        match self.versions(store)?.states.get(&version) {
            Some(there) if *there == state => Ok(()),
            _ => Err(Error::Refused(format!(
                "version {version} is no longer listed as {}: Redis was emptied, or somebody else has changed it; look \
                 with --status",
                state.name()
            ))),
        }
    }

    /// Says how many aggregates are parked in a version, and whether the switch may be made with them.
    fn parked_as_before(&self, store: &mut Store, version: u32) -> Result<bool, Error> {
        let active = self.versions(store)?.active;
        let (mut count, mut new) = (0, Vec::new());
        for (there, keys) in self.keys(active).into_iter().zip(self.keys(version)) {
            let known: BTreeMap<String, String> = store.hash(&there.parked())?.into_iter().collect();
            for (id, _) in store.hash(&keys.parked())? {
                count += 1;
                if !known.contains_key(&id) {
                    new.push(id);
                }
            }
        }
        if count > 0 {
            eprintln!("{count} aggregates are parked in version {version}");
        }
        if new.is_empty() || self.allow_parked {
            return Ok(true);
        }
        new.truncate(10);
        eprintln!(
            "version {version} does not answer, since aggregates are parked in it that are not in version {active} ({}): \
             mend the cause and rebuild after --drop-old, or run it again with --allow-parked",
            new.join(", ")
        );
        Ok(false)
    }

    /// Waits until projectors have taken over what was filled.
    fn taken(&self, store: &mut Store, version: u32, filled: &[u64], lock: &Lock) -> Result<(), Error> {
        let (begun, mut next) = (Instant::now(), TELL);
        loop {
            let metas = metas(store, &self.keys(version))?;
            let left: Vec<usize> = (0..filled.len()).filter(|at| metas[*at].epoch == filled[*at]).collect();
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() >= next {
                // Less and less often: whoever reads it knows by then.
                next *= 2;
                eprintln!(
                    "waiting for {:.0} s for a projector-service of this release to take over partitions {left:?}: is one \
                     running? This can be ended, and goes on when it is run again",
                    begun.elapsed().as_secs_f64()
                );
            }
            self.require(store, version, State::Following)?;
            lock.renew(|| json!({"version": version, "state": "waiting for projectors"}))?;
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until a version keeps up with the log.
    fn caught_up(&self, store: &mut Store, version: u32, lock: &Lock, patience: Option<Duration>) -> Result<(), Error> {
        let (begun, mut told) = (Instant::now(), Instant::now());
        loop {
            self.require(store, version, State::Following)?;
            let Some(behind) = self.behind(store, version)? else { return Ok(()) };
            let Behind { partitions, records } = behind;
            let text = format!("version {version} is {records} records behind the log, in partitions {partitions:?}");
            if patience.is_some_and(|patience| begun.elapsed() > patience) {
                return Err(Error::Refused(format!("{text}: is a projector-service of this release running?")));
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                eprintln!("{text}; waiting for the projectors to keep up");
            }
            lock.renew(|| json!({"version": version, "state": "following", "records_behind": records}))?;
        }
    }

    /// Looks where the log ends and waits for the version to get there for a moment; tells what is missing.
    fn behind(&self, store: &mut Store, version: u32) -> Result<Option<Behind>, Error> {
        let watcher = self.watcher()?;
        let (topic, keys) = (self.topic(), self.keys(version));
        let ends = (0..self.means.partitions).map(|partition| watermarks(&watcher, &topic, partition));
        let ends: Vec<i64> = ends.map(|ends| Ok(ends?.1)).collect::<Result<_, Error>>()?;
        let topic_id = topic_id(&watcher, &topic, REQUEST_TIMEOUT)?;
        let looked = Instant::now();
        loop {
            let metas = metas(store, &keys)?;
            for (partition, meta) in (0..).zip(&metas) {
                self.require_ours(version, partition, meta, &topic_id)?;
                // Events that came since are no reason to wonder, but a log that has none of them is.
                let offset = meta.offset.unwrap_or(0);
                if offset > ends[partition as usize] && offset > watermarks(&watcher, &topic, partition)?.1 {
                    let text = format!("partition {partition} of version {version} is beyond the end of the log");
                    return Err(Error::Refused(text));
                }
            }
            let missing = |at: &usize| !metas[*at].live || metas[*at].offset.unwrap_or(0) < ends[*at];
            let partitions: Vec<usize> = (0..keys.len()).filter(missing).collect();
            if partitions.is_empty() {
                return Ok(None);
            }
            if looked.elapsed() >= NEAR {
                let records = partitions.iter().map(|at| ends[*at] - metas[*at].offset.unwrap_or(0)).sum();
                return Ok(Some(Behind { partitions, records }));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Views that another release folded, or that were made from another topic, don't answer.
    fn require_ours(&self, version: u32, partition: i32, meta: &Meta, topic_id: &str) -> Result<(), Error> {
        let fold = meta.fold.is_none_or(|fold| fold == self.kind.fold);
        if fold && meta.topic_id.as_deref().is_none_or(|there| there == topic_id) {
            return Ok(());
        }
        let why = if fold { "was made from another topic of this name" } else { "was folded by another release" };
        Err(Error::Refused(format!("partition {partition} of version {version} {why}, so it is not kept up to date")))
    }

    fn sampled(&self, store: &mut Store, version: u32, lock: &Lock) -> Result<sample::Found, Error> {
        let mut found = sample::Found::default();
        let alive = || lock.renew(|| json!({"version": version, "state": "comparing with the log"}));
        let mut sample = sample::Sample { wanted: self.sample as usize, found: &mut found, alive: &alive };
        (self.kind.sample)(&self.means, store, version, &mut sample)?;
        Ok(found)
    }

    /// From now on a version answers. Returns the one that did.
    fn activate(&self, store: &mut Store, version: u32) -> Result<u32, Error> {
        let old = self.versions(store)?.active;
        if old == version {
            return Err(Error::Refused(format!("version {version} answers already: somebody else has switched")));
        }
        let was = Field(ACTIVE.into(), old.to_string());
        let set = [Field(ACTIVE.into(), version.to_string()), Field(PREVIOUS.into(), old.to_string())];
        self.change(store, &[was, state(version, State::Following)], &set)?;
        Ok(old)
    }

    /// `--rollback`.
    pub fn roll_back(&self, lock: &Lock) -> Result<(), Error> {
        let mut store = self.means.store();
        let versions = self.versions(&mut store)?;
        let kept = versions.previous.filter(|number| versions.states.get(number) == Some(&State::Following));
        let Some(previous) = kept else {
            return Err(Error::Refused("no older version is kept".into()));
        };
        self.caught_up(&mut store, previous, lock, Some(PATIENCE))?;
        let old = self.activate(&mut store, previous)?;
        eprintln!("version {previous} of {} answers again; version {old} is kept up to date as well", self.kind.name);
        Ok(())
    }

    /// `--status`.
    pub fn status(&self) -> Result<(), Error> {
        let mut store = self.means.store();
        let versions = self.versions(&mut store)?;
        let watcher = self.watcher()?;
        println!("{:<8} {:<10} {:>10} {:>14}  ", "version", "state", "complete", "records behind");
        for (version, state) in &versions.states {
            let (mut behind, metas) = (0, metas(&mut store, &self.keys(*version))?);
            for (partition, meta) in (0..).zip(&metas) {
                let (first, end) = watermarks(&watcher, &self.topic(), partition)?;
                behind += (end - meta.offset.unwrap_or(first)).max(0);
            }
            let live = metas.iter().filter(|meta| meta.live).count();
            let role = match *version {
                version if version == versions.active => "answers",
                version if Some(version) == versions.previous => "kept for --rollback",
                _ => "",
            };
            let complete = format!("{live} of {}", metas.len());
            println!("{version:<8} {:<10} {complete:>10} {behind:>14}  {role}", state.name());
        }
        Ok(())
    }
}

/// A field of the list of versions, with its value.
#[derive(Clone, Debug)]
pub struct Field(pub String, pub String);

/// A version's field.
pub fn state(version: u32, state: State) -> Field {
    Field(version.to_string(), state.name().to_owned())
}
