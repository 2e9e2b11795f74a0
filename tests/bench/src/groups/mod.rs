//! The groups of figures, one file for each.

mod deadlines;
mod decode;
mod http;
mod project;
mod query;
mod restart;
mod store;
mod takeover;
mod transfers;
mod write;

use std::path::PathBuf;

use anyhow::Result;

use crate::report::Figure;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One short round.
    pub quick: bool,
    /// Rounds.
    pub rounds: usize,
    /// Accounts of the banks of `restart`, `store`, `list` and `project`, where they are not to have their usual size.
    pub accounts: Option<usize>,
    /// Where the services' programs are, unless beside ours.
    pub bin_dir: Option<PathBuf>,
}

impl Settings {
    /// Accounts of the bank that writes are measured with.
    pub fn accounts(&self) -> usize {
        if self.quick { 5_000 } else { 100_000 }
    }
}

/// Figures that are measured together.
pub struct Group {
    /// Their names, and what each is.
    pub figures: &'static [(&'static str, &'static str)],
    /// Measures those of them that are wanted.
    pub run: fn(&Settings, &[&'static str]) -> Result<Vec<Figure>>,
}

/// All groups.
pub const GROUPS: &[Group] = &[
    write::GROUP,
    store::GROUP,
    transfers::GROUP,
    http::GROUP,
    project::GROUP,
    query::GROUP,
    decode::GROUP,
    deadlines::GROUP,
    takeover::GROUP,
    restart::GROUP,
];
