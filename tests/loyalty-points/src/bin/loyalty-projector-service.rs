//! projector-service for loyalty points.

fn main() -> std::process::ExitCode {
    projector_service::main::<loyalty_points::Served>()
}
