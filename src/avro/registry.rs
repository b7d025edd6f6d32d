//! The read side of a schema registry, answered from `throughline.schemas`: shapes and error codes
//! of the Confluent Schema Registry, so that stock deserializers and Kafka UIs work unchanged.
//!
//! Knows no HTTP framework (`registry_routes` does). Schemas are registered by the program's own
//! files only, never over HTTP.

use serde::Serialize;
use tokio_postgres::{GenericClient, Row};

/// What newer schemas must be able to do; `throughline schema check` enforces it.
pub const COMPATIBILITY: &str = "BACKWARD_TRANSITIVE";

/// Answer of `/subjects/{subject}/versions/{version}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubjectVersion {
    /// `bank-events-acme.bank.Opened`.
    pub subject: String,
    /// From 1, within the subject.
    pub version: i32,
    /// Id in the wire format.
    pub id: i32,
    /// The definition as a JSON text.
    pub schema: String,
}

/// Answer of `/schemas/ids/{id}`. Confluent leaves `schemaType` out where it is Avro.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchemaById {
    /// The definition as a JSON text.
    pub schema: String,
}

/// One element of `/schemas/ids/{id}/versions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionOfId {
    /// The subject.
    pub subject: String,
    /// The version within it.
    pub version: i32,
}

/// Which version of a subject is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedVersion {
    /// This one.
    Exactly(i32),
    /// The newest.
    Latest,
}

impl AskedVersion {
    /// Reads `latest`, `-1` (the same) or a positive number.
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        match text {
            "latest" | "-1" => Ok(Self::Latest),
            number => match number.parse() {
                Ok(version) if version > 0 => Ok(Self::Exactly(version)),
                _ => Err(RegistryError::InvalidVersion(number.chars().take(64).collect())),
            },
        }
    }
}

/// The registry's refusals, with Confluent's codes.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// 40401.
    #[error("Subject '{0}' not found.")]
    SubjectNotFound(String),
    /// 40402.
    #[error("Version {0} not found.")]
    VersionNotFound(i32),
    /// 40403.
    #[error("Schema {0} not found")]
    SchemaNotFound(String),
    /// 400: a text that PostgreSQL cannot hold.
    #[error("The request names U+0000, which is in no subject")]
    InvalidText,
    /// 404: a path that nothing is under.
    #[error("HTTP 404 Not Found")]
    NoPath,
    /// 405.
    #[error("HTTP 405 Method Not Allowed")]
    NoMethod,
    /// 400: a body that is no JSON.
    #[error("The request is not a JSON object: {0}")]
    InvalidBody(String),
    /// 42201.
    #[error("Invalid schema: {0}")]
    InvalidSchema(String),
    /// 42202.
    #[error(
        "The specified version '{0}' is not a valid version id. Allowed values are between [1, 2^31-1] and the string \"latest\""
    )]
    InvalidVersion(String),
    /// 42205: whoever tries to write.
    #[error("This registry is read-only: schemas come from the program's own files; see `throughline schema`")]
    ReadOnly,
    /// 50001.
    #[error("Error in the backend data store: {}", crate::store::describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// 50003: no connection.
    #[error("Error while getting a connection to the backend data store: {0}")]
    Unavailable(String),
}

impl RegistryError {
    /// Confluent's `error_code`.
    pub fn code(&self) -> i32 {
        match self {
            Self::SubjectNotFound(_) => 40401,
            Self::VersionNotFound(_) => 40402,
            Self::SchemaNotFound(_) => 40403,
            Self::NoPath => 404,
            Self::NoMethod => 405,
            Self::InvalidBody(_) | Self::InvalidText => 400,
            Self::InvalidSchema(_) => 42201,
            Self::InvalidVersion(_) => 42202,
            Self::ReadOnly => 42205,
            Self::Database(_) => 50001,
            Self::Unavailable(_) => 50003,
        }
    }

    /// The HTTP status that goes with the code.
    pub fn status(&self) -> u16 {
        match self.code() {
            status @ ..1_000 => status as u16,
            code => (code / 100) as u16,
        }
    }

    /// What the caller is told. Details of the database stay in the log.
    pub fn message(&self) -> String {
        match self {
            Self::Database(_) | Self::Unavailable(_) => "Error in the backend data store".to_owned(),
            other => other.to_string(),
        }
    }
}

/// A schema as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredSchema {
    /// Id in the wire format.
    pub id: i32,
    /// Type without name space.
    pub event_type: String,
    /// From 1.
    pub version: i32,
    /// Lower-case hex, see [`super::catalogue::fingerprint`].
    pub fingerprint: String,
    /// The definition as a JSON text.
    pub definition: String,
}

