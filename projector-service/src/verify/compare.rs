//! What differs between what the log makes of an aggregate and what Redis has of it.

use std::collections::{BTreeMap, BTreeSet};

use millrace_shared::{
    codec::Codec,
    domain::{Aggregate, Projection},
    envelope::rfc3339_micros,
    records::Records,
    views::{Keys, history},
};
use redis::Value as Answer;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    digest,
    fold::{Expected, History},
    found::{Found, Ranks, filters},
};
use crate::events::View;

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The log says that it must be there.
    Missing,
    /// Nothing in the log says that it may be there.
    Extra,
    /// It is not what the log says.
    Different,
}

/// One difference: a line of output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Partition.
    pub partition: i32,
    /// Aggregate, where it is one's.
    pub id: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// Key in Redis.
    pub key: String,
    /// Field of a view, name of a counter, sequence of a history entry, `score` of a sorted set.
    pub field: Option<String>,
    /// What the log says.
    pub expected: Value,
    /// What Redis has.
    pub found: Value,
}

impl Difference {
    /// What may be told where values are personal: output ends up in logs.
    pub fn without_values(mut self) -> Self {
        for value in [&mut self.expected, &mut self.found] {
            if value.is_string() || value.is_object() || value.is_array() {
                *value = "not shown".into();
            }
        }
        if let Some((set, rest)) = self.key.split_once(":filter:")
            && let Some((field, _)) = rest.split_once(':')
        {
            self.key = format!("{set}:filter:{field}:…");
        }
        self
    }
}

/// Collects differences.
pub struct Differences<'a> {
    partition: i32,
    id: Option<&'a str>,
    all: Vec<Difference>,
}

impl<'a> Differences<'a> {
    /// Of an aggregate, or of the partition as a whole.
    pub fn of(partition: i32, id: Option<&'a str>) -> Self {
        Self { partition, id, all: Vec::new() }
    }

    /// Compares; null is nothing.
    pub fn compare(&mut self, key: &str, field: Option<&str>, expected: Value, found: Value) {
        let kind = match (&expected, &found) {
            (expected, found) if expected == found => return,
            (Value::Null, _) => Kind::Extra,
            (_, Value::Null) => Kind::Missing,
            _ => Kind::Different,
        };
        let (key, field) = (key.to_owned(), field.map(str::to_owned));
        let id = self.id.map(str::to_owned);
        self.all.push(Difference { partition: self.partition, id, kind, key, field, expected, found });
    }

    /// All of them.
    pub fn into_all(self) -> Vec<Difference> {
        self.all
    }
}

/// Whether a history is as expected, as far as it can be told without its entries.
pub fn same_history(expected: &History, found: Answer) -> bool {
    let Answer::Array(found) = found else { return expected.len() == 0 };
    let same = |(at, entry): (usize, &Answer)| {
        let Answer::BulkString(entry) = entry else { return false };
        match expected {
            History::Digests(digests) => digests[at] == digest(entry),
            History::Whole(entries) => entries[at] == *entry,
        }
    };
    found.len() == expected.len() && found.iter().enumerate().all(same)
}

/// Whether an aggregate is as expected in all that was asked. One whose history was trimmed further meanwhile is not.
pub fn same<A: Aggregate>(keys: &Keys, ranks: &Ranks<View<A>>, expected: &Expected<View<A>>, found: &Found) -> bool {
    let parked_same = expected.parked == found.parked.as_ref().map(|parked| (parked.offset, parked.count));
    let history_same = match &expected.history {
        History::Digests(digests) => digests.iter().copied().eq(found.history.iter().map(|entry| digest(entry))),
        History::Whole(entries) => *entries == found.history,
    };
    let view_same = match &expected.view {
        Some(view) => {
            let json = serde_json::to_vec(view).ok();
            json.is_some() && json == found.view && ranks.scores(view).map(Some).eq(found.scores.iter().copied())
        }
        None => found.view.is_none() && found.scores.iter().all(Option::is_none),
    };
    let wanted = wanted_filters::<A>(keys, expected);
    let filters_same = wanted.iter().all(|key| found.filters.contains_key(key))
        && found.filters.iter().all(|(key, score)| *score == wanted.contains(key).then_some(0.0));
    parked_same && expected.same_base(found.base.as_deref()) && history_same && view_same && filters_same
}

/// The filter sets in which an aggregate must stand.
pub fn wanted_filters<A: Aggregate>(keys: &Keys, expected: &Expected<View<A>>) -> BTreeSet<String> {
    expected.view.iter().flat_map(|view| filters::<A::Projection>(keys, view)).collect()
}

