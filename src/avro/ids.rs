//! Which schema id stands for which (type, version). The table `throughline.schemas` is the
//! authority; this is its image in memory, taken at start.

use std::collections::HashMap;

use tokio_postgres::GenericClient;

use super::catalogue::Catalogue;
use super::upcast::Upcasters;
use crate::store::describe;

/// Schema ids of one context, both ways. May hold versions that this program does not know.
#[derive(Debug, Clone, Default)]
pub struct SchemaIds {
    by_id: HashMap<i32, (String, i16)>,
    by_version: HashMap<(String, i16), i32>,
}

/// The schema ids could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SchemaIdsError {
    /// PostgreSQL refused a statement.
    #[error("schema ids: {step}: {}", describe(.source))]
    Database { step: &'static str, source: tokio_postgres::Error },
    /// Not registered.
    #[error(
        "schema {subject} version {version} is not registered; run `throughline db apply` with this version of the program"
    )]
    Unregistered { subject: String, version: i16 },
    /// Not registered, in a store whose ids an external registry gave.
    #[error(
        "schema {subject} version {version} is not registered, and this store's ids come from an external registry: set \
         SCHEMA_REGISTRY_URL again, so that it gives this one too"
    )]
    GivenElsewhere { subject: String, version: i16 },
    /// Another schema stands under this subject and version.
    #[error(
        "schema {subject} version {version} in the database differs from this program's: its fingerprint is {found}, \
         ours {ours}. A published schema is never edited; add a version instead"
    )]
    Differs { subject: String, version: i16, found: String, ours: String },
    /// Events of a version that this program cannot read.
    #[error("the event store holds events that this program cannot read: {}; run a newer version of the program, or add \
         the upcasters that are missing", list(.0))]
    NoPath(Vec<(String, i16, i64)>),
}

fn list(versions: &[(String, i16, i64)]) -> String {
    let one =
        |(event_type, version, count): &(String, i16, i64)| format!("{event_type} version {version} ({count} events)");
    versions.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl SchemaIds {
    /// Ids from elsewhere: an external registry.
    pub fn new(ids: impl IntoIterator<Item = (String, i16, i32)>) -> Self {
        let mut all = Self::default();
        for (event_type, version, id) in ids {
            all.by_id.insert(id, (event_type.clone(), version));
            all.by_version.insert((event_type, version), id);
        }
        all
    }

    /// Ids 1, 2, 3 … in the order of the catalogue: what an empty database gives, and tests use.
    pub fn in_order(catalogue: &Catalogue) -> Self {
        Self::new(catalogue.schemas().iter().zip(1..).map(|(one, id)| (one.event_type.clone(), one.version, id)))
    }

    /// The type and version that an id stands for.
    pub fn version_of(&self, id: i32) -> Option<(&str, i16)> {
        self.by_id.get(&id).map(|(event_type, version)| (event_type.as_str(), *version))
    }

    /// The id of a type and version.
    pub fn id_of(&self, event_type: &str, version: i16) -> Option<i32> {
        self.by_version.get(&(event_type.to_owned(), version)).copied()
    }

    /// All ids with their type and version, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (i32, &str, i16)> {
        self.by_id.iter().map(|(id, (event_type, version))| (*id, event_type.as_str(), *version))
    }
}

/// Registers what is not registered yet, then loads. Idempotent, and safe when several programs do
/// it at once: ids are given once, and in the catalogue's order on an empty database.
pub async fn register(client: &impl GenericClient, catalogue: &Catalogue) -> Result<SchemaIds, SchemaIdsError> {
    if are_given_elsewhere(client).await? {
        return load(client, catalogue).await.map_err(|error| match error {
            SchemaIdsError::Unregistered { subject, version } => SchemaIdsError::GivenElsewhere { subject, version },
            error => error,
        });
    }
    let schemas = catalogue.schemas();
    let subjects: Vec<_> = schemas.iter().map(|one| catalogue.subject(&one.event_type)).collect();
    let versions: Vec<_> = schemas.iter().map(|one| i32::from(one.version)).collect();
    let types: Vec<_> = schemas.iter().map(|one| one.event_type.as_str()).collect();
    let fingerprints: Vec<_> = schemas.iter().map(|one| one.fingerprint.as_str()).collect();
    let definitions: Vec<_> = schemas.iter().map(|one| one.definition.as_str()).collect();
    // The anti-join keeps a run without news from burning ids; on conflict settles two at once.
    let statement = "
        insert into throughline.schemas (subject, version, event_type, fingerprint, definition)
        select subject, version, event_type, fingerprint, definition
        from unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[])
             with ordinality as new (subject, version, event_type, fingerprint, definition, ordinal)
        where not exists (select from throughline.schemas old where old.subject = new.subject and old.version = new.version)
        order by ordinal
        on conflict (subject, version) do nothing";
    client
        .execute(statement, &[&subjects, &versions, &types, &fingerprints, &definitions])
        .await
        .map_err(|source| SchemaIdsError::Database { step: "register", source })?;
    load(client, catalogue).await
}

