//! Makes the database and the topics what this program needs, and checks them before a start.

use std::sync::Arc;

use anyhow::bail;
use tokio_postgres::Client;

use crate::avro::{self, Catalogue, ExternalRegistry};
use crate::kafka::client;
use crate::kafka::topics::{self, TopicNames, TopicSpec};
use crate::orders::{self, OrdersCodec};
use crate::projection::{self, Installed};
use crate::settings::Settings;
use crate::store::{DatabaseRole, StoreError, connect, destinations, migrate, partitions};

/// The reference context's topics.
pub fn orders_topics(settings: &Settings) -> TopicNames {
    TopicNames::new("orders", &settings.topics)
}

/// Every topic of every context.
pub fn topic_specs(settings: &Settings) -> Vec<TopicSpec> {
    topics::specs(&orders_topics(settings), &settings.topics)
}

/// The settings with the number of destinations that the store has: what an event's partition follows from,
/// for ever, whatever is set and however many partitions the topics have by now.
pub async fn with_stored_partitions(settings: &Settings) -> Result<Settings, StoreError> {
    let mut settings = settings.clone();
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let stored = destinations::find(&client, &orders_topics(&settings).events()).await?;
    settings.topics.event_partitions = stored.partitions;
    Ok(settings)
}

/// Applies migrations, registers destination topics, schemas and read tables. Idempotent; safe when
/// several processes do it at once. Returns what was applied.
pub async fn apply_database(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let mut client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let mut applied: Vec<String> =
        migrate::apply(&mut client).await?.iter().map(|name| format!("migration {name}")).collect();
    let names = orders_topics(settings);
    for topic in [names.events(), names.results()] {
        let stored = destinations::register(&mut client, &topic, settings.topics.event_partitions).await?;
        if stored.partitions != settings.topics.event_partitions {
            applied.push(format!(
                "nothing for topics.event_partitions = {}: the store has {} partitions of {topic}, for ever, and those \
                 are used",
                settings.topics.event_partitions, stored.partitions
            ));
        }
    }
    register_schemas(settings, &client).await?;
    for projection in orders::projections::all() {
        match projection::install(&mut client, projection.read_model()).await? {
            Installed::Created => applied.push(format!("projection {}", projection.read_model().name)),
            Installed::Current => {}
            Installed::NeedsRebuild { live, program } => applied.push(format!(
                "nothing for projection {name}: its tables have version {live}, this program version {program}; run \
                 `throughline projection rebuild {name}`",
                name = projection.read_model().name
            )),
        }
    }
    let turn = partitions::maintain(&client, &settings.database).await?;
    if turn.created > 0 {
        applied.push(format!("{} time partitions", turn.created));
    }
    Ok(applied)
}

/// Registers the schemas, at the external registry where one is configured; the ids are kept in the
/// database either way, so that nothing but a new schema needs that registry.
async fn register_schemas(settings: &Settings, client: &Client) -> anyhow::Result<()> {
    let catalogue = orders_catalogue(settings)?;
    match settings.http.schema_registry_url.expose() {
        "" => drop(avro::ids::register(client, &catalogue).await?),
        url => drop(ExternalRegistry::new(url)?.register(client, &catalogue).await?),
    }
    Ok(())
}

/// Makes sure that a role can start: services answer, schema and topics fit.
pub async fn ready(settings: &Settings) -> anyhow::Result<()> {
    let kafka = settings.kafka.clone();
    tokio::task::spawn_blocking(move || client::check(&kafka)).await??;
    if settings.database.apply_at_start {
        apply_database(settings).await?;
        topics::apply(&settings.kafka, &topic_specs(&with_stored_partitions(settings).await?)).await?;
    } else {
        let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
        migrate::check(&client).await?;
    }
    let found = topics::check(&settings.kafka, &topic_specs(&with_stored_partitions(settings).await?)).await?;
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

/// The schemas of the orders context; their subjects begin with the name of the events topic, its
/// prefix included.
pub fn orders_catalogue(settings: &Settings) -> anyhow::Result<Catalogue> {
    Ok(orders::schemas::catalogue()?.of_topic(orders_topics(settings).events()))
}

/// The codec of the orders context, with the schema ids that the database gave.
///
/// # Errors
/// Refuses when the store holds events of a version that this program cannot read.
pub async fn orders_codec(settings: &Settings) -> anyhow::Result<Arc<OrdersCodec>> {
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let catalogue = orders_catalogue(settings)?;
    let ids = avro::ids::load(&client, &catalogue).await?;
    avro::ids::check_store(&client, &catalogue, &orders::schemas::upcasters(), &ids).await?;
    Ok(Arc::new(OrdersCodec::new(&ids)?))
}

/// As [`orders_codec`], for looking at a store whatever it holds: an event of an unknown version is
/// refused when it is met.
pub async fn orders_codec_unchecked(settings: &Settings, client: &Client) -> anyhow::Result<OrdersCodec> {
    let ids = avro::ids::load(client, &orders_catalogue(settings)?).await?;
    Ok(OrdersCodec::new(&ids)?)
}
