//! query-service with the domains that come with Millrace: see the library's documentation and README.

use std::process::ExitCode;

use millrace_shared::domain::Bundled;

// A fifth of a query's CPU time was glibc's malloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    query_service::main::<Bundled>()
}