/// Whether there are ids that our own sequence did not give: it would give them, or others of that
/// registry, a second time.
async fn are_given_elsewhere(client: &impl GenericClient) -> Result<bool, SchemaIdsError> {
    let statement = "
        select coalesce(max(id), 0) > coalesce((select last_value from pg_sequences
                                                where schemaname = 'throughline' and sequencename = 'schemas_id_seq'), 0)
        from throughline.schemas";
    let row = client
        .query_one(statement, &[])
        .await
        .map_err(|source| SchemaIdsError::Database { step: "ask who gave the ids", source })?;
    Ok(row.get(0))
}

/// Loads the ids of a context; fails if one of the catalogue's is not registered, or registered
/// with another definition.
pub async fn load(client: &impl GenericClient, catalogue: &Catalogue) -> Result<SchemaIds, SchemaIdsError> {
    let prefix = catalogue.subject_prefix();
    let rows = client
        .query(
            "select id, event_type, version, fingerprint from throughline.schemas where starts_with(subject, $1)",
            &[&prefix],
        )
        .await
        .map_err(|source| SchemaIdsError::Database { step: "load", source })?;
    let mut fingerprints = HashMap::new();
    let mut ids = Vec::new();
    for row in &rows {
        let (id, event_type, version): (i32, String, i32) = (row.get(0), row.get(1), row.get(2));
        // A version beyond what we count in is one that we do not know.
        let version = i16::try_from(version).unwrap_or(i16::MAX);
        fingerprints.insert((event_type.clone(), version), row.get::<_, String>(3));
        ids.push((event_type, version, id));
    }
    for one in catalogue.schemas() {
        let (subject, version) = (catalogue.subject(&one.event_type), one.version);
        match fingerprints.remove(&(one.event_type.clone(), version)) {
            None => return Err(SchemaIdsError::Unregistered { subject, version }),
            Some(found) if found != one.fingerprint => {
                return Err(SchemaIdsError::Differs { subject, version, found, ours: one.fingerprint.clone() });
            }
            Some(_) => {}
        }
    }
    Ok(SchemaIds::new(ids))
}

/// Refuses to start when the store holds events of versions beyond the catalogue or without a path to the
/// newest, and says which and how many. The events are counted only if such a version was ever registered:
/// the events table is large and carries no index by version.
pub async fn check_store(
    client: &impl GenericClient,
    catalogue: &Catalogue,
    upcasters: &Upcasters,
    ids: &SchemaIds,
) -> Result<(), SchemaIdsError> {
    let lost = upcasters.without_path(catalogue);
    let is_lost = |event_type: &str, version| lost.iter().any(|(lost, from)| lost == event_type && *from == version);
    let unknown: Vec<_> = ids
        .iter()
        .filter(|(_, event_type, version)| {
            catalogue.schema(event_type, *version).is_none() || is_lost(event_type, *version)
        })
        .map(|(_, event_type, version)| (event_type.to_owned(), version))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let (types, versions): (Vec<_>, Vec<_>) = unknown.into_iter().unzip();
    let statement = "
        select e.type, e.schema_version, count(*)
        from throughline.events e join throughline.topics t on t.id = e.topic
             join unnest($2::text[], $3::smallint[]) as unknown (type, version)
                  on unknown.type = e.type and unknown.version = e.schema_version
        where t.name = $1
        group by 1, 2 order by 1, 2";
    let rows = client
        .query(statement, &[&catalogue.topic(), &types, &versions])
        .await
        .map_err(|source| SchemaIdsError::Database { step: "count events of unknown versions", source })?;
    match rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect::<Vec<_>>() {
        lost if lost.is_empty() => Ok(()),
        lost => Err(SchemaIdsError::NoPath(lost)),
    }
}
