//! Destination topics as the store knows them: a small id and a partition count fixed at creation.

use tokio_postgres::Client;

use super::StoreError;

/// A topic that the relay publishes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// `throughline.topics.id`.
    pub id: i16,
    /// Kafka's name of it.
    pub name: String,
    /// Partitions; the same for ever, since growth would re-hash keys and break order.
    pub partitions: i32,
}

/// Registers a destination with its counters, its leases and its part of the event store; idempotent. One that
/// exists keeps its number of partitions, which is the answer's.
pub async fn register(client: &mut Client, name: &str, partitions: i32) -> Result<Destination, StoreError> {
    let transaction = client.transaction().await.map_err(StoreError::at("begin to register a topic"))?;
    transaction
        .execute(
            "insert into throughline.topics (name, partitions) values ($1, $2) on conflict (name) do nothing",
            &[&name, &partitions],
        )
        .await
        .map_err(StoreError::at("register a topic"))?;
    let row = transaction
        .query_one("select id, partitions from throughline.topics where name = $1", &[&name])
        .await
        .map_err(StoreError::at("read a topic"))?;
    let destination = Destination { id: row.get(0), name: name.to_owned(), partitions: row.get(1) };
    for table in ["counters", "relay_leases"] {
        transaction
            .execute(
                &format!(
                    "insert into throughline.{table} (partition, topic)
                     select p, $1 from generate_series(0, $2 - 1) p on conflict do nothing"
                ),
                &[&destination.id, &destination.partitions],
            )
            .await
            .map_err(StoreError::at("create a topic's counters and leases"))?;
    }
    transaction
        .execute("select throughline.create_event_partitions($1)", &[&partitions])
        .await
        .map_err(StoreError::at("create the event store's partitions"))?;
    transaction.commit().await.map_err(StoreError::at("commit a topic"))?;
    Ok(destination)
}

/// The destination `name`, or an error that says how to create it.
pub async fn find(client: &Client, name: &str) -> Result<Destination, StoreError> {
    let row = client
        .query_opt("select id, partitions from throughline.topics where name = $1", &[&name])
        .await
        .map_err(StoreError::at("read a topic"))?;
    row.map(|row| Destination { id: row.get(0), name: name.to_owned(), partitions: row.get(1) })
        .ok_or_else(|| StoreError::UnknownTopic(name.to_owned()))
}

/// Every destination, by id.
pub async fn all(client: &Client) -> Result<Vec<Destination>, StoreError> {
    let rows = client
        .query("select id, name, partitions from throughline.topics order by id", &[])
        .await
        .map_err(StoreError::at("read topics"))?;
    Ok(rows.iter().map(|row| Destination { id: row.get(0), name: row.get(1), partitions: row.get(2) }).collect())
}