/// All differences of an aggregate. The expected history must be whole.
pub fn differences<A: Aggregate>(
    codec: &Codec<A::Event>,
    keys: &Keys,
    ranks: &Ranks<View<A>>,
    (partition, id): (i32, &str),
    expected: &Expected<View<A>>,
    found: &Found,
) -> Vec<Difference> {
    let mut all = Differences::of(partition, Some(id));
    view(&mut all, &keys.view(id), expected.view.as_ref(), found.view.as_deref());
    for (at, key) in ranks.keys.iter().enumerate() {
        let score = expected.view.as_ref().and_then(|view| ranks.scores(view).nth(at));
        all.compare(key, Some("score"), number(score), number(found.scores[at]));
    }
    let wanted = wanted_filters::<A>(keys, expected);
    for (key, score) in &found.filters {
        all.compare(key, Some("score"), number(wanted.contains(key).then_some(0.0)), number(*score));
    }
    view(&mut all, &keys.base(id), expected.base.as_ref(), found.base.as_deref());
    if let History::Whole(entries) = &expected.history {
        let first = expected.base.as_ref().map_or(0, |base| A::Projection::version(&base.view)) + 1;
        histories(&mut all, codec, &keys.history(id), (first, entries), &found.history);
    }
    parked(
        &mut all,
        &keys.parked(),
        expected.parked,
        found.parked.as_ref().map(|parked| (parked.offset, parked.count)),
    );
    all.into_all()
}

/// The parking of an aggregate.
pub fn parked(all: &mut Differences<'_>, key: &str, expected: Option<(i64, u64)>, found: Option<(i64, u64)>) {
    let text =
        |of: Option<(i64, u64)>| of.map_or(Value::Null, |(offset, count)| json!({"offset": offset, "count": count}));
    all.compare(key, None, text(expected), text(found));
}

fn view<V: Serialize>(all: &mut Differences<'_>, key: &str, expected: Option<&V>, found: Option<&[u8]>) {
    let expected = expected.map(|view| serde_json::to_value(view).unwrap_or_default());
    let found = found.map(|bytes| {
        serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
    });
    match (expected, found) {
        (Some(Value::Object(expected)), Some(Value::Object(mut found))) => {
            for (field, expected) in expected {
                let found = found.shift_remove(&field);
                // A field that is null and one that is not there are two things.
                let found = found.unwrap_or_else(|| if expected.is_null() { "absent".into() } else { Value::Null });
                all.compare(key, Some(&field), expected, found);
            }
            for (field, found) in found {
                all.compare(key, Some(&field), Value::Null, found);
            }
        }
        (expected, found) => all.compare(key, None, expected.unwrap_or_default(), found.unwrap_or_default()),
    }
}

fn histories<E: Records + Serialize>(
    all: &mut Differences<'_>,
    codec: &Codec<E>,
    key: &str,
    (first, expected): (u64, &[Vec<u8>]),
    found: &[Vec<u8>],
) {
    if expected == found {
        return;
    }
    if expected.is_empty() || found.is_empty() {
        let entries = |of: &[Vec<u8>]| if of.is_empty() { Value::Null } else { format!("{} entries", of.len()).into() };
        return all.compare(key, None, entries(expected), entries(found));
    }
    // By sequence: one that is missing must not make all that follow look different.
    let mut by_sequence: BTreeMap<u64, Vec<&[u8]>> = BTreeMap::new();
    for entry in found {
        let sequence = history::unpack(codec, entry).map_or(0, |(meta, _)| meta.sequence);
        by_sequence.entry(sequence).or_default().push(entry);
    }
    let reported = all.all.len();
    for (sequence, entry) in (first..).zip(expected) {
        let found = by_sequence.remove(&sequence).unwrap_or_default();
        let field = sequence.to_string();
        let same = found.iter().position(|found| found == entry);
        let rest = found.iter().enumerate().filter(|(at, _)| Some(*at) != same).map(|(_, found)| show(codec, found));
        let mut rest = rest.peekable();
        if same.is_none() {
            all.compare(key, Some(&field), show(codec, entry), rest.next().unwrap_or_default());
        }
        rest.for_each(|extra| all.compare(key, Some(&field), Value::Null, extra));
    }
    for (sequence, entries) in by_sequence {
        let field = sequence.to_string();
        entries.iter().for_each(|entry| all.compare(key, Some(&field), Value::Null, show(codec, entry)));
    }
    if all.all.len() == reported {
        all.compare(key, Some("order"), "by sequence".into(), "another".into());
    }
}

/// A history entry, for people.
fn show<E: Records + Serialize>(codec: &Codec<E>, entry: &[u8]) -> Value {
    match history::unpack(codec, entry) {
        Some((meta, event)) => json!({
            "sequence": meta.sequence,
            "type": event.name(),
            "time": rfc3339_micros(meta.time),
            "command_id": meta.command_id,
            "data": event,
        }),
        None => format!("{} bytes that can't be read", entry.len()).into(),
    }
}

/// A score; whole ones without a point.
fn number(score: Option<f64>) -> Value {
    match score {
        Some(score) if score.fract() == 0.0 && score.abs() < 9e15 => json!(score as i64),
        Some(score) => json!(score),
        None => Value::Null,
    }
}
