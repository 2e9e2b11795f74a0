//! The projections that there are, each as what can be done with it by name.

use millrace_shared::{
    domain::{Aggregate, Domains, Grouping, GroupingVisitor, Projection, Visitor},
    views::Keys,
};

use crate::{
    app::Error,
    cli::rebuild::{self, sample},
    crew::{Hired, Means},
    store::Store,
    worker::Options,
};

/// Fields with the values that a view has there.
pub type Indexes = Vec<(&'static str, String)>;

type Hire = fn(&Means, u32, Options) -> Result<Hired, Error>;

/// A projection by name.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// The aggregate type whose events it folds.
    pub aggregate_type: &'static str,
    /// Version of the code that folds.
    pub fold: u32,
    /// Puts a worker on a version of it.
    pub hire: Hire,
    /// What its lists are sorted by.
    pub sorts: fn() -> Vec<&'static str>,
    /// The indexes that a stored view is in, as field and value; `None` when this release can't read it.
    pub indexes: fn(&[u8]) -> Option<Indexes>,
    /// Compares some of its aggregates with the log.
    pub sample: fn(&Means, &mut Store, u32, &mut sample::Sample<'_>) -> Result<(), rebuild::Error>,
}

impl Kind {
    /// All.
    pub fn all<D: Domains>() -> Vec<Self> {
        struct Collect(Vec<Kind>);
        impl Visitor for Collect {
            fn visit<A: Aggregate>(&mut self) {
                self.0.push(Kind {
                    name: A::Projection::NAME,
                    aggregate_type: A::TYPE,
                    fold: A::Projection::VERSION,
                    hire: |means, version, options| means.hire(means.events::<A>(version)?, options),
                    sorts: || A::Projection::SORTS.iter().map(|sort| sort.name).collect(),
                    indexes: indexes::<A::Projection>,
                    sample: sample::sample::<A>,
                });
            }
        }
        impl GroupingVisitor for Collect {
            fn visit<G: Grouping>(&mut self) {
                self.0.push(Kind {
                    name: G::NAME,
                    aggregate_type: G::Aggregate::TYPE,
                    fold: G::VERSION,
                    hire: |means, version, options| means.hire(means.groups::<G>(version)?, options),
                    sorts: Vec::new,
                    indexes: |_| None,
                    sample: sample::grouped::<G>,
                });
            }
        }
        let mut all = Collect(Vec::new());
        D::visit_all(&mut all);
        D::visit_groupings(&mut all);
        all.0
    }

    /// The one of this name.
    pub fn find<D: Domains>(name: &str) -> Option<Self> {
        Self::all::<D>().into_iter().find(|kind| kind.name == name)
    }

    /// The keys of a version, by partition.
    pub fn keys(&self, redis_prefix: &str, version: u32, partitions: i32) -> Vec<Keys> {
        (0..partitions).map(|partition| Keys::projection(redis_prefix, self.name, version, partition)).collect()
    }
}

fn indexes<P: Projection>(view: &[u8]) -> Option<Indexes> {
    let view: P::View = serde_json::from_slice(view).ok()?;
    let selective = P::FILTERS.iter().filter(|filter| filter.selective);
    let indexes = selective.map(|filter| (filter.name, (filter.value)(&view).to_owned()));
    // What has no value is not looked for.
    Some(indexes.filter(|(_, value)| !value.is_empty()).collect())
}
