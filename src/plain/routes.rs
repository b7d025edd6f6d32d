//! The HTTP routes of a plain context: a line a command, and one for what a table says of its streams.
//!
//! A body is the command without what its route tells; it is read by the rules of the commands topic. How a command
//! travels is the API's business, whether it is allowed the aggregate's.

use std::marker::PhantomData;
use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use serde_json::{Map, Value, json};
use utoipa::IntoParams;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::openapi::{KnownFormat, RefOr, Required, ResponseBuilder, SchemaFormat, Type};
use uuid::Uuid;

use super::reads::{self, ListQuery};
use super::{Plain, PlainContext, history_table, shapes};
use crate::api::problem::{INVALID_COMMAND, INVALID_JSON};
use crate::api::{
    Api, CommandHeaders, CommandQuery, FollowHeaders, HistoryQuery, Id, JsonBody, OpenApiRouter, PathOf, Problem,
    QueryOf, ReadHeaders, RequestEnvelope, Submission,
};
use crate::engine::{Aggregate, BoundedContext};

/// The routes of `P`, built line by line; [`Self::done`] is what [`crate::app::Context::routes`] takes.
pub struct Routes<P> {
    router: OpenApiRouter<Arc<Api>>,
    context: PhantomData<P>,
}

impl<P: PlainContext> Default for Routes<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: PlainContext> Routes<P> {
    /// None yet.
    pub fn new() -> Self {
        Self { router: OpenApiRouter::new(), context: PhantomData }
    }

