//! The HTTP routes of a plain context: a line a command, and one for what its table says of a stream.
//!
//! A body is the command without what its route tells; it is read by the rules of the commands topic. How a command
//! travels is the API's business, whether it is allowed the aggregate's.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::header::{ETAG, LOCATION, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde_json::{Map, Value, json};
use utoipa::IntoParams;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::openapi::{KnownFormat, RefOr, Required, ResponseBuilder, SchemaFormat, Type};
use uuid::Uuid;

use super::{Plain, PlainContext, shapes};
use crate::api::problem::{INVALID_COMMAND, INVALID_JSON, INVALID_REQUEST};
use crate::api::{
    Api, CONSISTENCY_TOKEN, CommandHeaders, CommandQuery, Envelope, Id, JsonBody, OpenApiRouter, PathOf, Problem,
    QueryOf, ReadHeaders, Submission, Submitted, consistency_token,
};
use crate::engine::{Aggregate, BoundedContext, Position, destination_partition};
use crate::store::commands::Outcome;

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
    /// `GET /api/NAME/commands/{commandId}` alone: what became of a command.
    pub fn new() -> Self {
        let routes = Self { router: OpenApiRouter::new(), context: PhantomData };
        let path = format!("/api/{}/commands/{{commandId}}", P::NAME);
        let mut operation =
            operation(&format!("{}_command", P::NAME), "Whether a command is pending, accepted or refused.")
                .parameter(id_parameter("commandId"));
        operation = operation.parameter(
            ParameterBuilder::from(id_parameter(P::STREAM_ID_FIELD))
                .parameter_in(ParameterIn::Query)
                .required(Required::False),
        );
        let operation = operation
            .response("200", ResponseBuilder::new().description("Its state").content("application/json", object()));
        routes.route(&path, HttpMethod::Get, operation, get(command_status::<P>))
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
                            envelope: Envelope,
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
        let mut operation = operation(&format!("{}_{table}", P::NAME), "Reads the state of a stream.")
            .parameter(id_parameter(P::STREAM_ID_FIELD));
        operation = ReadHeaders::into_params(|| None).into_iter().fold(operation, OperationBuilder::parameter);
        let found = ResponseBuilder::new().description("Its state; `ETag` is its version");
        operation = operation
            .response("200", found.content("application/json", object()))
            .response("404", ResponseBuilder::new().description("No such stream is visible (yet)"));
        let projection: &'static str = Box::leak(table.replace('_', "-").into_boxed_str());
        let handler = async move |State(api): State<Arc<Api>>, PathOf(Id(stream)): PathOf<Id>, headers: HeaderMap| {
            state::<P>(&api, (table, projection), stream, &headers).await
        };
        self.route(path, HttpMethod::Get, operation, get(handler))
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
    envelope: Envelope,
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
    if id_is_given && envelope.key.is_some() {
        return Err(Problem::new(INVALID_REQUEST, "commandId and Idempotency-Key say the same: send one of them"));
    }
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
    if !id_is_given {
        meta.command_id = envelope.command_id(meta.stream_id);
    }
    match (envelope.expected_version, meta.expected_version) {
        (Some(header), Some(field)) if header != field => {
            return Err(Problem::new(INVALID_REQUEST, "If-Match and expectedVersion name two versions"));
        }
        (header, field) => meta.expected_version = header.or(field),
    }
    let (command_id, stream_id) = (meta.command_id, meta.stream_id);
    fields.insert("commandId".into(), json!(command_id));
    fields.insert(P::STREAM_ID_FIELD.into(), json!(stream_id));
    fields.insert("expectedVersion".into(), json!(meta.expected_version));
    let default_wait = waits.then(|| api.sync_wait());
    let value = Value::from(fields).to_string();
    let submission = Submission {
        command_id,
        stream_id,
        value: value.as_bytes(),
        fingerprint: command.fingerprint::<Plain<P>>(),
        repeatable: id_is_given || envelope.key.is_some(),
        wait: envelope.wait.or(default_wait).filter(|wait| *wait > Duration::ZERO),
    };
    let submitted = api.submit(&envelope, submission).await?;
    let collection = path.split("/{").next().unwrap_or(path);
    let mut response = answer::<P>(collection, (command_id, stream_id), &submitted);
    if let Some(wait) = envelope.wait {
        put(&mut response, HeaderName::from_static("preference-applied"), &format!("wait={}", wait.as_secs()));
    }
    Ok(response)
}

