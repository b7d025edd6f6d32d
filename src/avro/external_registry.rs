//! Schema ids from an external Confluent-compatible registry, when one is configured.
//!
//! That registry is then the authority on ids; `throughline.schemas` keeps them, so that a start
//! needs the registry only when there is something new to register. Encoding and decoding never
//! ask it.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio_postgres::GenericClient;

use super::catalogue::Catalogue;
use super::ids::{self, SchemaIds, SchemaIdsError};

/// One request to the registry, at most.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer is an id or a reason; what is larger comes from something else.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The external registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ExternalRegistryError {
    /// The address cannot be used.
    #[error("schema_registry_url is not a usable http(s) address: {0}")]
    Address(String),
    /// No answer, and ids that are not known yet are needed.
    #[error(
        "the schema registry at {registry} did not answer ({reason}), and schemas of this program are not registered \
         yet; start it and try again, or check schema_registry_url"
    )]
    Unreachable { registry: String, reason: String },
    /// It answered no.
    #[error("the schema registry at {registry} refused {subject} version {version}: {reason}")]
    Refused { registry: String, subject: String, version: i16, reason: String },
    /// This store began with other ids.
    #[error(
        "the schema registry at {registry} gives {subject} version {version} the id {theirs}, but events of this store \
         carry {ours}: a store keeps to the registry it began with. Unset schema_registry_url, or start a new store"
    )]
    OtherIds { registry: String, subject: String, version: i16, theirs: i32, ours: i32 },
    /// Bytes with that id could mean either.
    #[error(
        "the schema registry at {registry} gives {subject} version {version} the id {id}, which is that of {other} \
         already: an id stands for one schema. Check schema_registry_url"
    )]
    SameId { registry: String, subject: String, version: i16, id: i32, other: String },
    /// The ids could not be kept or loaded.
    #[error(transparent)]
    Ids(#[from] SchemaIdsError),
}

/// A client of one registry. User name and password may stand in the address.
#[derive(Debug, Clone)]
pub struct ExternalRegistry {
    http: reqwest::Client,
    address: reqwest::Url,
}

/// The subject, the schema and the id that it got.
type Given<'a> = (String, &'a super::CataloguedSchema, i32);

#[derive(Deserialize)]
struct Registered {
    id: i32,
}

enum Failure {
    Unreachable(String),
    Refused(String),
}

impl ExternalRegistry {
    /// Prepares a client; nothing is asked yet.
    pub fn new(address: &str) -> Result<Self, ExternalRegistryError> {
        let unusable = |reason: String| ExternalRegistryError::Address(reason);
        let mut address = reqwest::Url::parse(address).map_err(|error| unusable(error.to_string()))?;
        if !["http", "https"].contains(&address.scheme()) {
            return Err(unusable(format!("the scheme is {}", address.scheme())));
        }
        if !address.path().ends_with('/') {
            // Or joining would replace the last part of a path.
            address.set_path(&format!("{}/", address.path()));
        }
        // An error means that the process has a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http =
            reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build().map_err(|error| unusable(error.to_string()))?;
        Ok(Self { http, address })
    }

