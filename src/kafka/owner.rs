//! Who decides where an assigned partition starts: asked by the consumer, answered by a loop, from PostgreSQL.
//!
//! Knows no client and no thread.

use std::collections::HashMap;

use super::mailbox::Claim;
use super::record::TopicPartition;

/// What Kafka holds as committed for a partition: offset and metadata; none when nothing is.
pub type Committed = Option<(i64, String)>;

/// Decides where an assigned partition starts, and takes it over in PostgreSQL.
///
/// Called on threads made for claims, where blocking is allowed.
pub trait PartitionOwner: Send + Sync + 'static {
    /// The epoch of each partition now; asked before Kafka is asked for its commits.
    fn epochs(&self) -> Result<HashMap<i32, i64>, ClaimError> {
        Ok(HashMap::new())
    }

    /// Metadata that a commit found at Kafka is to carry before anybody acts on it; none leaves it.
    /// Equal commits of others cannot be told apart, a name of its own can. `epoch` was the
    /// partition's before the commit was read.
    fn name_for(&self, _metadata: &str, _epoch: i64) -> Option<String> {
        None
    }

    /// Claims `source`. `committed` is what Kafka holds; `watermarks` are the first offset kept and
    /// the next one to be written, read before the claim: an owner that is still at work may have
    /// gone past their end meanwhile. A claim outside fresh watermarks halts the partition.
    fn claim(&self, source: &TopicPartition, committed: Committed, watermarks: (i64, i64))
    -> Result<Claim, ClaimError>;
}

/// A claim that was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Try again: the database is away.
    #[error("{0}")]
    Transient(String),
    /// This partition stands, loudly, and is looked at again; the others go on. `cure` is the next step.
    #[error("{reason} {cure}")]
    Halt { reason: String, cure: String },
}
