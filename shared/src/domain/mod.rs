//! Domains: what they have to say, and the list of those that are served.
//!
//! A domain is one folder: its commands and events with their Avro schemas, its state with `evolve`, its rules in
//! `decide`, its views. All of it is pure: no I/O, no clock, no randomness; time and ids come in as arguments. To add
//! one, write the folder and add its line to a list of [`Domains`].

pub mod bank_account;
mod counted;
pub mod docs;
pub mod email_reservation;
mod fields;
pub mod kit;
pub mod process;
pub mod recorded;
pub mod standing_order;
pub mod transfer;
pub mod user;
mod views;

pub use counted::Counted;
pub use docs::{CommandDocs, Described, Docs, EventDocs};
pub use fields::{CommandError, Fields};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeMap;

use crate::{
    envelope::EventMeta,
    personal::{HashSecret, Secret},
    records::Records,
};
use process::{About, Answer, Errand, Question};

/// What a program serves: the one place that lists it. Each program names its own ([`Bundled`] are those of Millrace's).
pub trait Domains: Send + Sync + 'static {
    /// Calls the visitor once for each aggregate type.
    fn visit_all(visitor: &mut impl Visitor);

    /// Calls the visitor once for each further projection.
    fn visit_groupings(_visitor: &mut impl GroupingVisitor) {}
}

/// The domains that come with Millrace.
#[derive(Clone, Copy, Debug)]
pub struct Bundled;

impl Domains for Bundled {
    fn visit_all(visitor: &mut impl Visitor) {
        visitor.visit::<bank_account::BankAccount>();
        visitor.visit::<transfer::MoneyTransfer>();
        visitor.visit::<standing_order::StandingOrder>();
        visitor.visit::<user::UserAccount>();
        visitor.visit::<email_reservation::EmailReservation>();
    }

    fn visit_groupings(visitor: &mut impl GroupingVisitor) {
        visitor.visit::<bank_account::Owners>();
    }
}

/// Something that is done for every further projection, with its types known.
pub trait GroupingVisitor {
    /// Called once for each.
    fn visit<G: Grouping>(&mut self);
}

/// Something that is done for every aggregate type, with its types known.
pub trait Visitor {
    /// Called once for each.
    fn visit<A: Aggregate>(&mut self);
}

