//! What Redis has and the log does not justify: found by one scan of Redis' keys.

use std::collections::{BTreeMap, BTreeSet};

use millrace_shared::{
    domain::{Aggregate, Projection},
    fast_hash::FastMap,
    views::Keys,
};
use serde_json::Value;

use super::{
    Error, Suspects,
    compare::Differences,
    digest,
    fold::Expected,
    found::{Ranks, ask, bases as bases_of, patiently},
    judge::{Judge, Suspect},
    partition::Share,
};
use crate::{store::Scan, target::Target};

/// Keys looked at by one call, about.
const SCAN_COUNT: usize = 2_000;

/// What is known to be justified, as digests of keys and members.
#[derive(Default)]
pub struct Facts {
    /// By partition: of which ids, and up to which offset, everything is known.
    pub regions: BTreeMap<i32, Vec<Region>>,
    /// Partitions whose sorted sets have members that no view accounts for, or none where there must be one.
    pub scan_ranks: BTreeSet<i32>,
    /// Whether that is not known of any.
    pub scan_all_ranks: bool,
    digests: Vec<u64>,
}

/// Ids of a partition of which everything is known.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Which.
    pub share: Share,
    /// Up to here.
    pub offset: i64,
}

impl Facts {
    /// There is a view of an id, and its history.
    pub fn add_view(&mut self, keys: &Keys, id: &str) {
        self.digests.push(digest(keys.view(id).as_bytes()));
    }

    /// An id is in a filter set.
    pub fn add_filter(&mut self, key: &str, id: &str) {
        self.digests.push(member(key, id));
    }

    /// What they take in memory.
    pub fn bytes(&self) -> usize {
        self.digests.len() * size_of::<u64>()
    }

    /// With all sorted sets to be looked at.
    pub fn scanning_all_ranks(mut self) -> Self {
        self.scan_all_ranks = true;
        self
    }

    fn knows(&self, digest: u64) -> bool {
        self.digests.binary_search(&digest).is_ok()
    }

    /// Up to where an id is known, if it is.
    fn region(&self, partition: i32, id: &str) -> Option<i64> {
        let regions = self.regions.get(&partition)?;
        regions.iter().find(|region| region.share.has(id.as_bytes())).map(|region| region.offset)
    }
}

fn member(key: &str, id: &str) -> u64 {
    digest([key.as_bytes(), b"\0", id.as_bytes()].concat().as_slice())
}

/// What is to be looked at more closely, by partition.
#[derive(Default)]
struct Found {
    /// Views and the like of aggregates that had none: up to which offset that is known.
    unknown: BTreeMap<(i32, i64), Suspects>,
    /// Members of filter sets where they did not belong.
    misplaced: BTreeMap<i32, Suspects>,
}

