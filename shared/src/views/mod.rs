//! The views in Redis: how keys are named, how history is packed, and the scripts that touch them.
//!
//! Everything of one partition of one projection lies under one hash tag, e.g. `{bank-accounts.v1:7}`, so that a
//! batch is one slot of a Redis Cluster and one atomic script:
//!
//! | key | type | holds |
//! |---|---|---|
//! | `{…}:meta` | hash | `offset` (next to read), `topic_id`, `epoch` (of the owner), `state` (`building`, `live`, `dropping`), `fold` (version of the code that folds), `born` (epoch when it was begun), `mended` (how often a tool has mended the counters); while a tool has it `lent_until` (Redis' time in µs), `lent_from` (epoch of the owner before) |
//! | `{…}:view:<id>` | string | the view as queries answer it, JSON |
//! | `{…}:history:<id>` | list | packed events, oldest first ([`history`]); a long one begins behind its base |
//! | `{…}:base:<id>` | string | where a history begins of which the oldest events were dropped: JSON [`history::Base`] |
//! | `{…}:sort:<field>:asc`, `…:desc` | sorted set | ids by a field; `desc` by its negative, so that ties go by id in both |
//! | `{…}:filter:<field>:<value>` | sorted set | ids of the views with that value (selective filters only) |
//! | `{…}:counters` | hash | totals of the partition |
//! | `{…}:changes` | stream | one entry an event, id `<offset>-<ordinal>` (ordinals from 1 on): fields `id`, `seq`, `type`, `time` |
//! | `{…}:members`, `{…}:parts` | hashes | of a projection by another key ([`crate::domain::Grouping`]): aggregate id → its last sequence and member, group → what the partition has of it; JSON |
//! | `{…}:parked` | hash | parked aggregates: id → JSON [`Parked`] |
//! | `{…}:keys` | hash | of types with personal data: id → the key of the person, encrypted under a master key ([`people`]) |
//!
//! The number behind the name is the version's, which grows with each rebuild: [`versions`] tells which are there.
//!
//! Outcomes lie beside, per partition of the outcome topic, under `{bank-account.outcomes:7}`: `…:meta` as above,
//! `…:outcome:<aggregate id> <command id>` (a string with expiry), `…:order` (a list of `<bytes> <key>`, oldest
//! first) and `bytes` in `…:meta`. So do commands that wait until they are due, under `{bank-account.scheduled:7}`: `…:meta`,
//! and `…:waiting:<aggregate id>` (a hash: command id → JSON).

pub mod address;
pub mod errors;
pub mod history;
pub mod people;
pub mod script;
pub mod versions;

use serde::{Deserialize, Serialize};

/// The sort that every projection has: by id alone. Its set has one direction, since ids of one score are found in
/// either by Redis' lexical ranges.
pub const BY_ID: &str = "id";

/// Field names of `…:meta`.
pub mod meta {
    /// Offset of the next record to read.
    pub const OFFSET: &str = "offset";
    /// Id of the topic that the offset belongs to.
    pub const TOPIC_ID: &str = "topic_id";
    /// Number of the present owner; only grows, see [`super::script::claim`].
    pub const EPOCH: &str = "epoch";
    /// `building`, `live` or `dropping`.
    pub const STATE: &str = "state";
    /// Whether the state is `live`: the projection has caught up once.
    pub const LIVE: &str = "live";
    /// The state of what is being freed: not to be taken for anything.
    pub const DROPPING: &str = "dropping";
    /// Version of the code that folded what is there ([`crate::domain::Projection::VERSION`]).
    pub const FOLD: &str = "fold";
    /// Epoch at which the partition was begun: another one tells that everything was made anew meanwhile.
    pub const BORN: &str = "born";
    /// How often a tool has mended the counters.
    pub const MENDED: &str = "mended";
    /// Bytes of outcomes that are kept.
    pub const BYTES: &str = "bytes";
}