/// An aggregate type: its commands, events, rules, and its main projection.
pub trait Aggregate: Sized + Send + Sync + 'static {
    /// Name in topics, headers and outcomes, e.g. `bank-account`.
    const TYPE: &'static str;
    /// Name in paths, e.g. `bank-accounts`.
    const COLLECTION: &'static str;
    /// The rules' refusals, for answers and pages.
    const REFUSALS: &'static [Refusal];
    /// Commands as paths name them, e.g. `deposit`; the first one brings an aggregate into being and is what
    /// `POST /v1/<collection>` sends.
    const COMMANDS: &'static [&'static str];

    /// Raised whenever the same events would give another state: snapshots of before are then ignored, and states are
    /// built from the events.
    const STATE_VERSION: u32;

    /// What a decision needs to know of the past; the default is "nothing has happened yet". It serialises to what
    /// `command-service replay` shows of it.
    type State: From<Self::Snapshot> + Clone + Default + Serialize + Send + Sync + 'static;
    /// A state as snapshots keep it; every version that was ever written stays readable, or is rebuilt from events.
    type Snapshot: Records + for<'a> From<&'a Self::State>;
    /// Requests.
    type Command: Records + Serialize + Clone;
    /// Facts.
    type Event: Records + Serialize + Clone;
    /// Why a rule refuses a command: an enum that serialises to `{"reason": "<name of a refusal>", figures…}`.
    type Rejection: Serialize + std::fmt::Debug;
    /// The views of its events.
    type Projection: Projection<Event = Self::Event>;

    /// Reads a command from an HTTP body. `name` is one of [`Aggregate::COMMANDS`].
    fn command(name: &str, fields: Fields) -> Result<Self::Command, CommandError>;

    /// The rules: what follows from a command, or why it is refused. `at` is the time that its events will carry.
    fn decide(state: &Self::State, command: &Self::Command, at: Timestamp)
    -> Result<Vec<Self::Event>, Self::Rejection>;

    /// The state after an event.
    fn evolve(state: &mut Self::State, event: &Self::Event);

    /// Whether an event may follow on this state: what the log check holds against the log. It must not call `decide`,
    /// which wrote the log.
    ///
    /// # Errors
    /// Says which rule is broken.
    fn audit(state: &Self::State, event: &Self::Event) -> Result<(), String>;

    /// What the API's description says of it.
    fn docs() -> Docs;

    /// Type and id of the process that alone may send a command, where only one may: under the command ids of its steps.
    fn sender<'a>(_id: &'a str, _command: &'a Self::Command) -> Option<(&'static str, &'a str)> {
        None
    }

    /// Whether it has personal data, which is encrypted under a key of each aggregate; see [`crate::personal`].
    const IS_PERSONAL: bool = false;

    /// Names the personal fields of an event to `each`.
    fn personal(_event: &mut Self::Event, _each: &mut dyn FnMut(&mut dyn Secret)) {}

    /// Names the personal fields of a kept state to `each`.
    fn personal_in_snapshot(_snapshot: &mut Self::Snapshot, _each: &mut dyn FnMut(&mut dyn Secret)) {}

    /// Whether an event destroys the aggregate's key, and so all of its personal data that was ever written. The state after
    /// it must hold none.
    fn erases(_event: &Self::Event) -> bool {
        false
    }

    /// Whether it is a process: whether it reacts.
    const IS_PROCESS: bool = false;

    /// What is asked of other aggregates after an event of this one, which was in this state before; see [`process`].
    fn react(_id: &str, _before: &Self::State, _event: &Self::Event) -> Vec<Errand> {
        Vec::new()
    }

    /// What the answer to such an errand means for this aggregate: the command that it gets, if any. An answer may come more
    /// than once, and late.
    fn conclude(_step: &str, _answer: Answer<'_>) -> Option<Self::Command> {
        None
    }

    /// Whether some of its commands have to ask another aggregate before they can be accepted: such a command waits until it is
    /// answered, and is then judged anew. It is for processes, and needs all of the hooks below.
    const ASKS: bool = false;

    /// Adds to a command that was read what can be told of it with the secret only. It is neither written nor part of its
    /// fingerprint.
    fn prepare(_command: &mut Self::Command, _secret: &HashSecret) {}

    /// Whether a command that the rules accept has to ask first.
    fn must_ask(_state: &Self::State, _command: &Self::Command) -> bool {
        false
    }

    /// What it asks, if it is a command that may have to. The claim tells this asking from all others, for ever.
    fn question(_id: &str, _command: &Self::Command, _claim: &str) -> Option<Question> {
        None
    }

    /// Whether a command is about one that waits.
    fn about(_command: &Self::Command) -> Option<About<'_>> {
        None
    }
}

/// A named, versioned fold of events into views, one view an aggregate.
pub trait Projection: Send + Sync + 'static {
    /// The events it folds.
    type Event: Records + Serialize;
    /// The document that queries answer.
    type View: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync;
    /// Name without version, e.g. `bank-accounts`.
    const NAME: &'static str;
    /// Raised whenever the same events would give other views: what an earlier one folded is then no longer projected,
    /// and has to be rebuilt.
    const VERSION: u32;
    /// What lists can be sorted by.
    const SORTS: &'static [Sort<Self::View>];
    /// What lists can be filtered by.
    const FILTERS: &'static [Filter<Self::View>];
    /// How statements are made, where views have a balance.
    const STATEMENT: Option<Statement<Self::View, Self::Event>> = None;
    /// Whether a view has come to its end, where there is one to wait for (`until=final`).
    const IS_FINAL: Option<fn(&Self::View) -> bool> = None;

    /// The view after an event.
    ///
    /// # Errors
    /// When this event can't follow on what the view shows: the aggregate is then parked, with this text as reason.
    fn fold(view: Option<Self::View>, id: &str, meta: &EventMeta, event: &Self::Event) -> Result<Self::View, String>;

    /// Which counters an event moves, and by how much.
    fn count(event: &Self::Event, after: &Self::View, counted: &mut Counted);

    /// The answer of `…/stats`, from the counters of all partitions.
    fn stats(counters: &BTreeMap<String, i128>) -> Value;

    /// The view's version: its aggregate's last sequence.
    fn version(view: &Self::View) -> u64;
}

