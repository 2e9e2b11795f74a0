//! command-service for loyalty points. `command_service::main::<Served>()` is all that it takes; the release before is there for the
//! tests of rolling upgrades.

fn main() -> std::process::ExitCode {
    use loyalty_points::{Served, earlier, release};
    release(command_service::main::<Served>, command_service::main::<earlier::Served>)
}
