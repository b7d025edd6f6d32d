//! What became of a command: the row that is kept, and the record that is published.
//!
//! The JSON is the one of `GET /api/commands/{id}`.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};
use uuid::Uuid;

use crate::engine::Fingerprint;

/// Where a command id counts: in one stream, of the context that the processor runs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct IdScope {
    /// Destination: the stream's, or the source's where the record tells no stream.
    pub partition: i32,
    /// Nil where the record does not tell it.
    pub stream_id: Uuid,
    pub command_id: Uuid,
}

/// The outcome of one command id in one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub command_id: Uuid,
    /// Nil where the record does not tell it.
    pub stream_id: Uuid,
    pub payload_hash: Fingerprint,
    pub accepted: bool,
    pub code: Option<Cow<'static, str>>,
    pub reason: Option<String>,
    /// Stream version after the command; none if refused before loading.
    pub version: Option<i64>,
    pub partition: i32,
    /// Position of its last event; none if it has none.
    pub seq: Option<i64>,
    pub correlation_id: String,
    pub decided_at: Timestamp,
}

impl Outcome {
    /// The published form.
    pub fn json(&self, stream_id_field: &'static str) -> Vec<u8> {
        // Plain values only: nothing in here can fail to serialize.
        serde_json::to_vec(&Published { outcome: self, stream_id_field }).unwrap_or_default()
    }
}

struct Published<'a> {
    outcome: &'a Outcome,
    stream_id_field: &'static str,
}

#[derive(serde::Serialize)]
struct Place {
    partition: i32,
    seq: i64,
}

impl Serialize for Published<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let outcome = self.outcome;
        let stream_id = (!outcome.stream_id.is_nil()).then_some(outcome.stream_id);
        let place = outcome.seq.map(|seq| Place { partition: outcome.partition, seq });
        let mut map = serializer.serialize_map(Some(9))?;
        map.serialize_entry("commandId", &outcome.command_id)?;
        map.serialize_entry(self.stream_id_field, &stream_id)?;
        map.serialize_entry("status", if outcome.accepted { "accepted" } else { "refused" })?;
        map.serialize_entry("code", &outcome.code)?;
        map.serialize_entry("reason", &outcome.reason)?;
        map.serialize_entry("version", &outcome.version)?;
        map.serialize_entry("position", &place)?;
        map.serialize_entry("correlationId", &outcome.correlation_id)?;
        map.serialize_entry("decidedAt", &outcome.decided_at)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_a_code_and_no_position() {
        let outcome = Outcome {
            command_id: Uuid::from_u128(1),
            stream_id: Uuid::from_u128(2),
            payload_hash: [0; 16],
            accepted: false,
            code: Some("NOT_OPEN".into()),
            reason: Some("not paid".into()),
            version: Some(1),
            partition: 3,
            seq: None,
            correlation_id: "c".into(),
            decided_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        let json: serde_json::Value = serde_json::from_slice(&outcome.json("accountId")).unwrap();
        assert_eq!(json["accountId"], "00000000-0000-0000-0000-000000000002");
        assert_eq!((json["status"].as_str(), json["code"].as_str()), (Some("refused"), Some("NOT_OPEN")));
        assert!(json["position"].is_null());
        assert_eq!(json["decidedAt"], "2026-01-02T03:04:05Z");
    }
}