    /// `POST path` and `POST path/sync` take the command that the variant `name` is, as its fields. A path that ends in
    /// no id opens a stream; in others `{STREAM_ID_FIELD}` names it.
    ///
    /// # Panics
    /// No variant has that name: an error of the program, found as it starts.
    #[must_use]
    pub fn command(self, path: &'static str, name: &'static str) -> Self {
        let shape = shapes::of_variant::<<P::Aggregate as Aggregate>::Command>(name)
            .unwrap_or_else(|| panic!("{path}: no command of {} is named {name}", P::NAME));
        let summary = shape["description"].as_str().unwrap_or(name).to_owned();
        let content = ContentBuilder::new().schema(Some(body_schema::<P>(shape))).build();
        let body =
            RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True)).build();
        let documented = |id: String, says: [(&str, &str); 2]| {
            let mut operation = operation(&id, &summary).request_body(Some(body.clone()));
            for field in path.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
                operation = operation.parameter(id_parameter(field));
            }
            let shared = CommandQuery::into_params(|| None).into_iter().chain(CommandHeaders::into_params(|| None));
            operation = shared.fold(operation, OperationBuilder::parameter);
            for (status, text) in says {
                let response = ResponseBuilder::new().description(text).content("application/json", object());
                operation = operation.response(status, response);
            }
            [
                ("409", "Refused; see `code`"),
                ("412", "`If-Match` names another version"),
                ("422", "The command is invalid"),
            ]
            .into_iter()
            .fold(operation, |operation, (status, text)| {
                operation.response(status, ResponseBuilder::new().description(text))
            })
        };
        let takes = |waits: bool| {
            post(
                async move |State(api): State<Arc<Api>>,
                            Addressed(stream),
                            envelope: RequestEnvelope,
                            JsonBody(body): JsonBody| {
                    send::<P>(&api, envelope, (path, name), stream, &body, waits).await
                },
            )
        };
        let id = format!("{}_{name}", P::NAME);
        let held = ("202", "Kafka holds it; `Location` tells its state");
        let operation = documented(id.clone(), [held, ("201", "Decided within the wait that `Prefer` asked for")]);
        let synced = documented(format!("{id}_sync"), [held, ("201", "Decided")]);
        self.route(path, HttpMethod::Post, operation, takes(false)).route(
            &format!("{path}/sync"),
            HttpMethod::Post,
            synced,
            takes(true),
        )
    }

    /// `GET path` answers what the [`super::StateTable`] of this name holds of a stream; the path ends in its id.
    #[must_use]
    pub fn state(self, path: &'static str, table: &'static str) -> Self {
        let operation = read::<P>(table, "Reads the state of a stream.", ReadHeaders::into_params(|| None));
        let operation = answered(operation, "application/json", "Its state; `ETag` is its version");
        let projection = projection_of(table);
        let handler = async move |State(api): State<Arc<Api>>, PathOf(Id(stream)): PathOf<Id>, headers: HeaderMap| {
            reads::state(&api, (table, projection), stream, &headers).await
        };
        self.route(path, HttpMethod::Get, operation, get(handler))
    }

    /// `GET path` lists the streams of the [`super::StateTable`] of this name by their ids, in pages.
    #[must_use]
    pub fn list(self, path: &'static str, table: &'static str) -> Self {
        let id = format!("{}_{table}_list", P::NAME);
        let parameters = ListQuery::into_params(|| None).into_iter().chain(ReadHeaders::into_params(|| None));
        let operation = parameters.fold(operation(&id, "Lists states."), OperationBuilder::parameter);
        let page = ResponseBuilder::new().description("A page: `items`, and `nextCursor`, null on the last one");
        let operation = operation.response("200", page.content("application/json", object()));
        let projection = projection_of(table);
        let handler =
            async move |State(api): State<Arc<Api>>, headers: HeaderMap, QueryOf(query): QueryOf<ListQuery>| {
                reads::list(&api, (table, projection), &headers, &query).await
            };
        self.route(path, HttpMethod::Get, operation, get(handler))
    }

    /// `GET path/history` answers what happened to a stream, or its state at `?atVersion=` or `?atTime=`, and
    /// `GET path/events` follows it, both from the [`super::HistoryTable`] of this name; the path ends in its id.
    #[must_use]
    pub fn history(self, path: &'static str, table: &'static str) -> Self {
        let of = history_table::history_of::<P>(table, projection_of(table));
        let asked = HistoryQuery::into_params(|| None).into_iter().chain(ReadHeaders::into_params(|| None));
        let told = "Reads what happened to a stream; with a moment, until then and the state that it made.";
        let past = read::<P>(table, told, asked);
        let past = answered(past, "application/json", "`events`, and `state` where a moment was asked for");
        let tells = async move |State(api): State<Arc<Api>>,
                                PathOf(Id(stream)): PathOf<Id>,
                                headers: HeaderMap,
                                QueryOf(query): QueryOf<HistoryQuery>| {
            of.answer(&api, stream, &headers, &query).await
        };
        let asked = FollowHeaders::into_params(|| None).into_iter().chain(ReadHeaders::into_params(|| None));
        let live = read::<P>(&format!("{table}_events"), "Follows a stream: what happened, then what happens.", asked);
        let shown = "A server-sent event each: `id` is the version, `event` the type, `data` as in the history";
        let live = answered(live, "text/event-stream", shown);
        let follows = async move |State(api): State<Arc<Api>>, PathOf(Id(stream)): PathOf<Id>, headers: HeaderMap| {
            of.follow(api, stream, &headers).await
        };
        self.route(&format!("{path}/history"), HttpMethod::Get, past, get(tells)).route(
            &format!("{path}/events"),
            HttpMethod::Get,
            live,
            get(follows),
        )
    }

    /// The routes as an application takes them.
    pub fn done(self) -> OpenApiRouter<Arc<Api>> {
        self.router
    }

    fn route(self, path: &str, method: HttpMethod, told: OperationBuilder, takes: MethodRouter<Arc<Api>>) -> Self {
        let mut paths = Paths::new();
        paths.add_path_operation(path, vec![method], told.build());
        Self { router: self.router.routes((Vec::new(), paths, takes)), ..self }
    }
}

fn operation(id: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new().operation_id(Some(id)).tag(id.split('_').next().unwrap_or(id)).summary(Some(summary))
}

/// A read of one stream.
fn read<P: PlainContext>(
    what: &str,
    summary: &str,
    parameters: impl IntoIterator<Item = utoipa::openapi::path::Parameter>,
) -> OperationBuilder {
    let operation = operation(&format!("{}_{what}", P::NAME), summary).parameter(id_parameter(P::STREAM_ID_FIELD));
    parameters.into_iter().fold(operation, OperationBuilder::parameter)
}

