//! `command-service check-log`, which says whether a deployment's log keeps the guarantees, and `replay --diff`, which
//! says whether what is kept beside the log agrees with it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{Deployment, kafka, tool::Ran};

/// Aggregates that are compared.
const COMPARED: usize = 3;

impl Deployment {
    /// Runs the log check on this deployment's topics; services may run meanwhile. What the snapshots and the stores have
    /// of some accounts is compared with the log as well.
    ///
    /// # Panics
    /// When it finds anything, with all of it.
    #[track_caller]
    pub fn check_log(&self) {
        let checked = self.run_log_check(&[]);
        assert_eq!(checked.code, Some(0), "the log check:\n{}\n{}", checked.output, checked.errors);
        // Ids are random, so those that come first are any.
        let mut ids = BTreeSet::new();
        kafka::for_each(&self.topic("events"), None, |event| {
            ids.extend(event.key.and_then(|key| String::from_utf8(key).ok()));
        });
        for id in ids.iter().take(COMPARED) {
            let compared = self.run_tool(&["replay", "--aggregate", "bank-account", "--id", id, "--diff"]);
            assert_eq!(compared.code, Some(0), "{}\n{}", compared.output, compared.errors);
        }
    }

    /// Runs it with flags.
    #[track_caller]
    pub fn run_log_check(&self, flags: &[&str]) -> Ran {
        self.run_tool(&[&["check-log"], flags].concat())
    }

    /// Its answer as JSON.
    #[track_caller]
    pub fn log_check_json(&self) -> Value {
        let checked = self.run_log_check(&["--json"]);
        serde_json::from_str(&checked.output).unwrap_or_else(|error| panic!("{error}: {checked:?}"))
    }
}
