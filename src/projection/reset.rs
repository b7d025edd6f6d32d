//! Tells an operator's reset of the consumer group from our own lag, and carries it out.
//!
//! Kafka's tool commits with empty metadata; our commits carry the epoch. PostgreSQL's checkpoint is
//! authoritative in every other case. Carrying out is one transaction: killed anywhere, the same
//! decision is reached again from the same two facts.

use tokio_postgres::Transaction;

use super::checkpoint::Checkpoint;
use super::{ProjectionLoopError, Projector, fill, park};
use crate::kafka::consumer::Committed;
use crate::store::StoreError;

/// Where a claimed partition starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At the checkpoint.
    Resume,
    /// An operator went back to `target`: clear, refill up to there, replay.
    Backward { target: i64 },
    /// An operator skipped to `target`: rows stay.
    Forward { target: i64 },
    /// An operator says "from here": the same, unless the topic has a hole here, which is refilled.
    Here,
    /// Kafka no longer keeps the records from the checkpoint on; the store still has their events.
    Expired { first: i64 },
}

/// The metadata of our own commits.
pub(super) fn metadata(epoch: i64) -> String {
    format!("e={epoch}")
}

fn is_ours(metadata: &str) -> bool {
    metadata.strip_prefix("e=").is_some_and(|epoch| epoch.parse::<i64>().is_ok())
}

/// Decides from the checkpoint's offset, what Kafka holds as committed, and what Kafka keeps.
pub(super) fn decide(next_offset: i64, committed: &Committed, (first, end): (i64, i64)) -> Start {
    match committed {
        Some((offset, metadata)) if !is_ours(metadata) => {
            let target = (*offset).clamp(first, end);
            match target.cmp(&next_offset) {
                std::cmp::Ordering::Less => Start::Backward { target },
                std::cmp::Ordering::Greater => Start::Forward { target },
                std::cmp::Ordering::Equal => Start::Here,
            }
        }
        _ if next_offset < first => Start::Expired { first },
        _ => Start::Resume,
    }
}

/// Clears a partition's rows and refills them from the event store up to `seq`.
pub(super) async fn backward<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    from: Checkpoint,
    target: i64,
    seq: i64,
) -> Result<Checkpoint, ProjectionLoopError> {
    for table in projector.projection.tables() {
        tx.execute(&format!("delete from {table} where partition = $1"), &[&from.partition])
            .await
            .map_err(StoreError::at("clear a partition's rows"))?;
    }
    park::reopen_from(tx, &projector.group, from.partition, seq).await?;
    fill::fill(projector, tx, from.partition, 0, seq).await?;
    record(projector, tx, "backward", from, target, seq).await?;
    Ok(Checkpoint { next_offset: target, seq, ..from })
}

/// Skips to `target`; the rows stay what they are.
pub(super) async fn forward<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    from: Checkpoint,
    target: i64,
    seq: i64,
) -> Result<Checkpoint, ProjectionLoopError> {
    // A duplicate at the target may carry an older number than the one reached.
    let seq = seq.max(from.seq);
    record(projector, tx, "forward", from, target, seq).await?;
    Ok(Checkpoint { next_offset: target, seq, ..from })
}

async fn record<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    direction: &'static str,
    from: Checkpoint,
    target: i64,
    seq: i64,
) -> Result<(), StoreError> {
    tracing::warn!(
        projection = projector.name(),
        partition = from.partition,
        direction,
        from_offset = from.next_offset,
        from_seq = from.seq,
        to_offset = target,
        to_seq = seq,
        "an operator reset this partition"
    );
    metrics::counter!("throughline_projection_resets_total", "projection" => projector.name(), "direction" => direction)
        .increment(1);
    tx.execute(
        "insert into throughline.projection_resets
             (projection, partition, direction, from_offset, from_seq, to_offset, to_seq)
         values ($1, $2, $3, $4, $5, $6, $7)",
        &[&projector.name(), &from.partition, &direction, &from.next_offset, &from.seq, &target, &seq],
    )
    .await
    .map_err(StoreError::at("record a reset"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_metadata_is_a_reset() {
        let kept = (0, 100);
        let operator = |offset| Some((offset, String::new()));
        assert_eq!(decide(40, &None, kept), Start::Resume, "deleted or expired offsets");
        assert_eq!(decide(40, &Some((10, "e=7".into())), kept), Start::Resume, "Kafka lags behind a crash");
        assert_eq!(decide(40, &Some((90, "e=7".into())), kept), Start::Resume, "the database was restored");
        assert_eq!(decide(40, &operator(40), kept), Start::Here);
        assert_eq!(decide(40, &operator(0), kept), Start::Backward { target: 0 });
        assert_eq!(decide(40, &operator(100), kept), Start::Forward { target: 100 });
        assert_eq!(decide(40, &Some((3, "someone's tool".into())), kept), Start::Backward { target: 3 });
        assert_eq!(decide(40, &Some((3, "e=".into())), kept), Start::Backward { target: 3 });
    }

    #[test]
    fn targets_stay_within_what_kafka_keeps() {
        let operator = |offset| Some((offset, String::new()));
        assert_eq!(decide(40, &operator(3), (20, 100)), Start::Backward { target: 20 });
        assert_eq!(decide(40, &operator(300), (20, 100)), Start::Forward { target: 100 });
        assert_eq!(decide(40, &None, (60, 100)), Start::Expired { first: 60 });
        assert_eq!(metadata(7), "e=7");
    }
}
