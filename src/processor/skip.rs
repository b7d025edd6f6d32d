//! Skipping one record of a commands topic that stands in the way, by an operator's word.
//!
//! It is parked whole and the offset moves behind it under a new epoch, in one transaction: whoever holds the
//! partition is fenced off and claims anew. The command has no outcome then; replayed, it is decided.

use tokio_postgres::Client;

use crate::kafka::Record;
use crate::store::{DeadLetter, StoreError, dead_letters};

/// Where the group stands in a partition, and under which epoch; none where it never claimed it.
pub async fn position(
    client: &Client,
    group: &str,
    topic: &str,
    partition: i32,
) -> Result<Option<(i64, i64)>, StoreError> {
    let statement = "select next_offset, epoch from throughline.offsets
                     where partition = $1 and source_topic = $2 and group_id = $3";
    let row = client.query_opt(statement, &[&partition, &topic, &group]).await;
    Ok(row.map_err(StoreError::at("read an offset"))?.map(|row| (row.get(0), row.get(1))))
}

/// Parks `record` as `letter` and moves its partition behind it; false when the partition is not at `held` any more.
pub async fn skip(
    client: &mut Client,
    record: &Record,
    held: (i64, i64),
    letter: DeadLetter,
) -> Result<bool, StoreError> {
    let tx = client.transaction().await.map_err(StoreError::at("begin a skip"))?;
    let (next_offset, epoch) = held;
    let topic: &str = &record.source.topic;
    let moved = tx
        .execute(
            "update throughline.offsets set next_offset = $6, epoch = epoch + 1, updated_at = now()
             where partition = $1 and source_topic = $2 and group_id = $3 and epoch = $4 and next_offset = $5",
            &[&record.source.partition, &topic, &letter.consumer, &epoch, &next_offset, &(record.offset + 1)],
        )
        .await
        .map_err(StoreError::at("move an offset"))?;
    if moved == 0 {
        return Ok(false);
    }
    dead_letters::park(&tx, &[letter]).await?;
    tx.commit().await.map_err(StoreError::at("commit a skip"))?;
    Ok(true)
}
