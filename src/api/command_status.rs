//! `GET /api/commands/{commandId}`: what became of a command, one route for all contexts of an application.
//!
//! A command id counts in one stream of one context. The query parameter's name says which context is meant, its value
//! which stream; without one all are asked, and an answer is given where only one has one. PostgreSQL's outcome rows
//! are the authority. Knows no context but by what it calls its streams' ids.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use futures_util::future::try_join_all;
use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, Paths};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr, Required, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::Api;
use super::answers::{decided, pending, status_shape};
use super::extract::{Id, PathOf, QueryOf};
use super::problem::{COMMAND_ID_AMBIGUOUS, INVALID_REQUEST, PROBLEM_JSON, Problem};
use crate::engine::ids::parse_id;
use crate::store::commands::StoredOutcome;

/// Streams that are listed where a command id means several.
const CHOICES_MAX: usize = 100;

/// The route over the contexts of an application.
pub(super) fn routes(contexts: &[Arc<Api>]) -> OpenApiRouter {
    let fields = || contexts.iter().map(|api| api.stream_id_field);
    let uuid = || serde_json::from_value::<RefOr<Schema>>(json!({"type": "string", "format": "uuid"})).ok();
    let id = ParameterBuilder::new().name("commandId").parameter_in(ParameterIn::Path).required(Required::True);
    let mut operation = OperationBuilder::new()
        .operation_id(Some("command_status"))
        .tag("commands")
        .summary(Some("Whether a command is pending, accepted or refused."))
        .description(Some(
            "An id that was never sent is pending, too: what is on its way to the processor cannot be told from what \
             was never sent.",
        ))
        .parameter(id.schema(uuid()).description(Some("As answered by the POST")));
    for field in fields() {
        let stream = ParameterBuilder::new().name(field).parameter_in(ParameterIn::Query).required(Required::False);
        let text = "A command id counts in one stream: names the one that is meant. At most one such parameter.";
        operation = operation.parameter(stream.schema(uuid()).description(Some(text)));
    }
    let found = ContentBuilder::new().schema(serde_json::from_value::<RefOr<Schema>>(status_shape(fields())).ok());
    let found = ResponseBuilder::new()
        .description("Its state; `Retry-After` while pending")
        .content("application/json", found.build());
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let many = ResponseBuilder::new()
        .description("The id was used for several streams, and none is named: `choices` lists them")
        .content(PROBLEM_JSON, problem);
    let operation = operation.response("200", found).response("409", many);
    let mut paths = Paths::new();
    paths.add_path_operation("/api/commands/{commandId}", vec![HttpMethod::Get], operation.build());
    OpenApiRouter::new().routes((Vec::new(), paths, get(status))).with_state(Arc::from(contexts))
}

async fn status(
    State(contexts): State<Arc<[Arc<Api>]>>,
    PathOf(Id(command_id)): PathOf<Id>,
    QueryOf(query): QueryOf<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let fields = || contexts.iter().map(|api| api.stream_id_field);
    match query.as_slice() {
        [] => match somewhere(&contexts, command_id).await? {
            Some((api, outcome)) => Ok(decided(api, &outcome)),
            None => Ok(pending(command_id, None, fields())),
        },
        [(field, text)] => {
            let Some(api) = contexts.iter().find(|api| api.stream_id_field == field) else {
                let known = fields().collect::<Vec<_>>().join(", ");
                return Err(Problem::new(INVALID_REQUEST, format!("query: {field} is no parameter; there is {known}")));
            };
            let stream_id =
                parse_id(text).map_err(|fault| Problem::new(INVALID_REQUEST, format!("query: {field}: {fault}")))?;
            match api.decided(command_id, stream_id).await? {
                Some(outcome) => Ok(decided(api, &outcome)),
                None => Ok(pending(command_id, Some(stream_id), [api.stream_id_field])),
            }
        }
        _ => Err(Problem::new(INVALID_REQUEST, "query: a command is of one stream, name one")),
    }
}

/// What became of a command id in whatever context and stream, if that is one answer. A record that told no stream
/// answers only where no stream does.
async fn somewhere(contexts: &[Arc<Api>], command_id: Uuid) -> Result<Option<(&Api, StoredOutcome)>, Problem> {
    let looks = contexts.iter().map(async |api| {
        let outcomes = api.decided_anywhere(command_id).await?;
        Ok::<_, Problem>(outcomes.into_iter().map(|outcome| (api.as_ref(), outcome)))
    });
    let mut found: Vec<(&Api, StoredOutcome)> = try_join_all(looks).await?.into_iter().flatten().collect();
    let link = |(api, outcome): &(&Api, StoredOutcome)| Some(api.status_path(command_id, outcome.stream()?));
    let links: BTreeSet<String> = found.iter().filter_map(link).collect();
    if links.len() <= 1 {
        found.sort_by_key(|(_, outcome)| (outcome.stream().is_none(), outcome.decided_at));
        return Ok(found.into_iter().next());
    }
    let many = match links.len() {
        listed @ ..=CHOICES_MAX => listed.to_string(),
        _ => format!("more than {CHOICES_MAX}"),
    };
    let detail = format!("command id {command_id} was used for {many} streams: name the one that is meant");
    let choices = links.into_iter().take(CHOICES_MAX).collect();
    Err(Problem::new(COMMAND_ID_AMBIGUOUS, detail).with_command(command_id).with_choices(choices))
}
