//! query-service with the domains that come with Millrace: see the library's documentation and README.

use std::process::ExitCode;

use millrace_shared::domain::Bundled;

fn main() -> ExitCode {
    query_service::main::<Bundled>()
}
