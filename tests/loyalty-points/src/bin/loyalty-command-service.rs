//! command-service for loyalty points.

fn main() -> std::process::ExitCode {
    command_service::main::<loyalty_points::Served>()
}
