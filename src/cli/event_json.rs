//! A stored event as a JSON row, for the commands that show events.

use serde_json::{Value, json};

use crate::engine::{BoundedContext, EventCodec};
use crate::store::events::StoredEvent;

/// The envelope of an event and its payload under `payload`.
pub(super) fn row<C: BoundedContext>(event: &StoredEvent, payload: Value) -> Value {
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
    row[C::STREAM_ID_FIELD] = json!(event.stream_id);
    row
}

/// The payload in the newest shape, or why there is none.
pub(super) fn newest<C: BoundedContext>(codec: &C::Codec, event: &StoredEvent) -> Result<Value, String> {
    codec.decode(&event.payload).map(|event| C::describe_event(&event)).map_err(|error| error.to_string())
}
