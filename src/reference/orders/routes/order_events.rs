//! `GET /api/orders/{id}/events`: an order's events as they become visible, as server-sent events.
//!
//! Looks at the read table by version, so that a reconnect continues where it was: the id of each
//! event is its version. Streams are bounded in number and in time; clients reconnect by themselves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use super::order_history::{HistoryEvent, PROJECTION, events};
use throughline::api::problem::INVALID_REQUEST;
use throughline::api::{Api, Id, PathOf, Problem, ProblemBody, ReadHeaders};
use throughline::engine::destination_partition;

/// Events of one look, at most.
const EVENTS_MAX: i64 = 100;

/// One server-sent event.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeEvent {
    /// The version.
    pub id: String,
    /// The type, such as `OrderPlaced`.
    pub event: String,
    /// JSON, as an event of the history.
    pub data: String,
}

/// Follows an order: first what happened, then what happens.
#[utoipa::path(
    get, path = "/api/orders/{orderId}/events", tag = "orders",
    params(
        ("orderId" = Uuid, Path),
        ("Last-Event-ID" = Option<String>, Header, nullable = false, pattern = "^[0-9]{1,18}$",
         description = "The id of the last event seen, a version: the stream goes on after it"),
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
    let after = last_event_id(&headers)?;
    let place = api.open_stream()?;
    let read = api.begin_read(&headers, PROJECTION).await?;
    if events(&read, order_id, 0, None, None, Some(1)).await?.is_empty() {
        let partition = destination_partition(order_id, api.settings.topics.event_partitions);
        return Err(read.missing(Some(partition), format!("no order {order_id} is visible")));
    }
    drop(read);
    let http = &api.settings.http;
    let pause = Duration::from_millis(http.event_stream_poll_ms.max(10));
    let ends_at = Instant::now() + Duration::from_secs(http.event_stream_seconds_max);
    let follower = Follower { api, order_id, after, pause, ends_at, first: true };
    let looks = stream::unfold((follower, place), |(mut follower, place)| async move {
        let found = follower.next().await?;
        Some((found, (follower, place)))
    });
    let stream = looks.flat_map(|found| stream::iter(found.into_iter().map(sse_event)));
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

struct Follower {
    api: Arc<Api>,
    order_id: Uuid,
    after: i64,
    pause: Duration,
    ends_at: Instant,
    first: bool,
}

impl Follower {
    /// The next events; none at the end of the stream.
    async fn next(&mut self) -> Option<Vec<HistoryEvent>> {
        loop {
            if !std::mem::take(&mut self.first) {
                let shutdown = self.api.shutdown().clone();
                tokio::select! {
                    () = shutdown.cancelled() => return None,
                    () = tokio::time::sleep(self.pause) => {}
                }
            }
            if Instant::now() >= self.ends_at {
                return None;
            }
            // A look that fails is repeated: the client has the last event's id, nothing is lost.
            let Ok(read) = self.api.begin_read(&HeaderMap::new(), PROJECTION).await else { continue };
            let Ok(found) = events(&read, self.order_id, self.after, None, None, Some(EVENTS_MAX)).await else {
                continue;
            };
            if let Some(last) = found.last() {
                self.after = last.version;
                return Some(found);
            }
        }
    }
}

fn sse_event(event: HistoryEvent) -> Result<Event, Infallible> {
    let data = serde_json::to_string(&event).expect("an event of strings and JSON always serializes");
    Ok(Event::default().id(event.version.to_string()).event(event.kind).data(data))
}

fn last_event_id(headers: &HeaderMap) -> Result<i64, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(0) };
    let version = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let version = version.and_then(|text| text.parse().ok());
    version.ok_or_else(|| Problem::new(INVALID_REQUEST, "Last-Event-ID: must be the id of an event of this stream"))
}
