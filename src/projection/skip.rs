//! Skipping one record of the events topic that stands in a projection's way, by an operator's word.
//!
//! It is parked whole and the checkpoint moves behind it under a new epoch, in one transaction: whoever holds
//! the partition is fenced off and claims anew. Later events of its key are parked behind it, so that
//! `dlq replay` applies them in order.

use tokio_postgres::Client;

use super::checkpoint::Checkpoint;
use super::{LIVE, gaps, park};
use crate::kafka::{Record, headers};
use crate::store::{DeadLetter, StoreError};

/// Parks `record` as `letter` and moves the checkpoint behind it; false when it is not at `held` any more.
pub async fn skip(
    client: &mut Client,
    projection: &str,
    record: &Record,
    held: Checkpoint,
    letter: DeadLetter,
) -> Result<bool, StoreError> {
    let tx = client.transaction().await.map_err(StoreError::at("begin a skip"))?;
    // A stranger's record, or one that was applied before, has no number of its own here.
    let seq = headers::seq_of(record).filter(|seq| *seq == held.seq + 1);
    let moved = tx
        .execute(
            "update throughline.checkpoints set next_offset = $5, seq = $6, epoch = epoch + 1, updated_at = now()
             where projection = $1 and partition = $2 and generation = 'read' and epoch = $3 and next_offset = $4",
            &[
                &projection,
                &held.partition,
                &held.epoch,
                &held.next_offset,
                &(record.offset + 1),
                &seq.unwrap_or(held.seq),
            ],
        )
        .await
        .map_err(StoreError::at("move a checkpoint"))?;
    if moved == 0 {
        return Ok(false);
    }
    park::park(&tx, &[DeadLetter { seq, ..letter }]).await?;
    let left_out: Vec<(i32, i64)> = seq.map(|seq| (held.partition, seq)).into_iter().collect();
    gaps::leave_out(&tx, projection, LIVE, &left_out).await?;
    tx.commit().await.map_err(StoreError::at("commit a skip"))?;
    Ok(true)
}
