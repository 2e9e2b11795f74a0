//! The pipeline from end to end, on real Kafka, registry and Redis. Names begin with the guarantee that a test is
//! about, where there is one.

mod refusals;
mod repeats;
mod versions;
mod walk;
