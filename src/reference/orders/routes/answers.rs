//! The answers to command requests as the document shows them. The API's `answers` writes them.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use throughline::engine::Position;

/// A command that Kafka holds.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandAccepted {
    pub order_id: Uuid,
    pub command_id: Uuid,
    pub correlation_id: String,
    /// Always `pending`.
    #[schema(pattern = "^pending$")]
    pub status: String,
}

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is looked at")]
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
