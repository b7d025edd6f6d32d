//! `GET /api/commands/{id}`: what became of a command.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::answers::{CommandStatus, put, put_version};
use crate::api::{Api, PathOf, Problem};

/// Whether a command is pending, accepted or refused. An id that was never sent is pending, too:
/// what is on its way to the processor cannot be told from what was never sent.
#[utoipa::path(
    get, path = "/api/commands/{commandId}", tag = "commands",
    params(("commandId" = Uuid, Path, description = "As answered by the POST")),
    responses((status = 200, body = CommandStatus, description = "Its state; `Retry-After` while pending")),
)]
pub async fn command_status(
    State(api): State<Arc<Api>>,
    PathOf(command_id): PathOf<Uuid>,
) -> Result<Response, Problem> {
    let Some(outcome) = api.decided(command_id, None).await? else {
        let mut response = Json(CommandStatus::pending(command_id)).into_response();
        put(&mut response, RETRY_AFTER, "1");
        return Ok(response);
    };
    let mut response = Json(CommandStatus::from(&outcome)).into_response();
    put_version(&mut response, &outcome);
    Ok(response)
}
