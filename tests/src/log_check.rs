//! `command-service check-log`, which says whether a deployment's log keeps the guarantees.

use serde_json::Value;

use crate::{Deployment, tool::Ran};

impl Deployment {
    /// Runs the log check on this deployment's topics; services may run meanwhile.
    ///
    /// # Panics
    /// When it finds anything, with all of it.
    #[track_caller]
    pub fn check_log(&self) {
        let checked = self.run_log_check(&[]);
        assert_eq!(checked.code, Some(0), "the log check:\n{}\n{}", checked.output, checked.errors);
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
