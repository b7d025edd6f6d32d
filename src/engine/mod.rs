//! The vocabulary a bounded context is written in: aggregate, command, event, projection, process
//! manager, ids.
//!
//! Nothing here knows Kafka, Avro, HTTP or any context of ours; a context knows this room and
//! little else. A type belongs here when the author of a new aggregate has to name it.

pub mod aggregate;
pub mod command;
pub mod context;
pub mod event;
pub mod given;
pub mod ids;
pub mod process;
pub mod projection;
pub mod rows;

pub use aggregate::{Aggregate, Decision, Refusal};
pub use command::{Command, CommandMeta, Fingerprint, InvalidCommand, fingerprint};
pub use context::{BoundedContext, Encoded, EventCodec, UndecodableEvent};
pub use event::Recorded;
pub use ids::{Position, destination_partition};
pub use process::{Action, CommandOutcome, Concern, Input, ProcessManager, Sending};
pub use projection::{Applied, Projection, ProjectionError, ReadModel};
pub use rows::Rows;
