//! `projector-service parked`: the aggregates whose events wait because one of them could not be applied.

mod desk;
mod print;
mod replay;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    process::ExitCode,
    slice,
};

use clap::{Args, Subcommand};
use millrace_shared::{
    config::{self, LogSettings, ViewSettings},
    domain::{Aggregate, Domains, Grouping, GroupingVisitor, Projection, Visitor},
    kafka::{source, topics::Names},
    ops::Health,
    registry::{self, Registry},
    serve::blocking,
    telemetry,
    views::{Keys, Parked},
};
use tokio::runtime::Handle;

use super::ToolSettings;
use crate::{
    board::Board,
    crew::Means,
    events::{Limits, Parking},
    loan,
    projections::Kind,
    roster::Roster,
    store::{self, Store},
    target,
};
use desk::Desk;

const CLIENT_ID: &str = "millrace-parked";

/// Flags of `parked`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    projector-service parked list\n  \
    projector-service parked show bank-accounts --id acc-42\n  \
    projector-service parked replay bank-accounts --all\n\n\
    The services may run meanwhile; replay and discard borrow a partition for a moment.\n\n\
    Exit status: 0 done; 1 something still waits, is not parked, or can't be asked or read; 2 a setting is wrong.")]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List the parked aggregates of all projections: since which offset, how many events wait, and why
    List {
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        tool: ToolSettings,
    },
    /// Show the events that wait, as the log has them
    Show {
        #[command(flatten)]
        of: One,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        tool: ToolSettings,
    },
    /// Apply the events that wait, in order; what still can't be applied goes on waiting, with the new reason
    Replay {
        /// Projection, e.g. bank-accounts
        projection: String,
        #[command(flatten)]
        which: Which,
        /// Events in memory at a time
        #[arg(long, hide = true, default_value_t = 20_000)]
        at_a_time: usize,
        #[command(flatten)]
        views: ViewSettings,
        #[command(flatten)]
        tool: ToolSettings,
    },
    /// Do without the events that wait and all later ones of the aggregate: its view stays as it is, and it no longer
    /// counts to the limit of parked aggregates
    ///
    /// Answers about it go on saying so. A later replay --id (or a rebuild) applies them after all.
    Discard {
        #[command(flatten)]
        of: One,
        #[command(flatten)]
        tool: ToolSettings,
    },
}

/// One aggregate.
#[derive(Args)]
struct One {
    /// Projection, e.g. bank-accounts
    projection: String,
    /// The aggregate; empty: the records that name none
    #[arg(long, value_name = "ID")]
    id: String,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// An aggregate, also a discarded one; may be repeated
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// All that are parked, but not the discarded ones
    #[arg(long)]
    all: bool,
}

/// Why it can't be done.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Service(#[from] crate::app::Error),
    #[error(transparent)]
    Fold(#[from] target::Error),
    #[error("{0}: {1}")]
    Loan(String, loan::Error),
    #[error("{0}")]
    Unreadable(String),
    #[error("{0}")]
    NotThere(String),
    #[error("the output can't be written: {0}")]
    Io(#[from] io::Error),
}

/// Runs it.
pub async fn run<D: Domains>(arguments: Arguments) -> ExitCode {
    let log = match &arguments.what {
        What::List { tool, .. } | What::Show { tool, .. } | What::Replay { tool, .. } | What::Discard { tool, .. } => {
            tool.log.clone()
        }
    };
    if let Err(error) = telemetry::init(&LogSettings { log: "warn".into(), ..log }) {
        config::exit_with(&error);
    }
    let runtime = Handle::current();
    match blocking(move || work::<D>(arguments.what, &runtime)).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(Error::Config(error)) => config::exit_with(&error),
        // Whoever reads the output has seen enough.
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many of the aggregates that were to be replayed still wait.
fn work<D: Domains>(what: What, runtime: &Handle) -> Result<usize, Error> {
    match what {
        What::List { json, tool } => list::<D>(&tool, json).map(|()| 0),
        What::Show { of, json, tool } => {
            let mut desk = desk_of::<D>(&of.projection, &tool, None, runtime)?;
            for (partition, _) in desk.places(Some(slice::from_ref(&of.id)))? {
                desk.show(partition, &of.id, &mut |event| print::waiting(&event, json))?;
            }
            Ok(0)
        }
        What::Replay { projection, which, at_a_time, views, tool } => {
            let mut desk = desk_of::<D>(&projection, &tool, Some(&views), runtime)?;
            let mut left = 0;
            for (partition, ids) in desk.places((!which.all).then_some(&which.id))? {
                for (id, replayed) in desk.replay(partition, ids, at_a_time)? {
                    left += usize::from(replayed.left.is_some());
                    print::replayed(&id, &replayed)?;
                }
            }
            Ok(left)
        }
        What::Discard { of, tool } => {
            let mut desk = desk_of::<D>(&of.projection, &tool, None, runtime)?;
            for (partition, _) in desk.places(Some(slice::from_ref(&of.id)))? {
                print::discarded(&of.id, &desk.discard(partition, &of.id)?)?;
            }
            Ok(0)
        }
    }
}

fn list<D: Domains>(tool: &ToolSettings, json: bool) -> Result<(), Error> {
    let names = Names::new(&tool.kafka.topic_prefix);
    let mut places = Places { names: &names, partitions: tool.kafka.partitions, all: Vec::new() };
    D::visit_all(&mut places);
    let mut store = Store::new(tool.redis.address()?, tool.redis.timeout());
    for kind in Kind::all::<D>() {
        let active = store.versions(names.redis_prefix(), kind.name)?.active;
        let keys = kind.keys(names.redis_prefix(), active, tool.kafka.partitions);
        places.all.extend((0..).zip(keys).map(|(partition, keys)| (kind.name.to_owned(), partition, keys)));
    }
    let mut found = Vec::new();
    for (projection, partition, keys) in places.all {
        for (id, parked) in parked(&mut store, &keys)? {
            found.push(print::Listed { projection: projection.clone(), partition, id, parked });
        }
    }
    Ok(print::list(&found, json)?)
}

/// The parked aggregates of a partition, in the order in which they were parked.
fn parked(store: &mut Store, keys: &Keys) -> Result<Vec<(String, Parked)>, Error> {
    let damaged = |error| Error::Unreadable(format!("{} in Redis is damaged: {error}", keys.parked()));
    let mut all: Vec<(String, Parked)> = Vec::new();
    for (id, json) in store.hash(&keys.parked())? {
        all.push((id, serde_json::from_str(&json).map_err(damaged)?));
    }
    all.sort_by_key(|(_, parked)| parked.offset);
    Ok(all)
}

/// Where something may be parked.
struct Places<'a> {
    names: &'a Names,
    partitions: i32,
    all: Vec<(String, i32, Keys)>,
}

impl Visitor for Places<'_> {
    fn visit<A: Aggregate>(&mut self) {
        let prefix = self.names.redis_prefix();
        let outcomes = format!("{}-outcomes", A::TYPE);
        for partition in 0..self.partitions {
            self.all.push((outcomes.clone(), partition, Keys::outcomes(prefix, A::TYPE, partition)));
        }
    }
}

