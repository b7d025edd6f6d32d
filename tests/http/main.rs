//! The HTTP API on a real Kafka and a real PostgreSQL: the server and the loops in this process.

#[path = "../harness/mod.rs"]
mod harness;

mod admission;
mod commands;
mod documents;
mod health;
mod odd;
mod queries;
mod server;
mod tokens;
