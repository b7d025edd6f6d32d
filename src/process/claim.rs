//! Taking over an assigned partition of a process: its epoch is raised, whoever had it is fenced off.
//!
//! Runs on a thread made for claims. PostgreSQL is authoritative; Kafka is only asked what it keeps.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{Managed, checkpoint};
use crate::engine::ProcessManager;
use crate::kafka::consumer::{ClaimError, Committed, PartitionOwner};
use crate::kafka::{Claim, Peek, TopicPartition};
use crate::store::bounded;

/// Claims the partitions of one process.
pub(super) struct CheckpointOwner<P: ProcessManager> {
    pub managed: Arc<Managed<P>>,
    /// Asks for a topic's id beside the group's own client.
    pub peek: Peek,
    /// Runs the claims.
    pub runtime: Handle,
}

impl<P: ProcessManager> PartitionOwner for CheckpointOwner<P> {
    fn claim(&self, source: &TopicPartition, _: Committed, kept: (i64, i64)) -> Result<Claim, ClaimError> {
        let topic_id = self.peek.topic_id(&source.topic).map_err(|error| ClaimError::Transient(error.to_string()))?;
        let limit = self.managed.settings.database.round_trip();
        let taken = self.runtime.block_on(async {
            let client = self.managed.connect().await?;
            let taken = checkpoint::take(&client, P::NAME, source, kept, topic_id.as_deref());
            bounded(limit, "claim a partition of a process", taken).await
        });
        crate::crash_point!("process.claimed");
        // A claim carries no data: whatever refuses it is the world's.
        let held = taken.map_err(|error| ClaimError::Transient(error.to_string()))?;
        Ok(Claim { epoch: held.epoch, next_offset: held.next_offset, seq: held.seq })
    }
}