fn answered(operation: OperationBuilder, kind: &str, found: &str) -> OperationBuilder {
    operation
        .response("200", ResponseBuilder::new().description(found).content(kind, object()))
        .response("404", ResponseBuilder::new().description("No such stream is visible (yet), or was then"))
}

/// What keeps a table of ours. Made once for the life of the program.
fn projection_of(table: &str) -> &'static str {
    Box::leak(table.replace('_', "-").into_boxed_str())
}

fn id_parameter(name: &str) -> utoipa::openapi::path::Parameter {
    let uuid =
        ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
    let path = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
    path.schema(Some(uuid)).build()
}

fn object() -> utoipa::openapi::Content {
    ContentBuilder::new().schema(Some(Schema::Object(ObjectBuilder::new().schema_type(Type::Object).build()))).build()
}

/// The fields of a command, and those that every body may have.
fn body_schema<P: PlainContext>(mut shape: Value) -> RefOr<Schema> {
    let id = json!({"type": "string", "format": "uuid"});
    shape["properties"]["commandId"] = id.clone();
    shape["properties"][P::STREAM_ID_FIELD] = id;
    shape["properties"]["expectedVersion"] = json!({"type": "integer", "minimum": 0});
    // A schema that the document cannot say is told as any object.
    serde_json::from_value(shape).unwrap_or_default()
}

/// The stream that the path names, where it names one.
struct Addressed(Option<Uuid>);

impl<S: Send + Sync> FromRequestParts<S> for Addressed {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let named =
            RawPathParams::from_request_parts(parts, state).await.is_ok_and(|found| found.iter().next().is_some());
        if !named {
            return Ok(Self(None));
        }
        let PathOf(Id(stream)) = PathOf::<Id>::from_request_parts(parts, state).await?;
        Ok(Self(Some(stream)))
    }
}

async fn send<P: PlainContext>(
    api: &Api,
    envelope: RequestEnvelope,
    (path, name): (&str, &str),
    stream: Option<Uuid>,
    body: &[u8],
    waits: bool,
) -> Result<Response, Problem> {
    let mut fields = match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return Err(Problem::new(INVALID_COMMAND, "the body is no JSON object")),
        Err(error) => return Err(Problem::new(INVALID_JSON, error.to_string())),
    };
    if fields.get("type").is_some_and(|given| !given.is_null() && given != name) {
        return Err(Problem::new(INVALID_COMMAND, format!("/type must be {name} here")));
    }
    fields.insert("type".into(), name.into());
    let is_given = |fields: &Map<String, Value>, field: &str| fields.get(field).is_some_and(|given| !given.is_null());
    if !is_given(&fields, P::STREAM_ID_FIELD) {
        let id = stream.unwrap_or_else(|| envelope.new_stream_id());
        fields.insert(P::STREAM_ID_FIELD.into(), json!(id));
    }
    let id_is_given = is_given(&fields, "commandId");
    let text = Value::from(fields.clone()).to_string();
    let mut command = Plain::<P>::parse_command(text.as_bytes(), Uuid::now_v7())
        .map_err(|invalid| Problem::new(INVALID_COMMAND, invalid.reason))?;
    let meta = &mut command.meta;
    if let Some(stream) = stream.filter(|stream| *stream != meta.stream_id) {
        return Err(Problem::new(
            INVALID_COMMAND,
            format!("/{} must be that of the path, {stream}", P::STREAM_ID_FIELD),
        ));
    }
    envelope.complete(meta, id_is_given)?;
    let (command_id, stream_id) = (meta.command_id, meta.stream_id);
    fields.insert("commandId".into(), json!(command_id));
    fields.insert(P::STREAM_ID_FIELD.into(), json!(stream_id));
    fields.insert("expectedVersion".into(), json!(meta.expected_version));
    let value = Value::from(fields).to_string();
    let submission = Submission {
        command_id,
        stream_id,
        value: value.as_bytes(),
        fingerprint: command.fingerprint::<Plain<P>>(),
        repeatable: id_is_given || envelope.key.is_some(),
        wait: None,
    };
    api.answer(&envelope, submission, (path.split("/{").next().unwrap_or(path), waits)).await
}