/// A named, versioned fold of events into views by another key than the aggregate, such as one for each owner.
///
/// The aggregates of such a group lie in many partitions: each partition keeps its part of the view, and the parts are
/// added up when somebody asks. What has to be known of an aggregate to place its next event is its *member*, which is
/// kept beside the parts, with the aggregate's last sequence.
pub trait Grouping: Send + Sync + Sized + 'static {
    /// The aggregates whose events it folds.
    type Aggregate: Aggregate;
    /// See above.
    type Member: Serialize + DeserializeOwned + Clone + Send + Sync;
    /// What a partition has of a group; the default is nothing.
    type Part: Serialize + DeserializeOwned + Clone + Default + Send + Sync;
    /// Name without version, and in paths, e.g. `owners`.
    const NAME: &'static str;
    /// Raised whenever the same events would give other views.
    const VERSION: u32;

    /// The member after an event.
    ///
    /// # Errors
    /// When the event can't follow on it: the aggregate is then parked in this projection, with this text as reason.
    fn member(
        before: Option<Self::Member>,
        id: &str,
        meta: &EventMeta,
        event: &<Self::Aggregate as Aggregate>::Event,
    ) -> Result<Self::Member, String>;

    /// The group of a member; it stays in it.
    fn key(member: &Self::Member) -> &str;

    /// The part after an event of a member, which is as it is after the event.
    ///
    /// # Errors
    /// As [`Grouping::member`].
    fn fold(
        part: Self::Part,
        member: &Self::Member,
        event: &<Self::Aggregate as Aggregate>::Event,
    ) -> Result<Self::Part, String>;

    /// Whether a text can be the key of a group at all.
    fn is_key(text: &str) -> bool;

    /// The view that queries answer: the parts of all partitions together.
    fn view(key: &str, parts: Vec<Self::Part>) -> Value;

    /// What the API's description says of that view.
    fn docs() -> Described;
}

/// An order of a list.
#[derive(Debug)]
pub struct Sort<V> {
    /// Name of the field.
    pub name: &'static str,
    /// What it sorts by, a whole number below 2^53 so that Redis' scores hold it exactly; ties go by id.
    pub key: fn(&V) -> i64,
}

/// A filter of a list: equality with a field.
#[derive(Debug)]
pub struct Filter<V> {
    /// Name of the field and of the query parameter.
    pub name: &'static str,
    /// The field's value.
    pub value: fn(&V) -> &str,
    /// Whether a text can be a value at all; others are the caller's mistake.
    pub accepts: fn(&str) -> bool,
    /// Whether so few views share a value that they are worth an index of their own.
    pub selective: bool,
    /// Whether an aggregate keeps its value for ever: if it is selective as well, changes can be subscribed to by it.
    pub fixed: bool,
}

/// How a statement of what moved a balance is made.
#[derive(Debug)]
pub struct Statement<V, E> {
    /// The balance's currency, an ISO 4217 code.
    pub currency: fn(&V) -> &str,
    /// The balance, in minor units.
    pub balance_minor: fn(&V) -> i64,
    /// `None`: the event is no entry.
    pub entry: fn(&E) -> Option<Entry<'_>>,
}

/// By how much an event moved a balance, and what for.
pub type Entry<'a> = (i64, Option<&'a str>);

/// A refusal by a rule.
#[derive(Debug)]
pub struct Refusal {
    /// Name of the problem, e.g. `insufficient-funds`.
    pub name: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// What it means and what to do about it.
    pub meaning: &'static str,
}

