//! Taking over an assigned partition: the checkpoint is locked, a reset carried out, the epoch raised.
//!
//! Runs on the consumer's thread, in a transaction of its own. Whoever claimed before is fenced off
//! from the moment it commits.

use std::collections::HashMap;

use tokio_postgres::Transaction;

use super::checkpoint::{self, Checkpoint};
use super::peek::Numbers;
use super::reset::{self, Start};
use super::{LIVE, ProjectionLoopError, Projector, fill, gaps, state};
use crate::kafka::consumer::{ClaimError, Committed, PartitionOwner};
use crate::kafka::{Claim, KafkaError, TopicPartition};
use crate::store::{StoreError, bounded, while_served};

/// Claims partitions for one projection.
pub(super) struct CheckpointOwner<E: Send + Sync + 'static> {
    pub projector: Projector<E>,
}

impl<E: Send + Sync + 'static> PartitionOwner for CheckpointOwner<E> {
    fn epochs(&self) -> Result<HashMap<i32, i64>, ClaimError> {
        let rows = run(async {
            let client = self.projector.connect(LIVE).await?;
            let limit = self.projector.settings.database.round_trip();
            let read = checkpoint::load(&*client, self.projector.name(), LIVE);
            Ok(bounded(limit, "read the epochs", read).await?)
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
        let held = run(self.claim_on_topic(source.partition, &committed, watermarks))?;
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
        // What names the data here was said by the handler, in a refill, and came as the event's.
        ProjectionLoopError::Store(error) => ClaimError::Transient(error.to_string()),
        ProjectionLoopError::Kafka(error) => ClaimError::Transient(error.to_string()),
        error => ClaimError::Halt {
            reason: error.to_string(),
            cure: "Mend what the reason names; it is tried again.".into(),
        },
    }
}

/// What a claim knows of its partition on the topic.
pub struct TopicView<'a> {
    /// The first offset kept, and the next one to be written.
    pub kept: (i64, i64),
    /// Kafka's id of the topic; none where it gives none.
    pub topic_id: Option<String>,
    /// The number of the last event before an offset; none where no record tells.
    pub seq_before: &'a (dyn Fn(i64) -> Result<Option<i64>, KafkaError> + Send + Sync),
}