/// Names the keys of one partition of a projection.
#[derive(Clone, Debug)]
pub struct Keys {
    tag: String,
}

impl Keys {
    /// Of a version of a projection. `redis_prefix` comes from [`crate::kafka::topics::Names::redis_prefix`].
    pub fn projection(redis_prefix: &str, name: &str, version: u32, partition: i32) -> Self {
        Self { tag: format!("{{{redis_prefix}{name}.v{version}:{partition}}}") }
    }

    /// Of the outcomes of an aggregate type.
    pub fn outcomes(redis_prefix: &str, aggregate_type: &str, partition: i32) -> Self {
        Self { tag: format!("{{{redis_prefix}{aggregate_type}.outcomes:{partition}}}") }
    }

    /// Of the scheduled commands of an aggregate type.
    pub fn scheduled(redis_prefix: &str, aggregate_type: &str, partition: i32) -> Self {
        Self { tag: format!("{{{redis_prefix}{aggregate_type}.scheduled:{partition}}}") }
    }

    /// The scheduled commands of an aggregate.
    pub fn waiting(&self, aggregate_id: &str) -> String {
        format!("{}:waiting:{aggregate_id}", self.tag)
    }

    /// Checkpoint, owner, state.
    pub fn meta(&self) -> String {
        format!("{}:meta", self.tag)
    }

    /// A view.
    pub fn view(&self, id: &str) -> String {
        [&self.tag, ":view:", id].concat()
    }

    /// An aggregate's history.
    pub fn history(&self, id: &str) -> String {
        format!("{}:history:{id}", self.tag)
    }

    /// Where an aggregate's history begins.
    pub fn base(&self, id: &str) -> String {
        format!("{}:base:{id}", self.tag)
    }

    /// All that is kept for one aggregate.
    pub fn of_aggregate(&self, id: &str) -> Vec<String> {
        vec![self.view(id), self.history(id), self.base(id)]
    }

    /// What matches all keys of the partition, for Redis' `SCAN`.
    pub fn pattern(&self) -> String {
        let escaped: String =
            self.tag.chars().flat_map(|c| "*?[]\\".contains(c).then_some('\\').into_iter().chain([c])).collect();
        format!("{escaped}:*")
    }

    /// Ids in the order of a field.
    pub fn sort(&self, field: &str, descending: bool) -> String {
        format!("{}:sort:{field}:{}", self.tag, if descending { "desc" } else { "asc" })
    }

    /// Ids of the views with a value.
    pub fn filter(&self, field: &str, value: &str) -> String {
        format!("{}:filter:{field}:{value}", self.tag)
    }

    /// Totals.
    pub fn counters(&self) -> String {
        format!("{}:counters", self.tag)
    }

    /// Change feed.
    pub fn changes(&self) -> String {
        format!("{}:changes", self.tag)
    }

    /// Parked aggregates.
    pub fn parked(&self) -> String {
        [&self.tag, ":parked"].concat()
    }

    /// Keys of people.
    pub fn keys(&self) -> String {
        format!("{}:keys", self.tag)
    }

    /// What is known of each aggregate by a projection by another key.
    pub fn members(&self) -> String {
        format!("{}:members", self.tag)
    }

    /// What the partition has of each group.
    pub fn parts(&self) -> String {
        format!("{}:parts", self.tag)
    }

    /// A stored outcome.
    pub fn outcome(&self, aggregate_id: &str, command_id: &str) -> String {
        format!("{}:outcome:{aggregate_id} {command_id}", self.tag)
    }

    /// Stored outcomes, oldest first.
    pub fn order(&self) -> String {
        format!("{}:order", self.tag)
    }
}

/// An aggregate whose events wait because one of them could not be applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parked {
    /// Offset of the first event that waits.
    pub offset: i64,
    /// How many wait.
    pub count: u64,
    /// Why the first one could not be applied.
    pub reason: String,
    /// Somebody has decided to do without them: the view stays as it is, and it counts to no limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discarded: bool,
}
