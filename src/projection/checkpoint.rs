//! Checkpoints: where a projection stands, moved by compare-and-set with its rows.
//!
//! PostgreSQL is authoritative. Knows neither Kafka nor events.

use std::collections::HashSet;

use jiff::Timestamp;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row, Transaction};

use crate::store::StoreError;

/// One partition of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub partition: i32,
    /// Kafka offset of the next record.
    pub next_offset: i64,
    /// Last sequence number that the rows reflect.
    pub seq: i64,
    /// Fencing token: whoever holds an older one changes nothing.
    pub epoch: i64,
}

impl Checkpoint {
    fn from_row(row: &Row) -> Self {
        Self { partition: row.get(0), next_offset: row.get(1), seq: row.get(2), epoch: row.get(3) }
    }
}

/// A checkpoint about to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub from: Checkpoint,
    pub next_offset: i64,
    pub seq: i64,
    /// When the last event applied was recorded; none when only duplicates were passed over.
    pub last_event_at: Option<Timestamp>,
}

/// Moves every checkpoint of a batch in one statement. Returns the partitions that moved; one that
/// did not is held by another owner now, and the caller must roll back.
pub(super) async fn advance(
    tx: &Transaction<'_>,
    projection: &str,
    moves: &[Move],
) -> Result<HashSet<i32>, tokio_postgres::Error> {
    let partitions: Vec<i32> = moves.iter().map(|m| m.from.partition).collect();
    let epochs: Vec<i64> = moves.iter().map(|m| m.from.epoch).collect();
    let expected: Vec<i64> = moves.iter().map(|m| m.from.next_offset).collect();
    let next: Vec<i64> = moves.iter().map(|m| m.next_offset).collect();
    let seqs: Vec<i64> = moves.iter().map(|m| m.seq).collect();
    let times: Vec<Option<Timestamp>> = moves.iter().map(|m| m.last_event_at).collect();
    let rows = tx
        .query_typed(
            "update throughline.checkpoints c
             set next_offset = m.next_offset, seq = m.seq, updated_at = now(),
                 last_event_at = coalesce(m.last_event_at, c.last_event_at)
             from unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::timestamptz[])
                  as m (partition, epoch, expected, next_offset, seq, last_event_at)
             where c.projection = $1 and c.generation = 'read' and c.partition = m.partition
               and c.epoch = m.epoch and c.next_offset = m.expected
             returning c.partition",
            &[
                (&projection, Type::TEXT),
                (&partitions, Type::INT4_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&expected, Type::INT8_ARRAY),
                (&next, Type::INT8_ARRAY),
                (&seqs, Type::INT8_ARRAY),
                (&times, Type::TIMESTAMPTZ_ARRAY),
            ],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// All checkpoints of a generation, by partition.
pub async fn load(
    client: &impl GenericClient,
    projection: &str,
    generation: &str,
) -> Result<Vec<Checkpoint>, StoreError> {
    read(client, projection, generation, "").await
}

/// As [`load`], and holds the rows until the transaction ends: the live projector waits.
pub(super) async fn lock(
    tx: &Transaction<'_>,
    projection: &str,
    generation: &str,
) -> Result<Vec<Checkpoint>, StoreError> {
    read(tx, projection, generation, "for update").await
}

async fn read(
    client: &impl GenericClient,
    projection: &str,
    generation: &str,
    suffix: &str,
) -> Result<Vec<Checkpoint>, StoreError> {
    let statement = format!(
        "select partition, next_offset, seq, epoch from throughline.checkpoints
         where projection = $1 and generation = $2 order by partition {suffix}"
    );
    let rows =
        client.query(&statement, &[&projection, &generation]).await.map_err(StoreError::at("read checkpoints"))?;
    Ok(rows.iter().map(Checkpoint::from_row).collect())
}

/// The last number that the relay marked as published, by the store.
pub(super) async fn published(tx: &Transaction<'_>, topic: &str, partition: i32) -> Result<i64, StoreError> {
    let row = tx
        .query_opt(
            "select l.published from throughline.relay_leases l join throughline.topics t on t.id = l.topic
             where t.name = $1 and l.partition = $2",
            &[&topic, &partition],
        )
        .await
        .map_err(StoreError::at("look how far a partition is published"))?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// Takes a partition over: creates the row if it is the first time, locks it. Also tells the id of the
/// topic that its offset is a place in, where that is known.
pub(super) async fn take(
    tx: &Transaction<'_>,
    projection: &str,
    partition: i32,
) -> Result<(Checkpoint, Option<String>), StoreError> {
    tx.execute(
        "insert into throughline.checkpoints (partition, projection, epoch) values ($1, $2, 0) on conflict do nothing",
        &[&partition, &projection],
    )
    .await
    .map_err(StoreError::at("create a checkpoint"))?;
    let row = tx
        .query_one(
            "select partition, next_offset, seq, epoch, topic_id from throughline.checkpoints
             where projection = $1 and partition = $2 and generation = 'read' for update",
            &[&projection, &partition],
        )
        .await
        .map_err(StoreError::at("lock a checkpoint"))?;
    Ok((Checkpoint::from_row(&row), row.get(4)))
}

/// Stores a checkpoint under the next epoch: every earlier owner is fenced off.
pub(super) async fn put(
    tx: &Transaction<'_>,
    projection: &str,
    mut checkpoint: Checkpoint,
    topic_id: Option<&str>,
) -> Result<Checkpoint, StoreError> {
    checkpoint.epoch += 1;
    tx.execute(
        "update throughline.checkpoints
         set next_offset = $3, seq = $4, epoch = $5, topic_id = coalesce($6, topic_id), updated_at = now()
         where projection = $1 and partition = $2 and generation = 'read'",
        &[&projection, &checkpoint.partition, &checkpoint.next_offset, &checkpoint.seq, &checkpoint.epoch, &topic_id],
    )
    .await
    .map_err(StoreError::at("store a checkpoint"))?;
    Ok(checkpoint)
}