/// What can be said of an aggregate type without its Rust types.
#[derive(Clone, Copy, Debug)]
pub struct AggregateInfo {
    /// See [`Aggregate::TYPE`].
    pub aggregate_type: &'static str,
    /// See [`Aggregate::COLLECTION`].
    pub collection: &'static str,
    /// See [`Aggregate::REFUSALS`].
    pub refusals: &'static [Refusal],
    /// See [`Aggregate::COMMANDS`].
    pub commands: &'static [&'static str],
    /// See [`Aggregate::IS_PROCESS`].
    pub is_process: bool,
    /// See [`Aggregate::IS_PERSONAL`].
    pub is_personal: bool,
}

impl AggregateInfo {
    /// Of one type.
    pub const fn of<A: Aggregate>() -> Self {
        Self {
            aggregate_type: A::TYPE,
            collection: A::COLLECTION,
            refusals: A::REFUSALS,
            commands: A::COMMANDS,
            is_process: A::IS_PROCESS,
            is_personal: A::IS_PERSONAL,
        }
    }

    /// Of all types that are served.
    pub fn all<D: Domains>() -> Vec<Self> {
        struct Collect(Vec<AggregateInfo>);
        impl Visitor for Collect {
            fn visit<A: Aggregate>(&mut self) {
                self.0.push(AggregateInfo::of::<A>());
            }
        }
        let mut all = Collect(Vec::new());
        D::visit_all(&mut all);
        all.0
    }
}

/// The id of an aggregate: 1 to 128 of `A-Z a-z 0-9 . _ : -`, but not `.`, `..`, `stats`, `changes`, which mean
/// something else in paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AggregateId(Box<str>);

impl AggregateId {
    /// Longest id, in bytes.
    pub const MAX_BYTES: usize = 128;
    /// As a regular expression, for descriptions.
    pub const PATTERN: &str = r"^(?!\.{1,2}$|stats$|changes$)[A-Za-z0-9._:-]{1,128}$";

    /// Takes a text that is one.
    ///
    /// # Errors
    /// Says what an id looks like.
    pub fn new(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if text.is_empty() || text.len() > Self::MAX_BYTES || !text.bytes().all(allowed) {
            return Err(format!("an id is 1 to {} of A-Z a-z 0-9 . _ : -", Self::MAX_BYTES));
        }
        if [".", "..", "stats", "changes"].contains(&text) {
            return Err(format!("{text:?} can't be an id, as it means something else in a path"));
        }
        Ok(Self(text.into()))
    }

    /// As a key in Kafka.
    ///
    /// # Errors
    /// As [`AggregateId::new`].
    pub fn from_key(key: Option<&[u8]>) -> Result<Self, String> {
        let key = key.ok_or("the record has no key; it must be the aggregate's id")?;
        Self::new(std::str::from_utf8(key).map_err(|_| "the key is not UTF-8; it must be the aggregate's id")?)
            .map_err(|reason| format!("the key is no aggregate id: {reason}"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for AggregateId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for AggregateId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<AggregateId> for String {
    fn from(id: AggregateId) -> Self {
        id.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g13_ids_are_checked() {
        for good in ["a", "acc-42", "A.b_c:d-e", "...", &"x".repeat(128)] {
            assert!(AggregateId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "stats", "changes", "a b", "a/b", "ä", "a\n", &"x".repeat(129)] {
            assert!(AggregateId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_schema_of_every_domain_parses() {
        struct Parse;
        fn parse<R: Records>() {
            for record in R::TYPES {
                for text in record.versions {
                    let schema = apache_avro::Schema::parse_str(text).unwrap();
                    let name = schema.name().unwrap().fullname(None);
                    assert_eq!(name, format!("{}.{}", R::NAMESPACE, record.name));
                }
            }
        }
        impl Visitor for Parse {
            fn visit<A: Aggregate>(&mut self) {
                parse::<A::Command>();
                parse::<A::Event>();
                parse::<A::Snapshot>();
            }
        }
        Bundled::visit_all(&mut Parse);
        parse::<crate::outcome::OutcomeRecord>();
        parse::<crate::snapshot::CheckpointRecord>();
        parse::<crate::personal::KeyRecord>();
    }
}
