//! projector-service with the domains that come with Millrace: see the library's documentation and README.

use std::process::ExitCode;

use millrace_shared::domain::Bundled;

// As in command-service: librdkafka's records are made in one thread and freed in another.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    projector_service::main::<Bundled>()
}