fn answer<P: PlainContext>(collection: &str, (command_id, stream_id): (Uuid, Uuid), submitted: &Submitted) -> Response {
    match submitted {
        Submitted::Accepted { correlation_id } => {
            let mut body = json!({"commandId": command_id, "correlationId": correlation_id, "status": "pending"});
            body[P::STREAM_ID_FIELD] = json!(stream_id);
            let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
            let field = P::STREAM_ID_FIELD;
            put(&mut response, LOCATION, &format!("/api/{}/commands/{command_id}?{field}={stream_id}", P::NAME));
            response
        }
        Submitted::Decided(outcome) => {
            let mut response = (StatusCode::CREATED, Json(outcome.to_json(P::STREAM_ID_FIELD))).into_response();
            put(&mut response, LOCATION, &format!("{collection}/{stream_id}"));
            put_version(&mut response, outcome);
            response
        }
    }
}

async fn command_status<P: PlainContext>(
    State(api): State<Arc<Api>>,
    PathOf(Id(command_id)): PathOf<Id>,
    QueryOf(query): QueryOf<HashMap<String, Id>>,
) -> Result<Response, Problem> {
    if let Some(unknown) = query.keys().find(|name| *name != P::STREAM_ID_FIELD) {
        return Err(Problem::new(
            INVALID_REQUEST,
            format!("query: {unknown} is no parameter; {} is", P::STREAM_ID_FIELD),
        ));
    }
    let stream = query.get(P::STREAM_ID_FIELD).map(|Id(stream)| *stream);
    let choice = format!("/api/{}/commands/{command_id}?{}=", P::NAME, P::STREAM_ID_FIELD);
    let outcome = match stream {
        Some(stream) => api.decided(command_id, stream).await?,
        None => api.decided_somewhere(command_id, &choice).await?,
    };
    let Some(outcome) = outcome else {
        let mut body = json!({"commandId": command_id, "status": "pending"});
        body[P::STREAM_ID_FIELD] = json!(stream);
        let mut response = Json(body).into_response();
        put(&mut response, RETRY_AFTER, "1");
        return Ok(response);
    };
    let mut response = Json(outcome.to_json(P::STREAM_ID_FIELD)).into_response();
    put_version(&mut response, &outcome);
    Ok(response)
}

async fn state<P: PlainContext>(
    api: &Api,
    (table, projection): (&str, &'static str),
    stream: Uuid,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let read = api.begin_read(headers, projection).await?;
    let sql = format!("select version, state, updated_at from read.{table} where stream_id = $1");
    let statement = read.client.prepare_cached(&sql).await?;
    let partition = destination_partition(stream, api.settings.topics.event_partitions);
    let row = async { read.client.query_opt(&statement, &[&stream]).await.map_err(Problem::from) };
    let (as_of, row) = futures_util::try_join!(read.as_of(Some(partition)), row)?;
    let mut response = match row {
        None => read.missing(Some(partition), format!("nothing of {stream} is visible")).into_response(),
        Some(row) => {
            let (version, mut body): (i64, Value) = (row.get(0), row.get(1));
            body[P::STREAM_ID_FIELD] = json!(stream);
            body["version"] = json!(version);
            body["updatedAt"] = json!(row.get::<_, jiff::Timestamp>(2));
            let mut response = Json(body).into_response();
            put(&mut response, ETAG, &format!("\"{version}\""));
            response
        }
    };
    read.stamp(&as_of, &mut response);
    Ok(response)
}

fn put_version(response: &mut Response, outcome: &Outcome) {
    if let Some(version) = outcome.version {
        put(response, ETAG, &format!("\"{version}\""));
    }
    if let Some(seq) = outcome.seq {
        let token = consistency_token(Position { partition: outcome.partition, seq });
        put(response, CONSISTENCY_TOKEN, &token);
    }
}

fn put(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
