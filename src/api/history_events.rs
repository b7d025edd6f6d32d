//! A stream's events as they become visible, as server-sent events.
//!
//! Looks at the table of history by version, so that a reconnect continues where it was: the id of each
//! event is its version. Answers are bounded in number and in time; clients reconnect by themselves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Api;
use super::history::{HistoryEvent, HistoryOf};
use super::problem::{INVALID_REQUEST, Problem};
use crate::engine::destination_partition;

/// Events of one look, at most.
const EVENTS_MAX: i64 = 100;

/// One server-sent event.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeEvent {
    /// The version.
    pub id: String,
    /// The type, as its schema is named.
    pub event: String,
    /// JSON, as an event of the history.
    pub data: String,
}

/// The header of whoever goes on following, for the document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct FollowHeaders {
    /// The id of the last event seen, a version: the stream goes on after it
    #[param(rename = "Last-Event-ID", required = false, nullable = false, pattern = "^[0-9]{1,18}$")]
    pub last_event_id: Option<String>,
}

impl HistoryOf {
    /// Answers with the events of a stream: first what happened, then what happens.
    ///
    /// # Errors
    /// Nothing of it is visible (yet), as many are followed as may be, or the database is away.
    pub async fn follow(self, api: Arc<Api>, stream_id: Uuid, headers: &HeaderMap) -> Result<Response, Problem> {
        let after = last_event_id(headers)?;
        let place = api.open_stream()?;
        let read = api.begin_read(headers, self.projection).await?;
        if self.events(&read, stream_id, 0, (None, None), Some(1)).await?.is_empty() {
            let partition = destination_partition(stream_id, api.settings.topics.event_partitions);
            return Err(read.missing(Some(partition), format!("nothing of {stream_id} is visible")));
        }
        drop(read);
        let http = &api.settings.http;
        let pause = Duration::from_millis(http.event_stream_poll_ms.max(10));
        let ends_at = Instant::now() + Duration::from_secs(http.event_stream_seconds_max);
        let follower = Follower { history: self, api, stream_id, after, pause, ends_at, first: true };
        let looks = stream::unfold((follower, place), |(mut follower, place)| async move {
            let found = follower.next().await?;
            Some((found, (follower, place)))
        });
        let stream = looks.flat_map(|found| stream::iter(found.into_iter().map(sse_event)));
        Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
    }
}

struct Follower {
    history: HistoryOf,
    api: Arc<Api>,
    stream_id: Uuid,
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
            let Ok(read) = self.api.begin_read(&HeaderMap::new(), self.history.projection).await else { continue };
            let look = self.history.events(&read, self.stream_id, self.after, (None, None), Some(EVENTS_MAX));
            let Ok(found) = look.await else { continue };
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
