//! The HTTP API on a real Kafka and a real PostgreSQL: the server and the loops in this process.

#[path = "../harness/mod.rs"]
mod harness;

mod admission;
mod commands;
mod connections;
mod documents;
mod health;
mod hostile;
mod ids;
mod neighbours;
mod odd;
mod partitions;
mod payments;
mod queries;
mod server;
mod stands;
mod start;
mod tokens;
