//! Projections on the real Kafka and PostgreSQL: the loop, resets, failures, rebuilds, rights.

mod bed;
mod binary;
mod copies;
mod failures;
mod faulty;
mod fold;
mod follow;
mod pages;
mod rebuild_load;
mod rebuilds;
mod reset_kills;
mod resets;
mod rights;
mod scenario;
#[path = "../harness/way.rs"]
mod way;
