//! query-service for loyalty points.

fn main() -> std::process::ExitCode {
    query_service::main::<loyalty_points::Served>()
}