    /// Registers what is new, keeps the ids in the database and loads them. A registry that is away or
    /// refuses does not matter when the database knows every id already; one with other ids does.
    pub async fn register(
        &self,
        client: &impl GenericClient,
        catalogue: &Catalogue,
    ) -> Result<SchemaIds, ExternalRegistryError> {
        let kept = match ids::load(client, catalogue).await {
            Ok(ids) => Some(ids),
            Err(SchemaIdsError::Unregistered { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let mut given = Vec::new();
        for one in catalogue.schemas() {
            let subject = catalogue.subject(&one.event_type);
            match self.post(&subject, &one.definition).await {
                Ok(id) => given.push((subject, one, id)),
                Err(failure) => {
                    let (registry, version) = (self.name(), one.version);
                    return match (kept, failure) {
                        // A password that ran out or a gateway without its registry is as good as away.
                        (Some(ids), Failure::Unreachable(reason) | Failure::Refused(reason)) => {
                            tracing::warn!(registry, reason, "the schema registry gave no ids; using those kept");
                            Ok(ids)
                        }
                        (None, Failure::Unreachable(reason)) => {
                            Err(ExternalRegistryError::Unreachable { registry, reason })
                        }
                        (None, Failure::Refused(reason)) => {
                            Err(ExternalRegistryError::Refused { registry, subject, version, reason })
                        }
                    };
                }
            }
        }
        self.check(client, &given).await?;
        keep(client, &given).await?;
        Ok(ids::load(client, catalogue).await?)
    }

    /// Refuses ids other than those kept, and one that stands for something else, here or in the store.
    async fn check(&self, client: &impl GenericClient, given: &[Given<'_>]) -> Result<(), ExternalRegistryError> {
        let (subjects, ids): (Vec<_>, Vec<_>) = given.iter().map(|(subject, _, id)| (subject.as_str(), *id)).unzip();
        let statement = "select id, subject, version from throughline.schemas where id = any($1) or subject = any($2)";
        let rows = client
            .query(statement, &[&ids, &subjects])
            .await
            .map_err(|source| SchemaIdsError::Database { step: "look for ids that are taken", source })?;
        let mut kept: HashMap<(String, i32), i32> = HashMap::new();
        let mut holders: HashMap<i32, (String, i32)> = HashMap::new();
        for row in &rows {
            let (id, schema): (i32, (String, i32)) = (row.get(0), (row.get(1), row.get(2)));
            holders.insert(id, schema.clone());
            kept.insert(schema, id);
        }
        for (subject, one, id) in given {
            let (id, version) = (*id, one.version);
            let schema = (subject.clone(), i32::from(version));
            let (registry, subject) = (self.name(), subject.clone());
            if let Some(ours) = kept.get(&schema).copied().filter(|ours| *ours != id) {
                return Err(ExternalRegistryError::OtherIds { registry, subject, version, theirs: id, ours });
            }
            if let Some(other) = holders.insert(id, schema.clone()).filter(|other| *other != schema) {
                let other = format!("{} version {}", other.0, other.1);
                return Err(ExternalRegistryError::SameId { registry, subject, version, id, other });
            }
        }
        Ok(())
    }

    async fn post(&self, subject: &str, definition: &str) -> Result<i32, Failure> {
        let unreachable = |error: reqwest::Error| Failure::Unreachable(chain(&error.without_url()));
        // A subject of ours holds letters, dots and hyphens only: nothing to escape.
        let url = self
            .address
            .join(&format!("subjects/{subject}/versions"))
            .map_err(|error| Failure::Refused(error.to_string()))?;
        let mut answer = self.http.post(url).json(&json!({"schema": definition})).send().await.map_err(unreachable)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Refused(format!("{status} with more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        let text: String = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(300).collect();
        if status.is_server_error() {
            return Err(Failure::Unreachable(format!("it answered {status} {text}")));
        }
        match serde_json::from_slice(&body) {
            Ok(Registered { id }) if status.is_success() && id > 0 => Ok(id),
            Ok(Registered { id }) if status.is_success() => {
                Err(Failure::Refused(format!("the id {id} is not positive")))
            }
            _ => Err(Failure::Refused(format!("{status} {text}"))),
        }
    }

    /// The address without credentials, for messages.
    fn name(&self) -> String {
        format!("{}{}", self.address.origin().ascii_serialization(), self.address.path())
    }
}

/// An error and its causes: the first of them says no more than that the request failed.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Keeps ids that were given elsewhere. A row that is there stays: its id is in stored bytes.
async fn keep(client: &impl GenericClient, given: &[Given<'_>]) -> Result<(), SchemaIdsError> {
    let ids: Vec<i32> = given.iter().map(|(_, _, id)| *id).collect();
    let subjects: Vec<&str> = given.iter().map(|(subject, _, _)| subject.as_str()).collect();
    let versions: Vec<i32> = given.iter().map(|(_, one, _)| i32::from(one.version)).collect();
    let types: Vec<&str> = given.iter().map(|(_, one, _)| one.event_type.as_str()).collect();
    let fingerprints: Vec<&str> = given.iter().map(|(_, one, _)| one.fingerprint.as_str()).collect();
    let definitions: Vec<&str> = given.iter().map(|(_, one, _)| one.definition.as_str()).collect();
    let statement = "
        insert into throughline.schemas (id, subject, version, event_type, fingerprint, definition)
        overriding system value
        select * from unnest($1::int[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[])
        on conflict (subject, version) do nothing";
    client
        .execute(statement, &[&ids, &subjects, &versions, &types, &fingerprints, &definitions])
        .await
        .map(drop)
        .map_err(|source| SchemaIdsError::Database { step: "keep the external registry's ids", source })
}
