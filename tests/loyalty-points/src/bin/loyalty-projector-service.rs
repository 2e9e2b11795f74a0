//! projector-service for loyalty points. `projector_service::main::<Served>()` is all that it takes; the release before is there for the
//! tests of rolling upgrades.

fn main() -> std::process::ExitCode {
    use loyalty_points::{Served, earlier, release};
    release(projector_service::main::<Served>, projector_service::main::<earlier::Served>)
}
