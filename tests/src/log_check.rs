//! `command-service check-log`, which says whether a deployment's log keeps the guarantees.

use std::time::Duration;

use serde_json::Value;

use crate::{
    Deployment,
    process::{binary, command, run},
};

/// Longest time for what a test writes.
const LIMIT: Duration = Duration::from_secs(120);

/// What the program says.
#[derive(Debug)]
pub struct Checked {
    /// Exit status.
    pub code: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

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
    pub fn run_log_check(&self, flags: &[&str]) -> Checked {
        let mut program = command(binary("command-service"));
        // Variables that only a running service looks at do no harm: the tool takes the same environment.
        program.arg("check-log").args(flags).envs(&self.env);
        let output = run(program, LIMIT);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Checked { code: output.status.code(), output: text(output.stdout), errors: text(output.stderr) }
    }

    /// Its answer as JSON.
    #[track_caller]
    pub fn log_check_json(&self) -> Value {
        let checked = self.run_log_check(&["--json"]);
        serde_json::from_str(&checked.output).unwrap_or_else(|error| panic!("{error}: {checked:?}"))
    }
}
