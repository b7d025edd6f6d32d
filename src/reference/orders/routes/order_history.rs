//! `GET /api/orders/{id}/history`: every event of an order, or its state at a version or a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
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
use super::is_of_our_era;
use crate::orders::OrdersContext;
use crate::orders::domain::Order;
use crate::orders::event_json::event_of_json;
use throughline::api::problem::{INTERNAL_ERROR, INVALID_REQUEST};
use throughline::api::{Api, Id, PathOf, Problem, ProblemBody, QueryOf, Read, ReadHeaders};
use throughline::engine::{Aggregate, BoundedContext, destination_partition};

pub(super) const PROJECTION: &str = "order-history";

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

/// One event of an order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEvent {
    /// 1, 2, 3 … within the order.
    pub version: i64,
    /// Such as `OrderPlaced`.
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

/// What happened to an order, oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderHistory {
    pub order_id: Uuid,
    pub events: Vec<HistoryEvent>,
    /// The order's state at the moment asked for; absent where none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub state: Option<Value>,
}

/// Reads an order's history; with a moment, the events until then and the state that they made.
#[utoipa::path(
    get, path = "/api/orders/{orderId}/history", tag = "orders",
    params(("orderId" = Uuid, Path), HistoryQuery, ReadHeaders),
    responses(
        (status = 200, body = OrderHistory, description = "The events; `ETag` is the version of the last one",
         headers(("ETag" = String), ("As-Of" = String), ("As-Of-Positions" = String), ("Consistency" = String),
                 ("Projection-Standing" = String, description = "Partitions that stand, as `2,5`: the answer may lack what was decided since; absent where all go on"))),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "No such order is visible, or was then"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "Not now: see `code` and `Retry-After`. `PROJECTION_STANDING`: nothing was found, and the part of the read table that would show it stands; the detail tells the reason, since when, and the next step"),
    ),
)]
pub async fn order_history(
    State(api): State<Arc<Api>>,
    PathOf(Id(order_id)): PathOf<Id>,
    headers: HeaderMap,
    QueryOf(query): QueryOf<HistoryQuery>,
) -> Result<Response, Problem> {
    if query.at_version.is_some() && query.at_time.is_some() {
        return Err(Problem::new(INVALID_REQUEST, "atVersion and atTime exclude each other"));
    }
    if query.at_version.is_some_and(|version| version < 1) {
        return Err(Problem::new(INVALID_REQUEST, "atVersion: must be 1 or more"));
    }
    let at_time = query.at_time.as_deref().map(moment).transpose()?;
    let read = api.begin_read(&headers, PROJECTION).await?;
    let partition = destination_partition(order_id, api.settings.topics.event_partitions);
    let events = events(&read, order_id, 0, query.at_version, at_time, None);
    let (as_of, events) = futures_util::try_join!(read.as_of(Some(partition)), events)?;
    let last_version = events.last().map(|event| event.version);
    let missing = || read.missing(Some(partition), format!("no order {order_id} is visible, or was at that moment"));
    let mut response = match last_version {
        None => missing().into_response(),
        // A version that is not there yet is not the newest one under another name.
        Some(last) if query.at_version.is_some_and(|version| version > last) => missing().into_response(),
        Some(last) => {
            let asked = query.at_version.is_some() || at_time.is_some();
            let state = if asked { Some(state_after(&events)?) } else { None };
            let mut response = Json(OrderHistory { order_id, events, state }).into_response();
            put(&mut response, ETAG, &format!("\"{last}\""));
            response
        }
    };
    read.stamp(&as_of, &mut response);
    Ok(response)
}

fn moment(text: &str) -> Result<Timestamp, Problem> {
    let invalid = || Problem::new(INVALID_REQUEST, "atTime: must be a time such as 2026-01-31T12:00:00Z");
    text.parse::<Timestamp>().ok().filter(|at| is_of_our_era(*at)).ok_or_else(invalid)
}

/// Events of an order after version `after`, up to a version, a time, and a number. Up to a time is all before the
/// first event that is younger: where the clock was set back, picking by the time would leave some out between.
pub(super) async fn events(
    read: &Read,
    order_id: Uuid,
    after: i64,
    at_version: Option<i64>,
    at_time: Option<Timestamp>,
    most: Option<i64>,
) -> Result<Vec<HistoryEvent>, Problem> {
    let statement = read
        .client
        .prepare_cached(
            "select version, type, event_id, recorded_at, command_id, correlation_id,
                    coalesce(causation_id, command_id::text), payload
             from read.order_history
             where order_id = $1 and version > $2 and ($3::bigint is null or version <= $3)
               and ($4::timestamptz is null or version < coalesce(
                    (select min(version) from read.order_history where order_id = $1 and recorded_at > $4), version + 1))
             order by version limit $5",
        )
        .await?;
    let rows = read.client.query(&statement, &[&order_id, &after, &at_version, &at_time, &most]).await?;
    Ok(rows.iter().map(event).collect())
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

/// Folds the events through the aggregate: the state is the domain's, not the read table's.
fn state_after(events: &[HistoryEvent]) -> Result<Value, Problem> {
    let mut order = Order::default();
    for recorded in events {
        let event = event_of_json(&recorded.payload).ok_or_else(|| {
            tracing::error!(event_id = %recorded.event_id, "order_history holds a payload that is no event");
            Problem::new(INTERNAL_ERROR, format!("version {} cannot be read back", recorded.version))
        })?;
        order.evolve(&event);
    }
    let mut state = OrdersContext::describe_state(&order);
    if let (Some(object), Some(first), Some(last)) = (state.as_object_mut(), events.first(), events.last()) {
        object.insert("version".into(), json!(last.version));
        object.insert("placedAt".into(), json!(first.recorded_at));
        object.insert("updatedAt".into(), json!(last.recorded_at));
    }
    Ok(state)
}
