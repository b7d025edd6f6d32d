//! Parked events: what could not be applied, and what came after it for the same key.
//!
//! A key with an open parked row parks every later event of its own, so that its order is kept.
//! The rows are in `throughline.dead_letters`, under the projection's consumer group.

use std::collections::HashSet;

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Transaction};

use super::Projector;
use super::decode::Item;
use crate::store::dead_letters::{self, DeadLetter};
use crate::store::{DeadLetter as Letter, StoreError};

/// The keys among `keys` that have open parked rows.
pub(super) async fn open_keys(
    tx: &Transaction<'_>,
    group: &str,
    keys: &[&[u8]],
) -> Result<HashSet<Vec<u8>>, tokio_postgres::Error> {
    let rows = tx
        .query_typed(
            "select distinct key from throughline.dead_letters
             where consumer = $1 and key = any($2) and status = 'parked' and kind = 'event' and seq is not null",
            &[(&group, Type::TEXT), (&keys, Type::BYTEA_ARRAY)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether the group has any open parked row in these partitions.
pub(super) async fn any_open(client: &impl GenericClient, group: &str, topic: &str) -> Result<bool, StoreError> {
    let row = client
        .query_one(
            "select exists (select from throughline.dead_letters
                            where consumer = $1 and source_topic = $2 and status = 'parked' and kind = 'event')",
            &[&group, &topic],
        )
        .await
        .map_err(StoreError::at("look for parked events"))?;
    Ok(row.get(0))
}

/// Parks records under Kafka's id of their topic.
pub(super) async fn park_named<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    mut letters: Vec<DeadLetter>,
) -> Result<(), StoreError> {
    if letters.is_empty() {
        return Ok(());
    }
    let id = projector.topic_id().await;
    letters.iter_mut().for_each(|letter| letter.topic_id.clone_from(&id));
    park(tx, &letters).await
}

/// Parks records. One that was closed before (its partition was replayed since) is open again.
pub(super) async fn park(tx: &Transaction<'_>, letters: &[DeadLetter]) -> Result<(), StoreError> {
    dead_letters::park(tx, letters).await?;
    let Some(first) = letters.first() else { return Ok(()) };
    let partitions: Vec<i32> = letters.iter().map(|letter| letter.source_partition).collect();
    let offsets: Vec<Option<i64>> = letters.iter().map(|letter| letter.source_offset).collect();
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    tx.execute(
        "update throughline.dead_letters d
         set status = 'parked', closed_at = null, parked_at = now(), reason = l.reason
         from unnest($3::int[], $4::bigint[], $5::text[]) l (source_partition, source_offset, reason)
         where d.consumer = $1 and d.source_topic = $2 and d.status <> 'parked'
           and d.source_partition = l.source_partition and d.source_offset = l.source_offset and d.topic_id = $6",
        &[
            &first.consumer,
            &first.source_topic,
            &partitions,
            &offsets,
            &reasons,
            &first.topic_id.as_deref().unwrap_or_default(),
        ],
    )
    .await
    .map_err(StoreError::at("open parked rows again"))?;
    Ok(())
}

/// The dead letter of an item; the topic's id is for whoever parks it.
pub(super) fn letter(group: &str, item: &Item, numbered: bool, code: &str, reason: &str) -> Letter {
    let record = &item.record;
    Letter {
        kind: "event",
        consumer: group.to_owned(),
        source_topic: record.source.topic.to_string(),
        topic_id: None,
        source_partition: record.source.partition,
        source_offset: Some(record.offset),
        seq: numbered.then_some(item.seq),
        key: record.key.clone(),
        headers: record.headers().map(|headers| headers.iter().collect()),
        value: record.value.clone(),
        reason_code: code.to_owned(),
        reason: reason.replace('\0', "\u{fffd}"),
        command: None,
    }
}

/// After a reset to `seq`, later events come again: their parked rows are closed, and parked anew
/// should they fail again.
pub(super) async fn reopen_from(tx: &Transaction<'_>, group: &str, partition: i32, seq: i64) -> Result<(), StoreError> {
    tx.execute(
        "update throughline.dead_letters set status = 'discarded', closed_at = now()
         where consumer = $1 and source_partition = $2 and seq > $3 and status = 'parked' and kind = 'event'",
        &[&group, &partition, &seq],
    )
    .await
    .map_err(StoreError::at("close parked rows that come again"))?;
    Ok(())
}

/// Sequence numbers that the live generation did not apply: parked, or discarded by an operator.
pub(super) async fn excluded(
    tx: &Transaction<'_>,
    group: &str,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<HashSet<i64>, StoreError> {
    let rows = tx
        .query_typed(
            "select seq from throughline.dead_letters
             where consumer = $1 and source_partition = $2 and seq > $3 and seq <= $4
               and status in ('parked', 'discarded') and kind = 'event'",
            &[(&group, Type::TEXT), (&partition, Type::INT4), (&after, Type::INT8), (&upto, Type::INT8)],
        )
        .await
        .map_err(StoreError::at("look for parked events"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
