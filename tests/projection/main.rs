//! Projections on the real Kafka and PostgreSQL: the loop, resets, failures, rebuilds, rights.

mod bed;
mod binary;
mod blame;
mod copies;
mod failures;
mod faulty;
mod fold;
mod follow;
#[path = "../harness/mod.rs"]
mod harness;
mod odd;
mod pages;
mod rebuild_load;
mod rebuilds;
mod reset_kills;
mod resets;
mod rights;
mod scenario;
mod sequences;
mod upgrade;
mod walk;
mod walk_model;
mod walk_operator;
mod walk_run;
mod walk_spoil;
mod walk_steps;
mod walk_world;
