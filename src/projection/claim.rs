//! Taking over an assigned partition: the checkpoint is locked, a reset carried out, the epoch raised.
//!
//! Runs on the consumer's thread, in a transaction of its own. Whoever claimed before is fenced off
//! from the moment it commits.

use std::collections::HashMap;

use super::checkpoint::{self, Checkpoint};
use super::peek::{self, Numbers};
use super::reset::{self, Start};
use super::{LIVE, ProjectionLoopError, Projector, fill, state};
use crate::kafka::consumer::{ClaimError, Committed, PartitionOwner};
use crate::kafka::{Claim, TopicPartition};
use crate::store::StoreError;

/// Claims partitions for one projection.
pub(super) struct CheckpointOwner<E: Send + Sync + 'static> {
    pub projector: Projector<E>,
}

impl<E: Send + Sync + 'static> PartitionOwner for CheckpointOwner<E> {
    fn epochs(&self) -> Result<HashMap<i32, i64>, ClaimError> {
        let rows = run(async {
            let client = self.projector.connect(LIVE).await?;
            Ok(checkpoint::load(&client, self.projector.name(), LIVE).await?)
        })?;
        Ok(rows.iter().map(|row| (row.partition, row.epoch)).collect())
    }

    fn name_for(&self, metadata: &str, epoch: i64) -> Option<String> {
        reset::name_for(metadata, epoch)
    }

    fn claim(
        &self,
        source: &TopicPartition,
        committed: Committed,
        watermarks: (i64, i64),
    ) -> Result<Claim, ClaimError> {
        self.projector.topic_id.forget();
        let held = run(self.claim_checkpoint(source.partition, &committed, watermarks))?;
        Ok(Claim { epoch: held.epoch, next_offset: held.next_offset, seq: held.seq })
    }
}

/// On a runtime of its own: a handler that blocks the projection's thread cannot hold up a rebalance.
fn run<T>(work: impl Future<Output = Result<T, ProjectionLoopError>>) -> Result<T, ClaimError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClaimError::Transient(format!("cannot start a runtime: {error}")))?;
    runtime.block_on(work).map_err(classify)
}

fn classify(error: ProjectionLoopError) -> ClaimError {
    match error {
        ProjectionLoopError::Store(error) if error.is_transient() => ClaimError::Transient(error.to_string()),
        ProjectionLoopError::Kafka(error) => ClaimError::Transient(error.to_string()),
        error => ClaimError::Halt {
            reason: error.to_string(),
            cure: "Mend what the reason names; it is tried again.".into(),
        },
    }
}

impl<E: Send + Sync + 'static> CheckpointOwner<E> {
    async fn claim_checkpoint(
        &self,
        partition: i32,
        committed: &Committed,
        watermarks: (i64, i64),
    ) -> Result<Checkpoint, ProjectionLoopError> {
        let projector = &self.projector;
        crate::crash_point!("projection.claim.named");
        let mut client = projector.connect(LIVE).await?;
        let tx = client.transaction().await.map_err(StoreError::at("begin a claim"))?;
        // A refill may take longer than a statement of the loop.
        tx.batch_execute("set local statement_timeout = 0")
            .await
            .map_err(StoreError::at("set the claim's statement timeout"))?;
        state::check_version(&tx, projector).await?;
        let held = checkpoint::take(&tx, projector.name(), partition).await?;
        let wish = reset::open_wish(&tx, projector, partition, committed).await?;
        let start = reset::decide(held.next_offset, wish, watermarks);
        let moved = self.carry_out(&tx, start, held, watermarks).await?;
        crate::crash_point!("projection.claim.before_commit");
        let claimed = checkpoint::put(&tx, projector.name(), moved).await?;
        tx.commit().await.map_err(StoreError::at("commit a claim"))?;
        crate::crash_point!("projection.claim.after_commit");
        Ok(claimed)
    }

    async fn carry_out(
        &self,
        tx: &tokio_postgres::Transaction<'_>,
        start: Start,
        held: Checkpoint,
        (first, end): (i64, i64),
    ) -> Result<Checkpoint, ProjectionLoopError> {
        let projector = &self.projector;
        match start {
            Start::Resume => Ok(held),
            Start::Here => {
                let seq = self.seq_before(held.partition, held.next_offset, first, end)?;
                if seq <= held.seq {
                    return reset::stay(projector, tx, held).await;
                }
                reset::backward(projector, tx, held, held.next_offset, seq).await
            }
            Start::Backward { target } => {
                let seq = self.seq_before(held.partition, target, first, end)?;
                reset::backward(projector, tx, held, target, seq).await
            }
            Start::Forward { target } => {
                let seq = self.seq_before(held.partition, target, first, end)?;
                reset::forward(projector, tx, held, target, seq).await
            }
            Start::Expired { first: target } => {
                // With no event left to tell, nothing committed so far has to come from Kafka.
                let before =
                    Numbers::new(&projector.settings.kafka, &projector.topic, held.partition)?.first_from(target)?;
                let seq = match before {
                    Some(next) => next - 1,
                    None => fill::last_seq(projector, tx, held.partition).await?,
                };
                let seq = seq.max(held.seq);
                tracing::warn!(
                    projection = projector.name(),
                    partition = held.partition,
                    from_seq = held.seq,
                    to_seq = seq,
                    "Kafka dropped records that were not applied yet; their events are taken from the store"
                );
                fill::fill(projector, tx, held.partition, held.seq, seq).await?;
                Ok(Checkpoint { next_offset: target, seq, ..held })
            }
        }
    }

    /// The sequence number of the last event before `target`.
    fn seq_before(&self, partition: i32, target: i64, first: i64, end: i64) -> Result<i64, ProjectionLoopError> {
        let numbers = Numbers::new(&self.projector.settings.kafka, &self.projector.topic, partition)?;
        if target < end
            && let Some(seq) = numbers.first_from(target)?
        {
            return Ok(seq - 1);
        }
        match numbers.last(first, end)? {
            Some(seq) => Ok(seq),
            None if first == 0 && end == 0 => Ok(0),
            None => Err(ProjectionLoopError::refused(
                self.projector.name(),
                format!(
                    "the reset of partition {partition} to offset {target} cannot be placed: {} holds no record there \
                     that tells its sequence number. Reset to an offset that holds a record.",
                    peek::describe(&self.projector.topic, first, end)
                ),
            )),
        }
    }
}
