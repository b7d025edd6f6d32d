//! The command processor against a real Kafka and a real PostgreSQL.

#[path = "../harness/mod.rs"]
mod harness;

mod admission;
mod fencing;
mod floor;
mod fragile;
mod idempotency;
mod ids;
mod odd;
mod offsets;
mod poison;
mod replays;
mod streams;
mod world;
