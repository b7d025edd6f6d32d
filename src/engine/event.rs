//! An event as it was recorded: the newest shape of its payload, and where and why it happened.

use jiff::Timestamp;
use uuid::Uuid;

use super::ids::Position;

/// One event of the store, upcast to its newest shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded<E> {
    /// Destination partition and dense sequence number in it.
    pub position: Position,
    /// The stream (the aggregate's id).
    pub stream_id: Uuid,
    /// 1, 2, 3 … within the stream.
    pub version: i64,
    /// Distinct for every event; derived when it was decided, and stored.
    pub event_id: Uuid,
    /// The command that caused it.
    pub command_id: Uuid,
    /// Follows one request through every topic and log line.
    pub correlation_id: String,
    /// What caused it: as the command's sender said, else the command's id. None in events of releases that wrote
    /// none there: then it is the command.
    pub causation_id: Option<String>,
    /// When the deciding transaction recorded it.
    pub recorded_at: Timestamp,
    /// The payload.
    pub event: E,
}
