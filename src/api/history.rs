//! What happened to a stream, oldest first, and its state at a version or a time: out of a context's table of history.
//!
//! Knows the table by name and shape, and asks the context to fold what it holds. Never asks the event store.

use axum::Json;
use axum::http::HeaderMap;
use axum::http::header::ETAG;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::Row;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::answers::put;
use super::problem::{INTERNAL_ERROR, INVALID_REQUEST, Problem};
use super::{Api, Read};
use crate::engine::destination_partition;

/// Where the history of a context's streams is read. The table has the columns `version`, `type`, `event_id`,
/// `recorded_at`, `command_id`, `correlation_id`, `causation_id` and `payload`, and is keyed by stream and version.
#[derive(Debug, Clone, Copy)]
pub struct HistoryOf {
    /// Keeps the table.
    pub projection: &'static str,
    /// In schema `read`.
    pub table: &'static str,
    /// The column of the stream's id.
    pub stream_column: &'static str,
    /// The state that events come to, all of a stream's from its first on: the domain's, not the read table's.
    pub fold: fn(&[HistoryEvent]) -> Result<Value, Problem>,
}

/// At which moment; neither = every event.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// The state right after this version.
    #[param(minimum = 1, nullable = false)]
    at_version: Option<i64>,
    /// The state at this time, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime, nullable = false)]
    at_time: Option<String>,
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEvent {
    /// 1, 2, 3 … within the stream.
    pub version: i64,
    /// Its type, as its schema is named.
    #[serde(rename = "type")]
    pub kind: String,
    pub event_id: Uuid,
    #[schema(value_type = String, format = DateTime)]
    pub recorded_at: Timestamp,
    pub command_id: Uuid,
    pub correlation_id: String,
    /// What caused it: as the command's sender said, else the command's id.
    pub causation_id: String,
    /// The event in its newest shape.
    #[schema(value_type = Object)]
    pub payload: Value,
}

impl HistoryEvent {
    /// The answer where the payload is no event, which only a table that somebody else wrote shows, or one that was
    /// not rebuilt after the events changed their shape.
    pub fn unreadable(&self) -> Problem {
        tracing::error!(event_id = %self.event_id, "a table of history holds a payload that is no event");
        Problem::new(INTERNAL_ERROR, format!("version {} cannot be read back", self.version))
    }
}

impl HistoryOf {
    /// Answers with the events of a stream; with a moment, those until then and the state that they made.
    ///
    /// # Errors
    /// The query is malformed, or the database is away.
    pub async fn answer(
        &self,
        api: &Api,
        stream_id: Uuid,
        headers: &HeaderMap,
        query: &HistoryQuery,
    ) -> Result<Response, Problem> {
        if query.at_version.is_some() && query.at_time.is_some() {
            return Err(Problem::new(INVALID_REQUEST, "atVersion and atTime exclude each other"));
        }
        if query.at_version.is_some_and(|version| version < 1) {
            return Err(Problem::new(INVALID_REQUEST, "atVersion: must be 1 or more"));
        }
        let at_time = query.at_time.as_deref().map(moment).transpose()?;
        let read = api.begin_read(headers, self.projection).await?;
        let partition = destination_partition(stream_id, api.settings.topics.event_partitions);
        let events = self.events(&read, stream_id, 0, (query.at_version, at_time), None);
        let (as_of, events) = futures_util::try_join!(read.as_of(Some(partition)), events)?;
        let mut response = match events.last() {
            // A version that is not there yet is not the newest one under another name.
            Some(last) if query.at_version.is_none_or(|version| version == last.version) => {
                let asked = query.at_version.is_some() || at_time.is_some();
                let mut body = json!({"events": events});
                body[api.stream_id_field] = json!(stream_id);
                if asked {
                    body["state"] = as_fields((self.fold)(&events)?);
                    body["state"]["version"] = json!(last.version);
                    body["state"]["updatedAt"] = json!(last.recorded_at);
                }
                let mut response = Json(body).into_response();
                put(&mut response, ETAG, &format!("\"{}\"", last.version));
                response
            }
            _ => {
                let detail = format!("nothing of {stream_id} is visible, or was at that moment");
                read.missing(Some(partition), detail).into_response()
            }
        };
        read.stamp(&as_of, &mut response);
        Ok(response)
    }

    /// Events of a stream after version `after`, up to a version, a time, and a number. Up to a time is all before the
    /// first event that is younger: where the clock was set back, picking by the time would leave some out between.
    pub(super) async fn events(
        &self,
        read: &Read,
        stream_id: Uuid,
        after: i64,
        (at_version, at_time): (Option<i64>, Option<Timestamp>),
        most: Option<i64>,
    ) -> Result<Vec<HistoryEvent>, Problem> {
        let Self { table, stream_column, .. } = self;
        let sql = format!(
            "select version, type, event_id, recorded_at, command_id, correlation_id,
                    coalesce(causation_id, command_id::text), payload
             from read.{table}
             where {stream_column} = $1 and version > $2 and ($3::bigint is null or version <= $3)
               and ($4::timestamptz is null or version < coalesce(
                    (select min(version) from read.{table} where {stream_column} = $1 and recorded_at > $4), version + 1))
             order by version limit $5"
        );
        let statement = read.client.prepare_cached(&sql).await?;
        let rows = read.client.query(&statement, &[&stream_id, &after, &at_version, &at_time, &most]).await?;
        Ok(rows.iter().map(event).collect())
    }
}

/// A state to which fields can be added: one that is no object, such as the name of a variant, is under `state`.
pub fn as_fields(state: Value) -> Value {
    match state {
        Value::Object(_) => state,
        Value::Null => json!({}),
        other => json!({"state": other}),
    }
}

fn event(row: &Row) -> HistoryEvent {
    HistoryEvent {
        version: row.get(0),
        kind: row.get(1),
        event_id: row.get(2),
        recorded_at: row.get(3),
        command_id: row.get(4),
        correlation_id: row.get(5),
        causation_id: row.get(6),
        payload: row.get(7),
    }
}

fn moment(text: &str) -> Result<Timestamp, Problem> {
    let invalid = || Problem::new(INVALID_REQUEST, "atTime: must be a time such as 2026-01-31T12:00:00Z");
    text.parse::<Timestamp>().ok().filter(|at| is_of_our_era(*at)).ok_or_else(invalid)
}

/// Whether a time is of the years that PostgreSQL and people know alike: from the year 1 on.
pub fn is_of_our_era(at: Timestamp) -> bool {
    at.as_second() >= -62_135_596_800
}
