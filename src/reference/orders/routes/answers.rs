//! The answers to command requests: 202 while undecided, 201 once decided, with their headers.

use axum::Json;
use axum::http::header::{ETAG, LOCATION};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use throughline::api::{CONSISTENCY_TOKEN, Submitted, consistency_token};
use throughline::engine::Position;
use throughline::store::commands::Outcome;

/// A command that Kafka holds.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandAccepted {
    pub order_id: Uuid,
    pub command_id: Uuid,
    pub correlation_id: String,
}

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CommandState {
    /// Not decided yet, or not known.
    Pending,
    /// Decided: its events are recorded.
    Accepted,
    /// Decided: nothing happened, for a reason.
    Refused,
}

/// What became of a command.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandStatus {
    pub command_id: Uuid,
    /// Null while pending, unless asked for, and where a record told none.
    pub order_id: Option<Uuid>,
    #[schema(inline)]
    pub status: CommandState,
    /// Refusal code, stable.
    pub code: Option<String>,
    /// Why it was refused, for people.
    pub reason: Option<String>,
    /// Version of the order after the command.
    pub version: Option<i64>,
    /// Where its last event stands in the events topic.
    #[schema(schema_with = position_schema)]
    pub position: Option<Position>,
    pub correlation_id: Option<String>,
    /// RFC 3339, UTC.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub decided_at: Option<String>,
}

fn position_schema() -> utoipa::openapi::schema::Schema {
    use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
    let integer = || ObjectBuilder::new().schema_type(Type::Integer);
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .property("partition", integer())
        .property("seq", integer())
        .required("partition")
        .required("seq")
        .into()
}

impl CommandStatus {
    /// A command of which no outcome is known.
    pub fn pending(command_id: Uuid, order_id: Option<Uuid>) -> Self {
        Self {
            command_id,
            order_id,
            status: CommandState::Pending,
            code: None,
            reason: None,
            version: None,
            position: None,
            correlation_id: None,
            decided_at: None,
        }
    }
}

impl From<&Outcome> for CommandStatus {
    fn from(outcome: &Outcome) -> Self {
        Self {
            command_id: outcome.command_id,
            order_id: outcome.stream(),
            status: if outcome.accepted { CommandState::Accepted } else { CommandState::Refused },
            code: outcome.code.clone(),
            reason: outcome.reason.clone(),
            version: outcome.version,
            position: position(outcome),
            correlation_id: Some(outcome.correlation_id.clone()),
            decided_at: Some(outcome.decided_at.to_string()),
        }
    }
}

fn position(outcome: &Outcome) -> Option<Position> {
    outcome.seq.map(|seq| Position { partition: outcome.partition, seq })
}

/// Which command is answered.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub order_id: Uuid,
    pub command_id: Uuid,
    /// Other orders may have a command of this id.
    pub id_is_shared: bool,
}

/// Where the state of a command id is told, of one order: the order's id goes behind it.
pub fn status_of_order(command_id: Uuid) -> String {
    format!("/api/commands/{command_id}?orderId=")
}

/// The answer to a command; `waited` is the preference that was applied, seconds.
pub fn respond(target: Target, submitted: &Submitted, waited: Option<u64>) -> Response {
    let Target { order_id, command_id, id_is_shared } = target;
    let mut response = match submitted {
        Submitted::Accepted { correlation_id } => {
            let body = CommandAccepted { order_id, command_id, correlation_id: correlation_id.clone() };
            let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
            let location = match id_is_shared {
                true => format!("{}{order_id}", status_of_order(command_id)),
                false => format!("/api/commands/{command_id}"),
            };
            put(&mut response, LOCATION, &location);
            response
        }
        Submitted::Decided(outcome) => {
            let mut response = (StatusCode::CREATED, Json(CommandStatus::from(outcome.as_ref()))).into_response();
            put(&mut response, LOCATION, &format!("/api/orders/{order_id}"));
            put_version(&mut response, outcome);
            response
        }
    };
    if let Some(seconds) = waited {
        put(&mut response, HeaderName::from_static("preference-applied"), &format!("wait={seconds}"));
    }
    response
}

/// `ETag` and `Consistency-Token` of a decided command.
pub fn put_version(response: &mut Response, outcome: &Outcome) {
    if let Some(version) = outcome.version {
        put(response, ETAG, &format!("\"{version}\""));
    }
    if let Some(position) = position(outcome) {
        put(response, CONSISTENCY_TOKEN, &consistency_token(position));
    }
}

/// Sets a header whose text is ours.
pub fn put(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
