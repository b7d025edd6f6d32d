//! Tells an operator's reset of the consumer group from our own lag, and carries it out.
//!
//! Kafka's tool commits with empty metadata; our commits carry the epoch. PostgreSQL's checkpoint is
//! authoritative in every other case.
//!
//! Exactly once: whoever finds such a commit first writes it back to Kafka with the partition's epoch
//! from before it was read; then one transaction carries it out, records the epoch it found, and
//! raises it. A reset named with an epoch up to a recorded one is done. Killed before the name is
//! written: nothing happened. Killed before the transaction commits: it is carried out next time.
//! Killed after it, before a commit of ours follows in Kafka: it is found done, however far the
//! checkpoint has moved from the target. A later reset has no name yet, so it gets a later epoch: it is
//! another one, even to the same offset. A zombie's name, should the broker take it, comes too late.

use tokio_postgres::Transaction;

use super::checkpoint::Checkpoint;
use super::{ProjectionLoopError, Projector, fill, gaps, park};
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

/// How the names of operators' resets begin.
const NAMED: &str = "reset=";

/// The metadata of our own commits.
pub(super) fn metadata(epoch: i64) -> String {
    format!("e={epoch}")
}

fn is_ours(metadata: &str) -> bool {
    metadata.strip_prefix("e=").is_some_and(|epoch| epoch.parse::<i64>().is_ok())
}

/// The name for a commit that is an operator's and has none yet.
pub(super) fn name_for(metadata: &str, epoch: i64) -> Option<String> {
    (!is_ours(metadata) && named_epoch(metadata).is_none()).then(|| format!("{NAMED}{epoch}"))
}

/// The epoch that a name tells; none where the metadata is no name.
fn named_epoch(metadata: &str) -> Option<i64> {
    metadata.strip_prefix(NAMED)?.parse().ok()
}

/// The offset that an operator wishes and nobody has gone to yet. Asked under the checkpoint's lock, in
/// a statement after it, so that another claim's answer is seen.
pub(super) async fn open_wish<E: Send + Sync>(
    tx: &Transaction<'_>,
    projector: &Projector<E>,
    partition: i32,
    committed: &Committed,
) -> Result<Option<i64>, StoreError> {
    let Some((offset, name)) = committed.as_ref().filter(|(_, metadata)| !is_ours(metadata)) else { return Ok(None) };
    let carried_out: bool = tx
        .query_one(
            "select exists (select from throughline.projection_resets
                            where projection = $1 and partition = $2 and epoch >= $3)",
            &[&projector.name(), &partition, &named_epoch(name).unwrap_or(i64::MAX)],
        )
        .await
        .map_err(StoreError::at("look whether a reset was carried out"))?
        .get(0);
    Ok((!carried_out).then_some(*offset))
}

/// Decides from the checkpoint's offset, what an operator wishes, and what Kafka keeps.
pub(super) fn decide(next_offset: i64, wish: Option<i64>, (first, end): (i64, i64)) -> Start {
    match wish {
        Some(offset) => {
            let target = offset.clamp(first, end);
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

/// Goes back: clears a partition's rows and refills them from the event store up to `seq`.
pub(super) async fn backward<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    from: Checkpoint,
    target: i64,
    seq: i64,
) -> Result<Checkpoint, ProjectionLoopError> {
    remake(projector, tx, from, Checkpoint { next_offset: target, seq, ..from }, "backward").await
}

/// Makes the rows of a partition anew where they stand: they hold what an operator discarded since.
pub(super) async fn refill<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    held: Checkpoint,
) -> Result<Checkpoint, ProjectionLoopError> {
    remake(projector, tx, held, held, "refill").await
}

async fn remake<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    from: Checkpoint,
    to: Checkpoint,
    direction: &'static str,
) -> Result<Checkpoint, ProjectionLoopError> {
    let partition = from.partition;
    for table in projector.projection.read_model().tables {
        tx.execute(&format!("delete from {table} where partition = $1"), &[&partition])
            .await
            .map_err(StoreError::at("clear a partition's rows"))?;
    }
    gaps::forget(tx, projector.name(), partition).await?;
    let by = record(projector, tx, direction, from, to).await?;
    park::supersede_after(tx, &projector.group, partition, to.seq, &by).await?;
    fill::fill_live(projector, tx, partition, 0, to.seq, &by).await?;
    Ok(to)
}

/// Stays where it stands, for good: with what is applied next, the same wish would be a way back.
pub(super) async fn stay<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    held: Checkpoint,
) -> Result<Checkpoint, ProjectionLoopError> {
    record(projector, tx, "current", held, held).await?;
    Ok(held)
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
    let moved = Checkpoint { next_offset: target, seq: seq.max(from.seq), ..from };
    gaps::skip(tx, projector.name(), from.partition, from.seq, moved.seq).await?;
    record(projector, tx, "forward", from, moved).await?;
    Ok(moved)
}

/// Puts a reset on record. Returns how its record is named.
async fn record<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    direction: &'static str,
    from: Checkpoint,
    to: Checkpoint,
) -> Result<String, StoreError> {
    tracing::warn!(
        projection = projector.name(),
        partition = from.partition,
        direction,
        from_offset = from.next_offset,
        from_seq = from.seq,
        to_offset = to.next_offset,
        to_seq = to.seq,
        "this partition is reset"
    );
    metrics::counter!("throughline_projection_resets_total", "projection" => projector.name(), "direction" => direction)
        .increment(1);
    // The epoch tells a wish of an operator that was carried out; a refill is nobody's.
    let epoch = (direction != "refill").then_some(from.epoch);
    let row = tx
        .query_one(
            "insert into throughline.projection_resets
             (projection, partition, direction, from_offset, from_seq, to_offset, to_seq, epoch)
         values ($1, $2, $3, $4, $5, $6, $7, $8) returning id",
            &[
                &projector.name(),
                &from.partition,
                &direction,
                &from.next_offset,
                &from.seq,
                &to.next_offset,
                &to.seq,
                &epoch,
            ],
        )
        .await
        .map_err(StoreError::at("record a reset"))?;
    Ok(format!("{direction} reset {}", row.get::<_, i64>(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_metadata_is_given_a_name_and_once() {
        for ours in ["e=7", "e=0"] {
            assert_eq!(name_for(ours, 9), None, "{ours}");
        }
        for foreign in ["", "someone's tool", "e=", "reset=", "reset=x"] {
            let name = name_for(foreign, 9).expect("an operator's");
            assert_eq!(named_epoch(&name), Some(9));
            assert_eq!(name_for(&name, 10), None, "{name} is named");
            assert!(!is_ours(&name), "{name} stays a wish");
        }
        assert!(is_ours(&metadata(7)));
    }

    #[test]
    fn a_wish_says_where_to() {
        let kept = (0, 100);
        assert_eq!(decide(40, None, kept), Start::Resume, "none, deleted, or carried out");
        assert_eq!(decide(40, Some(40), kept), Start::Here);
        assert_eq!(decide(40, Some(0), kept), Start::Backward { target: 0 });
        assert_eq!(decide(40, Some(100), kept), Start::Forward { target: 100 });
    }

    #[test]
    fn targets_stay_within_what_kafka_keeps() {
        assert_eq!(decide(40, Some(3), (20, 100)), Start::Backward { target: 20 });
        assert_eq!(decide(40, Some(300), (20, 100)), Start::Forward { target: 100 });
        assert_eq!(decide(40, None, (60, 100)), Start::Expired { first: 60 });
    }
}