/// What is done to the parked aggregates of one projection.
trait Work {
    /// The partitions where these aggregates are parked, and which in each; without ids all that are not discarded.
    fn places(&mut self, ids: Option<&[String]>) -> Result<Vec<(i32, BTreeSet<String>)>, Error>;
    /// Hands over the events that wait.
    fn show(&mut self, partition: i32, id: &str, each: &mut dyn FnMut(Event) -> io::Result<()>) -> Result<(), Error>;
    /// Applies what waits.
    fn replay(
        &mut self,
        partition: i32,
        ids: BTreeSet<String>,
        at_a_time: usize,
    ) -> Result<BTreeMap<String, Replayed>, Error>;
    /// Does without what waits.
    fn discard(&mut self, partition: i32, id: &str) -> Result<Parked, Error>;
}

/// An event that waits.
struct Event {
    place: String,
    timestamp_ms: Option<i64>,
    /// Sequence and type, or why it can't be read.
    content: Result<(u64, &'static str), String>,
}

/// What became of an aggregate.
#[derive(Default)]
struct Replayed {
    /// Events that don't wait any more.
    done: u64,
    /// What still waits.
    left: Option<Parked>,
}

fn desk_of<D: Domains>(
    projection: &str,
    tool: &ToolSettings,
    views: Option<&ViewSettings>,
    runtime: &Handle,
) -> Result<Box<dyn Work>, Error> {
    struct Find<'a> {
        projection: &'a str,
        means: &'a Means,
        found: Option<Result<Box<dyn Work>, Error>>,
        known: Vec<&'static str>,
    }
    impl Find<'_> {
        fn offer<T: Parking>(&mut self, name: &'static str, events: impl FnOnce(u32) -> Result<T, crate::app::Error>) {
            self.known.push(name);
            if name == self.projection {
                self.found = Some(Desk::new(self.means, name, events).map(|desk| Box::new(desk) as Box<dyn Work>));
            }
        }
    }
    impl Visitor for Find<'_> {
        fn visit<A: Aggregate>(&mut self) {
            let means = self.means;
            self.offer(A::Projection::NAME, |version| means.events::<A>(version));
        }
    }
    impl GroupingVisitor for Find<'_> {
        fn visit<G: Grouping>(&mut self) {
            let means = self.means;
            self.offer(G::NAME, |version| means.groups::<G>(version));
        }
    }
    let means = Means {
        bootstrap: tool.kafka.kafka_bootstrap.clone(),
        partitions: tool.kafka.partitions,
        instance: CLIENT_ID.to_owned(),
        // What is parked already may stay so.
        limits: Limits {
            changes_window: views.map_or(0, |views| views.changes_window),
            history_max: views.map_or(u64::MAX, |views| views.history_max_entries.into()),
            parked_max: usize::MAX,
        },
        names: Names::new(&tool.kafka.topic_prefix),
        registry: Registry::new(&tool.registry.url()?)?,
        master_keys: tool.personal.given()?,
        redis: tool.redis.address()?,
        redis_timeout: tool.redis.timeout(),
        runtime: runtime.clone(),
        board: Board::new(Health::default()),
        roster: Roster::default(),
    };
    let mut find = Find { projection, means: &means, found: None, known: Vec::new() };
    D::visit_all(&mut find);
    D::visit_groupings(&mut find);
    find.found.unwrap_or_else(|| {
        let known = find.known.join(", ");
        Err(config::Error(format!("there is no projection {projection:?} of aggregates; there is {known}")).into())
    })
}
