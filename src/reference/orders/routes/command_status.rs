//! `GET /api/commands/{id}`: what became of a command.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::{CommandStatus, put, put_version, status_of_order};
use throughline::api::{Api, Id, PathOf, Problem, ProblemBody, QueryOf};

/// Of which order.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatusQuery {
    /// A command id counts in one order: names the order where the id was used for several.
    #[param(value_type = Option<Uuid>, nullable = false)]
    order_id: Option<Id>,
}

/// Whether a command is pending, accepted or refused. An id that was never sent is pending, too:
/// what is on its way to the processor cannot be told from what was never sent.
#[utoipa::path(
    get, path = "/api/commands/{commandId}", tag = "commands",
    params(("commandId" = Uuid, Path, description = "As answered by the POST"), StatusQuery),
    responses(
        (status = 200, body = CommandStatus, description = "Its state; `Retry-After` while pending"),
        (status = 409, body = ProblemBody, content_type = "application/problem+json",
         description = "The id was used for several orders, and none is named: `choices` lists them"),
    ),
)]
pub async fn command_status(
    State(api): State<Arc<Api>>,
    PathOf(Id(command_id)): PathOf<Id>,
    QueryOf(query): QueryOf<StatusQuery>,
) -> Result<Response, Problem> {
    let order_id = query.order_id.map(|Id(order_id)| order_id);
    let outcome = match order_id {
        Some(order_id) => api.decided(command_id, order_id).await?,
        None => api.decided_somewhere(command_id, &status_of_order(command_id)).await?,
    };
    let Some(outcome) = outcome else {
        let mut response = Json(CommandStatus::pending(command_id, order_id)).into_response();
        put(&mut response, RETRY_AFTER, "1");
        return Ok(response);
    };
    let mut response = Json(CommandStatus::from(&outcome)).into_response();
    put_version(&mut response, &outcome);
    Ok(response)
}
