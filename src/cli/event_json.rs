//! A stored event as a JSON row, for the commands that show events.

use serde_json::{Value, json};

use crate::store::events::StoredEvent;

/// The envelope of an event and its payload under `payload`; the context says what it calls the id of a stream.
pub(super) fn row(event: &StoredEvent, stream_id_field: &str, payload: Value) -> Value {
    let mut row = json!({
        "partition": event.partition,
        "seq": event.seq,
        "version": event.version,
        "type": event.event_type,
        "schemaVersion": event.schema_version,
        "recordedAt": event.recorded_at.to_string(),
        "eventId": event.event_id,
        "commandId": event.command_id,
        "correlationId": event.correlation_id,
        "causationId": event.cause(),
        "principal": event.principal,
        "payload": payload,
    });
    row[stream_id_field] = json!(event.stream_id);
    row
}
