//! Outcomes of commands, as status queries and the sync path read them. Written by the processor.
//!
//! A command id counts in one stream. Who knows the stream asks [`of_stream`]; who knows the id alone may find several.

use jiff::Timestamp;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::StoreError;

/// What became of one command id in one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOutcome {
    pub command_id: Uuid,
    /// Nil where the record told none: [`Self::stream`].
    pub stream_id: Uuid,
    /// Tells the command that was decided from others under its id.
    pub payload_hash: Vec<u8>,
    pub accepted: bool,
    /// Refusal code; none when accepted.
    pub code: Option<String>,
    pub reason: Option<String>,
    /// Stream version after the command; none when it was refused before loading.
    pub version: Option<i64>,
    /// Partition of the events topic.
    pub partition: i32,
    /// Sequence number of its last event there; none when refused.
    pub seq: Option<i64>,
    pub correlation_id: String,
    pub decided_at: Timestamp,
}

impl StoredOutcome {
    /// The stream, if the record told one.
    pub fn stream(&self) -> Option<Uuid> {
        (!self.stream_id.is_nil()).then_some(self.stream_id)
    }

    /// The public form, as on the results topic; the context says what it calls the id of a stream.
    pub fn to_json(&self, stream_id_field: &str) -> serde_json::Value {
        let position = self.seq.map(|seq| serde_json::json!({"partition": self.partition, "seq": seq}));
        let mut json = serde_json::json!({
            "commandId": self.command_id,
            "status": if self.accepted { "accepted" } else { "refused" },
            "code": self.code,
            "reason": self.reason,
            "version": self.version,
            "position": position,
            "correlationId": self.correlation_id,
            "decidedAt": self.decided_at.to_string(),
        });
        json[stream_id_field] = serde_json::json!(self.stream());
        json
    }
}

/// Outcomes of one id that are looked at in each destination partition, at most.
pub const OF_ONE_ID_MAX: i64 = 101;

/// The outcomes of `ids` that exist in the streams of `events_topic`, earliest first; of one id there may be several.
/// Looks in every destination partition: whoever asks knows the ids alone.
pub async fn outcomes(client: &Client, events_topic: &str, ids: &[Uuid]) -> Result<Vec<StoredOutcome>, StoreError> {
    // The leading key columns are enumerated so that each probe is an index look-up, and the lateral keeps it one:
    // a join would be planned for an empty table, and read all of it once it is full.
    let statement = "
        select c.command_id, c.stream_id, c.payload_hash, c.accepted, c.code, c.reason, c.version,
               c.partition, c.seq, c.correlation_id, c.decided_at
        from throughline.topics t
        cross join generate_series(0, t.partitions - 1) p
        cross join unnest($2::uuid[]) asked
        cross join lateral (
            select * from throughline.commands c
            where c.partition = p and c.topic = t.id and c.command_id = asked
            order by c.stream_id, c.decided_at limit $3) c
        where t.name = $1";
    let rows = client
        .query(statement, &[&events_topic, &ids, &OF_ONE_ID_MAX])
        .await
        .map_err(StoreError::at("read outcomes of commands"))?;
    let mut found: Vec<StoredOutcome> = rows.iter().map(outcome).collect();
    found.sort_by_key(|outcome| (outcome.decided_at, outcome.stream_id));
    Ok(found)
}

/// The outcome of a command id in one stream. `partition` is the stream's destination.
pub async fn of_stream(
    client: &Client,
    events_topic: &str,
    partition: i32,
    stream_id: Uuid,
    command_id: Uuid,
) -> Result<Option<StoredOutcome>, StoreError> {
    let statement = "
        select c.command_id, c.stream_id, c.payload_hash, c.accepted, c.code, c.reason, c.version,
               c.partition, c.seq, c.correlation_id, c.decided_at
        from throughline.topics t
        cross join lateral (
            select * from throughline.commands c
            where c.partition = $2 and c.topic = t.id and c.command_id = $3 and c.stream_id = $4
            order by c.decided_at limit 1) c
        where t.name = $1";
    let row = client
        .query_opt(statement, &[&events_topic, &partition, &command_id, &stream_id])
        .await
        .map_err(StoreError::at("read the outcome of a command"))?;
    Ok(row.as_ref().map(outcome))
}

/// The outcome of a row whose columns come in the order of [`StoredOutcome`]'s fields.
pub fn outcome(row: &Row) -> StoredOutcome {
    StoredOutcome {
        command_id: row.get(0),
        stream_id: row.get(1),
        payload_hash: row.get(2),
        accepted: row.get(3),
        code: row.get(4),
        reason: row.get(5),
        version: row.get(6),
        partition: row.get(7),
        seq: row.get(8),
        correlation_id: row.get(9),
        decided_at: row.get(10),
    }
}
