//! The reference bounded context: orders, from their commands on Kafka to their read tables.
//!
//! `domain` is pure and knows only the engine's vocabulary. Everything else here is the context's
//! wire: JSON commands in, Avro events out, and the public JSON of both.

pub mod codec;
pub mod domain;
pub mod schemas;
mod wire;

pub use codec::{OrdersCodec, OrdersCodecError};