/// Everything registered under the subjects of a context, its own and other programs' versions.
pub async fn of_context(
    client: &impl GenericClient,
    catalogue: &super::Catalogue,
) -> Result<Vec<RegisteredSchema>, RegistryError> {
    let statement = "
        select id, event_type, version, fingerprint, definition from throughline.schemas
        where starts_with(subject, $1) order by event_type, version";
    let rows = client.query(statement, &[&catalogue.subject_prefix()]).await?;
    let one = |row: &Row| RegisteredSchema {
        id: row.get(0),
        event_type: row.get(1),
        version: row.get(2),
        fingerprint: row.get(3),
        definition: row.get(4),
    };
    Ok(rows.iter().map(one).collect())
}

/// A text that PostgreSQL takes.
fn checked(subject: &str) -> Result<&str, RegistryError> {
    if subject.contains('\0') { Err(RegistryError::InvalidText) } else { Ok(subject) }
}

/// All subjects that begin with `prefix`, by name.
pub async fn subjects(client: &impl GenericClient, prefix: &str) -> Result<Vec<String>, RegistryError> {
    let statement = "select distinct subject from throughline.schemas where starts_with(subject, $1) order by 1";
    let rows = client.query(statement, &[&checked(prefix)?]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The versions of a subject, ascending.
pub async fn versions(client: &impl GenericClient, subject: &str) -> Result<Vec<i32>, RegistryError> {
    let statement = "select version from throughline.schemas where subject = $1 order by 1";
    let rows = client.query(statement, &[&checked(subject)?]).await?;
    if rows.is_empty() {
        return Err(RegistryError::SubjectNotFound(subject.to_owned()));
    }
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// One version of a subject.
pub async fn subject_version(
    client: &impl GenericClient,
    subject: &str,
    version: AskedVersion,
) -> Result<SubjectVersion, RegistryError> {
    let exactly = match version {
        AskedVersion::Exactly(version) => Some(version),
        AskedVersion::Latest => None,
    };
    let statement = "
        select subject, version, id, definition from throughline.schemas
        where subject = $1 and ($2::int is null or version = $2) order by version desc limit 1";
    match (client.query_opt(statement, &[&checked(subject)?, &exactly]).await?, exactly) {
        (Some(row), _) => Ok(subject_version_of(&row)),
        (None, Some(version)) => {
            versions(client, subject).await?;
            Err(RegistryError::VersionNotFound(version))
        }
        (None, None) => Err(RegistryError::SubjectNotFound(subject.to_owned())),
    }
}

/// The version of a subject that has the given definition; white space and documentation aside.
pub async fn lookup(
    client: &impl GenericClient,
    subject: &str,
    definition: &str,
) -> Result<SubjectVersion, RegistryError> {
    let missing = || RegistryError::SchemaNotFound("under this subject".to_owned());
    let fingerprint = super::catalogue::fingerprint(definition).map_err(RegistryError::InvalidSchema)?;
    let statement = "
        select subject, version, id, definition from throughline.schemas
        where subject = $1 and fingerprint = $2 order by version desc limit 1";
    match client.query_opt(statement, &[&checked(subject)?, &fingerprint]).await? {
        Some(row) => Ok(subject_version_of(&row)),
        None => {
            versions(client, subject).await?;
            Err(missing())
        }
    }
}

/// The schema of an id.
pub async fn schema_by_id(client: &impl GenericClient, id: i32) -> Result<SchemaById, RegistryError> {
    let row = client.query_opt("select definition from throughline.schemas where id = $1", &[&id]).await?;
    row.map(|row| SchemaById { schema: row.get(0) }).ok_or_else(|| RegistryError::SchemaNotFound(id.to_string()))
}

/// The subjects and versions that an id stands for; with us, one.
pub async fn versions_of_id(client: &impl GenericClient, id: i32) -> Result<Vec<VersionOfId>, RegistryError> {
    let rows = client.query("select subject, version from throughline.schemas where id = $1", &[&id]).await?;
    if rows.is_empty() {
        return Err(RegistryError::SchemaNotFound(id.to_string()));
    }
    Ok(rows.iter().map(|row| VersionOfId { subject: row.get(0), version: row.get(1) }).collect())
}

fn subject_version_of(row: &Row) -> SubjectVersion {
    SubjectVersion { subject: row.get(0), version: row.get(1), id: row.get(2), schema: row.get(3) }
}
