//! The tools of the services, run as an operator runs them.

use std::time::Duration;

use serde_json::Value;

use crate::{
    Deployment,
    process::{command, run},
};

/// Longest time for what a test writes.
const LIMIT: Duration = Duration::from_secs(240);

/// What a tool printed.
#[derive(Debug)]
pub struct Ran {
    /// Exit status.
    pub code: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Ran {
    /// The lines of its output, each a JSON object.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.output.lines().map(parse).collect()
    }
}

impl Deployment {
    /// Runs a tool of command-service on this deployment's topics; services may run meanwhile.
    #[track_caller]
    pub fn run_tool(&self, args: &[&str]) -> Ran {
        self.run_tool_of("command-service", args)
    }

    /// Runs a tool of projector-service on this deployment's views; services may run meanwhile.
    #[track_caller]
    pub fn run_projector_tool(&self, args: &[&str]) -> Ran {
        self.run_tool_of("projector-service", args)
    }

    #[track_caller]
    fn run_tool_of(&self, service: &str, args: &[&str]) -> Ran {
        let mut program = command(self.program(service));
        // Variables that only a running service looks at do no harm: the tool takes the same environment.
        program.args(args).env("MILLRACE_DATA_DIR", self.data_dir()).envs(&self.env);
        let output = run(program, LIMIT);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code(), output: text(output.stdout), errors: text(output.stderr) }
    }
}