impl<E: Send + Sync + 'static> CheckpointOwner<E> {
    async fn claim_on_topic(
        &self,
        partition: i32,
        committed: &Committed,
        kept: (i64, i64),
    ) -> Result<Checkpoint, ProjectionLoopError> {
        let projector = &self.projector;
        let peek = Numbers::new(&projector.settings.kafka, &projector.topic, partition)?;
        let view = TopicView { kept, topic_id: peek.topic_id()?, seq_before: &|offset| peek.seq_before(offset, kept) };
        self.claim_checkpoint(partition, committed, &view).await
    }

    /// The claim, in a transaction of its own.
    pub(super) async fn claim_checkpoint(
        &self,
        partition: i32,
        committed: &Committed,
        view: &TopicView<'_>,
    ) -> Result<Checkpoint, ProjectionLoopError> {
        let projector = &self.projector;
        crate::crash_point!("projection.claim.named");
        let mut client = projector.connect(LIVE).await?;
        let limit = projector.settings.database.round_trip();
        let begun = async { client.transaction().await.map_err(StoreError::at("begin a claim")) };
        let tx = bounded(limit, "begin a claim", begun).await?;
        let locked = async {
            let taken = checkpoint::take(&tx, projector.name(), partition).await?;
            // Asked under the lock: a switch to tables of another version waits for it, or is seen.
            state::check_version(&tx, projector).await?;
            Ok::<_, ProjectionLoopError>(taken)
        };
        let (held, topic_id) = bounded(limit, "lock a claim", locked).await?;
        // A refill may take longer than a statement of the loop.
        let step = "set the claim's statement timeout";
        let unhurried = async {
            let set = tx.batch_execute("set local statement_timeout = 0");
            let ((), row) = futures_util::try_join!(set, tx.query_one("select pg_backend_pid()", &[]))
                .map_err(StoreError::at(step))?;
            Ok::<i32, StoreError>(row.get(0))
        };
        let pid = bounded(limit, step, unhurried).await?;
        let is_known = topic_id.is_none() || view.topic_id.is_none() || topic_id == view.topic_id;
        let is_there = is_known && held.next_offset <= view.kept.1;
        let placed = async {
            let held = if is_there { held } else { self.find(&tx, held, view).await? };
            let wish = reset::open_wish(&tx, projector, partition, committed).await?;
            let start = reset::decide(held.next_offset, wish, view.kept);
            let moved = self.carry_out(&tx, start, held, view).await?;
            match gaps::holds_discarded(&tx, projector.name(), &projector.group, partition, moved.seq).await? {
                true => reset::refill(projector, &tx, moved).await,
                false => Ok(moved),
            }
        };
        let moved = while_served(limit, "carry out a claim", pid, || projector.connect(LIVE), placed).await?;
        crate::crash_point!("projection.claim.before_commit");
        let finished = async {
            let claimed = checkpoint::put(&tx, projector.name(), moved, view.topic_id.as_deref()).await?;
            tx.commit().await.map_err(StoreError::at("commit a claim"))?;
            Ok::<_, StoreError>(claimed)
        };
        let claimed = bounded(limit, "commit a claim", finished).await?;
        crate::crash_point!("projection.claim.after_commit");
        Ok(claimed)
    }

    async fn carry_out(
        &self,
        tx: &Transaction<'_>,
        start: Start,
        held: Checkpoint,
        view: &TopicView<'_>,
    ) -> Result<Checkpoint, ProjectionLoopError> {
        let projector = &self.projector;
        match start {
            Start::Resume => Ok(held),
            Start::Here => {
                let seq = self.seq_before(tx, held.partition, held.next_offset, view).await?;
                if seq <= held.seq {
                    return reset::stay(projector, tx, held).await;
                }
                reset::backward(projector, tx, held, held.next_offset, seq).await
            }
            Start::Backward { target } => {
                let seq = self.seq_before(tx, held.partition, target, view).await?;
                reset::backward(projector, tx, held, target, seq).await
            }
            Start::Forward { target } => {
                let seq = self.seq_before(tx, held.partition, target, view).await?;
                reset::forward(projector, tx, held, target, seq).await
            }
            Start::Expired { first } => {
                let seq = self.seq_before(tx, held.partition, first, view).await?;
                self.catch_up(tx, Checkpoint { next_offset: first, ..held }, seq).await
            }
        }
    }

    /// The place of `held` on a topic that was made anew, or cut short: its offset means nothing there, its
    /// seq does. What the topic does not hold any more comes from the store.
    async fn find(
        &self,
        tx: &Transaction<'_>,
        held: Checkpoint,
        view: &TopicView<'_>,
    ) -> Result<Checkpoint, ProjectionLoopError> {
        let (first, end) = view.kept;
        let before = self.seq_before(tx, held.partition, first, view).await?;
        // Where each number stands there once, it is here; else further on, and what comes twice is passed over.
        let guess = (first + (held.seq - before).max(0)).min(end);
        let fits = (view.seq_before)(guess)?.is_some_and(|seq| seq <= held.seq);
        let next_offset = if fits { guess } else { first };
        tracing::warn!(
            projection = self.projector.name(),
            partition = held.partition,
            seq = held.seq,
            from_offset = held.next_offset,
            to_offset = next_offset,
            "the topic is another one, or was cut short; the projection goes on by seq"
        );
        self.catch_up(tx, Checkpoint { next_offset, ..held }, before).await
    }

    /// Brings the rows to `seq`, unless they are further.
    async fn catch_up(
        &self,
        tx: &Transaction<'_>,
        held: Checkpoint,
        seq: i64,
    ) -> Result<Checkpoint, ProjectionLoopError> {
        if seq <= held.seq {
            return Ok(held);
        }
        tracing::warn!(
            projection = self.projector.name(),
            partition = held.partition,
            from_seq = held.seq,
            to_seq = seq,
            "the topic does not hold what was not applied yet; those events are taken from the store"
        );
        fill::fill_live(&self.projector, tx, held.partition, held.seq, seq, "fill").await?;
        Ok(Checkpoint { seq, ..held })
    }

    /// The sequence number of the last event before `target`. Where no record tells, nothing is kept there
    /// of what was published.
    async fn seq_before(
        &self,
        tx: &Transaction<'_>,
        partition: i32,
        target: i64,
        view: &TopicView<'_>,
    ) -> Result<i64, ProjectionLoopError> {
        match (view.seq_before)(target)? {
            Some(seq) => Ok(seq),
            None => Ok(checkpoint::published(tx, &self.projector.topic, partition).await?),
        }
    }
}
