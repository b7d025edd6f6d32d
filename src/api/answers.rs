//! The answers to commands: 202 while undecided, 201 once decided, and what a status query tells of one.
//!
//! Their fields and headers are the public contract, the same in every context but for the name of the stream's id.
//! What became of a command is the outcome row's to say.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ETAG, LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use super::envelope::RequestEnvelope;
use super::problem::Problem;
use super::submission::{Submission, Submitted};
use super::{Api, CONSISTENCY_TOKEN, consistency};
use crate::engine::Position;
use crate::store::commands::StoredOutcome;

impl Api {
    /// Hands a command over and answers its request. What streams of its kind are read from is
    /// `{collection}/{stream id}`, and a route that `waits` does so also where the caller names no wait.
    ///
    /// # Errors
    /// It was refused, or it could not be handed over.
    pub async fn answer(
        &self,
        envelope: &RequestEnvelope,
        mut submission: Submission<'_>,
        (collection, waits): (&str, bool),
    ) -> Result<Response, Problem> {
        let default_wait = waits.then(|| self.sync_wait());
        submission.wait = envelope.wait.or(default_wait).filter(|wait| *wait > Duration::ZERO);
        let Submission { command_id, stream_id, repeatable, .. } = submission;
        let mut response = match self.submit(envelope, submission).await? {
            Submitted::Accepted { correlation_id } => {
                let mut body = json!({"commandId": command_id, "correlationId": correlation_id, "status": "pending"});
                body[self.stream_id_field] = json!(stream_id);
                let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
                // An id that the caller fixed, or its key did, may be that of a command elsewhere, too.
                let location = match repeatable {
                    true => self.status_path(command_id, stream_id),
                    false => format!("/api/commands/{command_id}"),
                };
                put(&mut response, LOCATION, &location);
                response
            }
            Submitted::Decided(outcome) => {
                let mut response = (StatusCode::CREATED, Json(outcome.to_json(self.stream_id_field))).into_response();
                put(&mut response, LOCATION, &format!("{collection}/{stream_id}"));
                put_version(&mut response, &outcome, self.names.context());
                response
            }
        };
        if let Some(wait) = envelope.wait {
            put(&mut response, HeaderName::from_static("preference-applied"), &format!("wait={}", wait.as_secs()));
        }
        Ok(response)
    }

    /// Where the state of a command id is told, of one stream.
    pub(super) fn status_path(&self, command_id: Uuid, stream_id: Uuid) -> String {
        format!("/api/commands/{command_id}?{}={stream_id}", self.stream_id_field)
    }
}

/// What became of a command.
pub(super) fn decided(api: &Api, outcome: &StoredOutcome) -> Response {
    let mut response = Json(outcome.to_json(api.stream_id_field)).into_response();
    put_version(&mut response, outcome, api.names.context());
    response
}

/// A command of which no outcome is known: of the stream that was asked for, or of none under each of the names.
pub(super) fn pending<'a>(
    command_id: Uuid,
    stream_id: Option<Uuid>,
    names: impl IntoIterator<Item = &'a str>,
) -> Response {
    let mut body = json!({
        "commandId": command_id, "status": "pending", "code": null, "reason": null, "version": null,
        "position": null, "correlationId": null, "decidedAt": null,
    });
    for name in names {
        body[name] = json!(stream_id);
    }
    let mut response = Json(body).into_response();
    put(&mut response, RETRY_AFTER, "1");
    response
}

/// The shape of what a status query answers.
pub fn status_shape<'a>(stream_id_fields: impl IntoIterator<Item = &'a str>) -> Value {
    let or_null = |kind: &str| json!({"type": [kind, "null"]});
    let mut shape = json!({
        "type": "object",
        "properties": {
            "commandId": {"type": "string", "format": "uuid"},
            "status": {"type": "string", "enum": ["pending", "accepted", "refused"]},
            "code": or_null("string"),
            "reason": or_null("string"),
            "version": or_null("integer"),
            "position": {
                "type": ["object", "null"],
                "properties": {"partition": {"type": "integer"}, "seq": {"type": "integer"}},
            },
            "correlationId": or_null("string"),
            "decidedAt": {"type": ["string", "null"], "format": "date-time"},
        },
        "required": ["commandId", "status"],
    });
    for field in stream_id_fields {
        shape["properties"][field] = json!({
            "type": ["string", "null"], "format": "uuid",
            "description": "The stream. Null while pending, unless asked for, and where a record told none.",
        });
    }
    shape
}

/// `ETag` and `Consistency-Token` of a decided command.
fn put_version(response: &mut Response, outcome: &StoredOutcome, context: &str) {
    if let Some(version) = outcome.version {
        put(response, ETAG, &format!("\"{version}\""));
    }
    if let Some(seq) = outcome.seq {
        let token = consistency::encode(context, Position { partition: outcome.partition, seq });
        put(response, CONSISTENCY_TOKEN, &token);
    }
}

/// Sets a header whose text is ours.
pub fn put(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
