//! The reference bounded context: orders, from their commands on Kafka to their read tables.
//!
//! `domain` is pure and knows only the engine's vocabulary. Everything else here is the context's
//! wire: JSON commands in, Avro events out, and the public JSON of both.

pub mod codec;
pub mod command;
mod command_fault;
pub mod command_json;
#[cfg(test)]
mod command_tests;
mod context;
pub mod domain;
mod event_json;
#[cfg(test)]
mod golden;
mod meaning;
pub mod message_schemas;
pub mod projections;
mod public_json;
pub mod routes;
pub mod schemas;
mod wire;

pub use codec::{OrdersCodec, OrdersCodecError};
pub use command::{CommandKind, RequestContext, parse_command, parse_request};
pub use command_json::{CommandJson, command_to_json};
pub use context::{OrdersContext, context};
