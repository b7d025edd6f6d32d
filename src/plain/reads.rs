//! What a [`super::StateTable`] answers: the state of one stream, or a page of them by their ids.
//!
//! Reads tables alone. What the state's fields are is the aggregate's business.

use axum::Json;
use axum::http::HeaderMap;
use axum::http::header::ETAG;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::Row;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::api::problem::INVALID_REQUEST;
use crate::api::{Api, Problem, as_fields, cursor, put};
use crate::engine::destination_partition;

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 500;

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// States of a page, at most.
    #[param(minimum = 1, maximum = 500, nullable = false)]
    limit: Option<u32>,
    /// The `nextCursor` of the page before.
    #[param(pattern = "^[0-9a-f]{10,1024}$", nullable = false)]
    cursor: Option<String>,
}

pub(super) async fn state(
    api: &Api,
    (table, projection): (&str, &'static str),
    stream_id: Uuid,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let read = api.begin_read(headers, projection).await?;
    let sql = format!("select stream_id, version, state, updated_at from read.{table} where stream_id = $1");
    let statement = read.client.prepare_cached(&sql).await?;
    let partition = destination_partition(stream_id, api.settings.topics.event_partitions);
    let row = async { read.client.query_opt(&statement, &[&stream_id]).await.map_err(Problem::from) };
    let (as_of, row) = futures_util::try_join!(read.as_of(Some(partition)), row)?;
    let mut response = match row {
        None => read.missing(Some(partition), format!("nothing of {stream_id} is visible")).into_response(),
        Some(row) => {
            let body = shown(&row, api.stream_id_field);
            let tag = format!("\"{}\"", body["version"]);
            let mut response = Json(body).into_response();
            put(&mut response, ETAG, &tag);
            response
        }
    };
    read.stamp(&as_of, &mut response);
    Ok(response)
}

pub(super) async fn list(
    api: &Api,
    (table, projection): (&str, &'static str),
    headers: &HeaderMap,
    query: &ListQuery,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::new(INVALID_REQUEST, format!("limit: must be 1 to {LIMIT_MAX}")));
    }
    let after = query.cursor.as_deref().map(|text| read_cursor(table, text)).transpose()?;
    let read = api.begin_read(headers, projection).await?;
    // No stream has the nil id. One more than asked for tells whether there is a next page.
    let (after, most) = (after.unwrap_or(Uuid::nil()), i64::from(limit) + 1);
    let sql = format!(
        "select stream_id, version, state, updated_at from read.{table} where stream_id > $1 order by stream_id limit $2"
    );
    let statement = read.client.prepare_cached(&sql).await?;
    let rows = async { read.client.query(&statement, &[&after, &most]).await.map_err(Problem::from) };
    let (as_of, rows) = futures_util::try_join!(read.as_of(None), rows)?;
    let page = &rows[..rows.len().min(limit as usize)];
    let next = page.last().filter(|_| rows.len() > page.len()).map(|last| last.get::<_, Uuid>(0).to_string());
    let next = next.map(|id| cursor::encode(table, &[id]));
    let items: Vec<Value> = page.iter().map(|row| shown(row, api.stream_id_field)).collect();
    let mut response = Json(json!({"items": items, "nextCursor": next})).into_response();
    read.stamp(&as_of, &mut response);
    Ok(response)
}

fn read_cursor(table: &str, text: &str) -> Result<Uuid, Problem> {
    let fields = cursor::decode(table, text)?;
    let id = fields.first().and_then(|id| Uuid::try_parse(id).ok());
    id.ok_or_else(|| Problem::new(INVALID_REQUEST, "cursor: is none of ours"))
}

fn shown(row: &Row, stream_id_field: &str) -> Value {
    let mut body = as_fields(row.get(2));
    body[stream_id_field] = json!(row.get::<_, Uuid>(0));
    body["version"] = json!(row.get::<_, i64>(1));
    body["updatedAt"] = json!(row.get::<_, jiff::Timestamp>(3));
    body
}
