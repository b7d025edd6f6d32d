//! `GET /api/orders/{id}/history` and `…/events`: every event of an order, its state at a version or a time, and what
//! happens to it. The API reads and answers; the fold is the domain's.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::orders::OrdersContext;
use crate::orders::domain::Order;
use crate::orders::event_json::event_of_json;
use throughline::api::{
    Api, ChangeEvent, FollowHeaders, HistoryEvent, HistoryOf, HistoryQuery, Id, PathOf, Problem, ProblemBody, QueryOf,
    ReadHeaders,
};
use throughline::engine::{Aggregate, BoundedContext};

const HISTORY: HistoryOf =
    HistoryOf { projection: "order-history", table: "order_history", stream_column: "order_id", fold };

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
    HISTORY.answer(&api, order_id, &headers, &query).await
}

/// Follows an order: first what happened, then what happens.
#[utoipa::path(
    get, path = "/api/orders/{orderId}/events", tag = "orders",
    params(
        ("orderId" = Uuid, Path),
        FollowHeaders,
        ReadHeaders,
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = ChangeEvent, description = "One server-sent event each: `id` is the version, `event` the type, `data` as in the history"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "No such order is visible (yet)"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json", description = "Not now: see `code` and `Retry-After`. `PROJECTION_STANDING`: nothing was found, and the part of the read table that would show it stands; the detail tells the reason, since when, and the next step"),
    ),
)]
pub async fn order_events(
    State(api): State<Arc<Api>>,
    PathOf(Id(order_id)): PathOf<Id>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    HISTORY.follow(api, order_id, &headers).await
}

fn fold(events: &[HistoryEvent]) -> Result<Value, Problem> {
    let mut order = Order::default();
    for recorded in events {
        order.evolve(&event_of_json(&recorded.payload).ok_or_else(|| recorded.unreadable())?);
    }
    let mut state = OrdersContext::describe_state(&order);
    state["placedAt"] = json!(events.first().map(|event| event.recorded_at));
    Ok(state)
}
