//! Makes the database and the topics what an application needs, and checks them before a start.

use std::sync::Arc;

use anyhow::bail;
use tokio_postgres::Client;

use super::{App, Hosted, Opened};
use crate::avro::{self, ExternalRegistry, SchemaIds};
use crate::kafka::client;
use crate::kafka::topics::{self, TopicSpec};
use crate::process::{self, OpenProcess};
use crate::projection::{self, Installed};
use crate::settings::Settings;
use crate::store::{DatabaseRole, StoreError, connect, destinations, migrate, partitions};

/// Every topic of a context.
pub fn topic_specs(context: &dyn Hosted, settings: &Settings) -> Vec<TopicSpec> {
    topics::specs(&context.names(&settings.topics), &settings.topics)
}

/// The settings of a context, with the number of destinations that the store has for it: what an event's
/// partition follows from, for ever, whatever is set and however many partitions the topics have by now.
pub async fn with_stored_partitions(context: &dyn Hosted, settings: &Settings) -> Result<Settings, StoreError> {
    let mut settings = settings.clone();
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let stored = destinations::find(&client, &context.names(&settings.topics).events()).await?;
    settings.topics.event_partitions = stored.partitions;
    Ok(settings)
}

/// Applies migrations, registers destination topics, schemas and read tables of every context. Idempotent; safe
/// when several processes do it at once. Returns what was applied.
pub async fn apply_database(app: &App, settings: &Settings) -> anyhow::Result<Vec<String>> {
    app.check()?;
    let mut client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let mut applied: Vec<String> =
        migrate::apply(&mut client).await?.iter().map(|name| format!("migration {name}")).collect();
    for context in app.contexts() {
        apply_context(context.as_ref(), settings, &mut client, &mut applied).await?;
    }
    for process in app.processes() {
        if process::state::install(&client, process.name()).await? {
            applied.push(format!("process {}", process.name()));
        }
    }
    let turn = partitions::maintain(&client, &settings.database).await?;
    if turn.created > 0 {
        applied.push(format!("{} time partitions", turn.created));
    }
    Ok(applied)
}

async fn apply_context(
    context: &dyn Hosted,
    settings: &Settings,
    client: &mut Client,
    applied: &mut Vec<String>,
) -> anyhow::Result<()> {
    let names = context.names(&settings.topics);
    for topic in [names.events(), names.results()] {
        let stored = destinations::register(client, &topic, settings.topics.event_partitions).await?;
        if stored.partitions != settings.topics.event_partitions {
            applied.push(format!(
                "nothing for topics.event_partitions = {}: the store has {} partitions of {topic}, for ever, and those \
                 are used",
                settings.topics.event_partitions, stored.partitions
            ));
        }
    }
    register_schemas(context, settings, client).await?;
    for model in context.read_models() {
        match projection::install(client, model).await? {
            Installed::Created => applied.push(format!("projection {}", model.name)),
            Installed::Current => {}
            Installed::NeedsRebuild { live, program } => applied.push(format!(
                "nothing for projection {name}: its tables have version {live}, this program version {program}; run \
                 `throughline projection rebuild {name}`",
                name = model.name
            )),
        }
    }
    Ok(())
}

/// Registers the schemas, at the external registry where one is configured; the ids are kept in the
/// database either way, so that nothing but a new schema needs that registry.
async fn register_schemas(context: &dyn Hosted, settings: &Settings, client: &Client) -> anyhow::Result<()> {
    let catalogue = context.catalogue(&settings.topics)?;
    match settings.http.schema_registry_url.expose() {
        "" => drop(avro::ids::register(client, &catalogue).await?),
        url => drop(ExternalRegistry::new(url)?.register(client, &catalogue).await?),
    }
    Ok(())
}

/// Makes sure that a role can start: services answer, schema and topics fit.
pub async fn ready(app: &App, settings: &Settings) -> anyhow::Result<()> {
    app.check()?;
    let kafka = settings.kafka.clone();
    tokio::task::spawn_blocking(move || client::check(&kafka)).await??;
    if settings.database.apply_at_start {
        apply_database(app, settings).await?;
    } else {
        let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
        migrate::check(&client).await?;
    }
    for context in app.contexts() {
        topics_ready(context.as_ref(), settings).await?;
    }
    Ok(())
}

async fn topics_ready(context: &dyn Hosted, settings: &Settings) -> anyhow::Result<()> {
    let specs = topic_specs(context, &with_stored_partitions(context, settings).await?);
    if settings.database.apply_at_start {
        topics::apply(&settings.kafka, &specs).await?;
    }
    let found = topics::check(&settings.kafka, &specs).await?;
    let (notes, mismatches): (Vec<_>, Vec<_>) = found.into_iter().partition(|mismatch| mismatch.is_note);
    for note in notes {
        tracing::warn!("topic {} {}", note.topic, note.problem);
    }
    if let Some(mismatch) = mismatches.first() {
        bail!(
            "topic {} {}{}",
            mismatch.topic,
            mismatch.problem,
            match mismatches.len() - 1 {
                0 => String::new(),
                more => format!("; {more} more: run `throughline topics check`"),
            }
        );
    }
    Ok(())
}

/// The context with its codec, under the schema ids that the database gave.
///
/// # Errors
/// Refuses when the store holds events of a version that this program cannot read.
pub async fn open(context: &dyn Hosted, settings: &Settings) -> anyhow::Result<Arc<dyn Opened>> {
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let catalogue = context.catalogue(&settings.topics)?;
    let ids = avro::ids::load(&client, &catalogue).await?;
    avro::ids::check_store(&client, &catalogue, &(context.schemas().upcasters)(), &ids).await?;
    context.open(&ids)
}

/// The schema ids that the database gave, for looking at a store whatever it holds: an event of an unknown
/// version is refused when it is met.
pub async fn schema_ids(context: &dyn Hosted, settings: &Settings, client: &Client) -> anyhow::Result<SchemaIds> {
    Ok(avro::ids::load(client, &context.catalogue(&settings.topics)?).await?)
}

/// Every process manager, with the codecs of what it reads.
pub async fn processes(app: &App, settings: &Settings) -> anyhow::Result<Vec<Box<dyn OpenProcess>>> {
    let mut codecs = process::Codecs::new();
    for context in app.contexts() {
        codecs.insert(context.name(), open(context.as_ref(), settings).await?.codec());
    }
    let settings = Arc::new(settings.clone());
    app.processes().iter().map(|process| Ok(process.open(&settings, &codecs)?)).collect()
}
