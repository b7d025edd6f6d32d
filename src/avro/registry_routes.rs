//! The registry's read API over HTTP: paths, content type and status codes as Confluent's.
//! What is answered comes from `registry`; anything that would write is refused as read-only.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::registry::{self, AskedVersion, RegistryError};
use crate::store::{Database, Pooled};

/// Content type of every answer.
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A refusal of the framework is a line.
const REFUSAL_BYTES_MAX: usize = 4 * 1024;

/// The routes, to be merged at the root: stock clients take the base address as the registry's URL.
pub fn registry_routes(database: Database) -> Router {
    let subjects = Router::new()
        .route("/", get(subjects))
        .route("/{subject}", post(lookup))
        .route("/{subject}/versions", get(versions).post(read_only))
        .route("/{subject}/versions/{version}", get(subject_version))
        .route("/{subject}/versions/{version}/schema", get(definition));
    let schemas = Router::new()
        .route("/ids/{id}", get(schema_by_id))
        .route("/ids/{id}/schema", get(definition_by_id))
        .route("/ids/{id}/versions", get(versions_of_id))
        .route("/ids/{id}/subjects", get(subjects_of_id))
        .route("/types", get(async || answer(&["AVRO"])));
    let config =
        Router::new().route("/", get(config).put(read_only)).route("/{subject}", get(config_of).put(read_only));
    let mode = Router::new().route("/", get(mode).put(read_only)).route("/{subject}", get(mode).put(read_only));
    // What is under none of their paths is refused in the registry's shape as well.
    let ours = |routes: Router<Database>| {
        routes.fallback(async || RegistryError::NoPath).method_not_allowed_fallback(async || RegistryError::NoMethod)
    };
    Router::new()
        .nest("/subjects", ours(subjects))
        .nest("/schemas", ours(schemas))
        .nest("/config", ours(config))
        .nest("/mode", ours(mode))
        .nest("/compatibility", ours(Router::new()))
        .route_layer(map_response(in_our_shape))
        .with_state(database)
}

/// What the framework refuses by itself, such as a path that is not UTF-8 or too large a body, it tells as text.
async fn in_our_shape(response: Response) -> Response {
    let status = response.status();
    let is_ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|found| found == CONTENT_TYPE);
    if is_ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let told = axum::body::to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
    refusal(status, i32::from(status.as_u16()), &format!("HTTP {status}: {}", String::from_utf8_lossy(&told)))
}

type Answer = Result<Response, RegistryError>;

fn answer(body: &impl Serialize) -> Response {
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

async fn client(database: &Database) -> Result<Pooled, RegistryError> {
    database.client().await.map_err(|error| RegistryError::Unavailable(error.to_string()))
}

/// What a list of subjects may be asked for.
#[derive(Deserialize)]
struct SubjectsAsked {
    #[serde(default, rename = "subjectPrefix")]
    prefix: String,
}

async fn subjects(State(database): State<Database>, Query(asked): Query<SubjectsAsked>) -> Answer {
    // How Confluent's clients name all contexts; we have the default one.
    let prefix = asked.prefix.strip_prefix(":*:").unwrap_or(&asked.prefix);
    Ok(answer(&registry::subjects(&**client(&database).await?, prefix).await?))
}

async fn versions(State(database): State<Database>, Path(subject): Path<String>) -> Answer {
    Ok(answer(&registry::versions(&**client(&database).await?, &subject).await?))
}

async fn subject_version(State(database): State<Database>, Path((subject, version)): Path<(String, String)>) -> Answer {
    let version = AskedVersion::parse(&version)?;
    Ok(answer(&registry::subject_version(&**client(&database).await?, &subject, version).await?))
}

async fn definition(State(database): State<Database>, Path((subject, version)): Path<(String, String)>) -> Answer {
    let version = AskedVersion::parse(&version)?;
    Ok(raw(registry::subject_version(&**client(&database).await?, &subject, version).await?.schema))
}

/// Takes the body whatever its content type says, and refuses one that is amiss in Confluent's shape.
async fn lookup(State(database): State<Database>, Path(subject): Path<String>, body: Bytes) -> Answer {
    let body: Value = serde_json::from_slice(&body).map_err(|error| RegistryError::InvalidBody(error.to_string()))?;
    let definition = body.get("schema").and_then(Value::as_str);
    let definition = definition.ok_or_else(|| RegistryError::InvalidSchema("there is none in the request".into()))?;
    Ok(answer(&registry::lookup(&**client(&database).await?, &subject, definition).await?))
}

async fn schema_by_id(State(database): State<Database>, Path(id): Path<String>) -> Answer {
    Ok(answer(&registry::schema_by_id(&**client(&database).await?, schema_id(&id)?).await?))
}

async fn definition_by_id(State(database): State<Database>, Path(id): Path<String>) -> Answer {
    Ok(raw(registry::schema_by_id(&**client(&database).await?, schema_id(&id)?).await?.schema))
}

async fn versions_of_id(State(database): State<Database>, Path(id): Path<String>) -> Answer {
    Ok(answer(&registry::versions_of_id(&**client(&database).await?, schema_id(&id)?).await?))
}

async fn subjects_of_id(State(database): State<Database>, Path(id): Path<String>) -> Answer {
    let versions = registry::versions_of_id(&**client(&database).await?, schema_id(&id)?).await?;
    Ok(answer(&versions.iter().map(|one| &one.subject).collect::<Vec<_>>()))
}

async fn config() -> Response {
    answer(&json!({"compatibilityLevel": registry::COMPATIBILITY}))
}

/// What the configuration of a subject may be asked for.
#[derive(Deserialize)]
struct ConfigAsked {
    #[serde(default, rename = "defaultToGlobal")]
    default_to_global: bool,
}

async fn config_of(
    State(database): State<Database>,
    Path(subject): Path<String>,
    Query(asked): Query<ConfigAsked>,
) -> Answer {
    if !asked.default_to_global {
        registry::versions(&**client(&database).await?, &subject).await?;
    }
    Ok(config().await)
}

async fn mode() -> Response {
    answer(&json!({"mode": "READONLY"}))
}

async fn read_only() -> RegistryError {
    RegistryError::ReadOnly
}

/// What is no number is no schema's id.
fn schema_id(text: &str) -> Result<i32, RegistryError> {
    text.parse().map_err(|_| RegistryError::SchemaNotFound(text.chars().take(64).collect()))
}

/// A definition by itself, as the text it is.
fn raw(definition: String) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], definition).into_response()
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        if self.status() >= 500 {
            tracing::warn!(error = %self, "the schema registry API could not answer");
        }
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        refusal(status, self.code(), &self.message())
    }
}

fn refusal(status: StatusCode, code: i32, message: &str) -> Response {
    let mut response = answer(&json!({"error_code": code, "message": message}));
    *response.status_mut() = status;
    response
}