impl<A: Aggregate> Judge<'_, A> {
    /// Looks at every key of the projection.
    pub fn sweep(&mut self, mut facts: Facts) -> Result<(), Error> {
        facts.digests.sort_unstable();
        let mut found = Found::default();
        let tag = self.tag();
        let mut scan = Scan::default();
        while let Some(names) = self.scan(&mut scan, &format!("{tag}*"))? {
            for name in names {
                self.look_at(&facts, &tag, &name, &mut found)?;
            }
        }
        for ((partition, offset), unknown) in found.unknown {
            let suspect = |(id, filters): (String, _)| Suspect {
                id: id.into(),
                expected: Some(Expected::new(false, None)),
                filters,
                entries: 0,
                untrimmed: false,
            };
            self.judge(partition, offset, unknown.into_iter().map(suspect).collect())?;
        }
        for (partition, misplaced) in found.misplaced {
            let suspect = |(id, filters): (String, _)| Suspect {
                id: id.into(),
                expected: None,
                filters,
                entries: 0,
                untrimmed: false,
            };
            self.judge(partition, 0, misplaced.into_iter().map(suspect).collect())?;
        }
        Ok(())
    }

    /// Up to which versions histories have been trimmed.
    pub fn bases(&mut self) -> Result<BTreeMap<i32, FastMap<String, u64>>, Error> {
        let tag = self.tag();
        let mut bases: BTreeMap<i32, FastMap<String, u64>> = BTreeMap::new();
        let mut scan = Scan::default();
        while let Some(names) = self.scan(&mut scan, &format!("{tag}*:base:*"))? {
            // Cut to what it says: an owner's name may look like it as well.
            let base = |name: &String| {
                let (partition, kind) = name.strip_prefix(&tag)?.split_once("}:")?;
                Some((partition.parse::<i32>().ok()?, kind.strip_prefix("base:")?.to_owned()))
            };
            let (names, places): (Vec<_>, Vec<_>) =
                names.into_iter().filter_map(|name| base(&name).map(|place| (name, place))).unzip();
            if !names.is_empty() {
                let versions = bases_of::<A::Projection>(&mut self.store, &names)?;
                for ((partition, id), version) in places.into_iter().zip(versions) {
                    bases.entry(partition).or_default().insert(id, version);
                }
            }
        }
        Ok(bases)
    }

    /// What the keys of all partitions begin with.
    fn tag(&self) -> String {
        // Prefixes and names have no character that means something in a pattern.
        let key = self.context.events.keys(0).view("");
        key.split_once(":0}").map_or("", |(tag, _)| tag).to_owned() + ":"
    }

    /// Some of the keys that fit; `None` after the last.
    fn scan(&mut self, scan: &mut Scan, pattern: &str) -> Result<Option<Vec<String>>, Error> {
        let names = patiently(&mut self.store, |store| store.scan(scan, pattern, SCAN_COUNT))?;
        Ok(names.map(|names| names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()))
    }

    fn look_at(&mut self, facts: &Facts, tag: &str, name: &str, found: &mut Found) -> Result<(), Error> {
        let parts = name.strip_prefix(tag).and_then(|rest| rest.split_once("}:"));
        let parts = parts.and_then(|(partition, kind)| Some((partition.parse::<i32>().ok()?, kind)));
        let Some((partition, kind)) = parts else { return Ok(()) };
        if !(0..self.context.verify.partitions).contains(&partition) {
            return self.extra_key(partition, name);
        }
        let keys = self.context.events.keys(partition);
        // An aggregate that had no view when everything was known of it, and now has something.
        let mut unknown = |id: &str, filter: Option<&str>| {
            let Some(offset) = facts.region(partition, id) else { return };
            if !facts.knows(digest(keys.view(id).as_bytes())) {
                let of_partition = found.unknown.entry((partition, offset)).or_default();
                of_partition.entry(id.to_owned()).or_default().extend(filter.map(str::to_owned));
            } else if let Some(filter) = filter.filter(|filter| !facts.knows(member(filter, id))) {
                let of_partition = found.misplaced.entry(partition).or_default();
                of_partition.entry(id.to_owned()).or_default().insert(filter.to_owned());
            }
        };
        if let Some(id) = ["view:", "history:", "base:"].iter().find_map(|of| kind.strip_prefix(of)) {
            unknown(id, None);
        } else if kind.starts_with("sort:") {
            if !Ranks::new::<A::Projection>(&keys).keys.iter().any(|key| key == name) {
                return self.extra_key(partition, name);
            }
            if facts.scan_all_ranks || facts.scan_ranks.contains(&partition) {
                self.members(name, |id| unknown(id, None))?;
            }
        } else if let Some(filter) = kind.strip_prefix("filter:") {
            let is_of = |field: &str| filter.strip_prefix(field).is_some_and(|rest| rest.starts_with(':'));
            let mut filters = <A::Projection as Projection>::FILTERS.iter();
            if !filters.any(|filter| filter.selective && is_of(filter.name)) {
                return self.extra_key(partition, name);
            }
            self.members(name, |id| unknown(id, Some(name)))?;
        } else if !["meta", "counters", "changes", "parked", "keys"].contains(&kind) {
            return self.extra_key(partition, name);
        }
        Ok(())
    }

    fn extra_key(&self, partition: i32, name: &str) -> Result<(), Error> {
        let mut all = Differences::of(partition, None);
        all.compare(name, None, Value::Null, "a key that the projection does not have".into());
        self.context.tell(all.into_all(), &BTreeSet::new());
        Ok(())
    }

    /// All members of a sorted set.
    fn members(&mut self, key: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
        let mut cursor = 0_u64;
        loop {
            let (next, members): (u64, Vec<(String, f64)>) = ask(&mut self.store, |redis| {
                redis::cmd("ZSCAN").arg(key).arg(cursor).arg("COUNT").arg(SCAN_COUNT).query(redis)
            })?;
            members.iter().for_each(|(id, _)| each(id));
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }
}
