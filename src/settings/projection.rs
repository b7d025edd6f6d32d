//! The projections' bounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a projection does with an event that it cannot apply, once retries are used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailurePolicy {
    /// Stop the partition, loudly. Nothing is skipped.
    #[default]
    Halt,
    /// Park the event and every later event of its key; other keys flow on.
    Park,
}

/// Batches and failure policy of every projection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectionSettings {
    /// Events of one transaction, at most.
    pub batch_events_max: usize,
    /// Bytes of events of one transaction, at most.
    pub batch_bytes_max: usize,
    /// While behind, wait this long for a batch to fill, milliseconds.
    pub linger_ms: u64,
    /// Events that wait in memory, at most.
    pub queue_events_max: usize,
    /// Bytes that wait in memory, at most.
    pub queue_bytes_max: usize,
    /// Tries of an event that keeps failing, before the policy is applied.
    pub retries_max: u32,
    /// First wait between tries, milliseconds; doubles up to `retry_wait_max_ms`.
    pub retry_wait_ms: u64,
    /// Longest wait between tries, milliseconds.
    pub retry_wait_max_ms: u64,
    /// A handler that takes longer than this for one batch has failed, milliseconds.
    pub apply_timeout_ms: u64,
    /// What happens to an event that cannot be applied.
    pub on_failure: FailurePolicy,
    /// The same for single projections, by name; wins over `on_failure`.
    pub policies: BTreeMap<String, FailurePolicy>,
    /// Pause, version and lag are looked at this often, milliseconds.
    pub state_poll_ms: u64,
    /// Events of one transaction of a rebuild or refill, at most. With `rebuild_chunk_bytes` it bounds
    /// the memory that each worker takes: a few times the bytes.
    pub rebuild_chunk_events: i64,
    /// Bytes of encoded events of one transaction of a rebuild or refill, roughly at most.
    pub rebuild_chunk_bytes: usize,
    /// Partitions that a rebuild fills at a time; each takes a connection.
    pub rebuild_workers: usize,
    /// The tables before a rebuild or rollback are kept this long for `projection rollback`, hours;
    /// then they are dropped. 0 drops them within a minute.
    pub keep_previous_hours: u32,
}

impl ProjectionSettings {
    /// The policy of one projection.
    pub fn policy(&self, projection: &str) -> FailurePolicy {
        self.policies.get(projection).copied().unwrap_or(self.on_failure)
    }
}

impl Default for ProjectionSettings {
    fn default() -> Self {
        Self {
            batch_events_max: 5_000,
            batch_bytes_max: 16 * 1024 * 1024,
            linger_ms: 25,
            queue_events_max: 20_000,
            queue_bytes_max: 64 * 1024 * 1024,
            retries_max: 5,
            retry_wait_ms: 100,
            retry_wait_max_ms: 5_000,
            apply_timeout_ms: 20_000,
            on_failure: FailurePolicy::Halt,
            policies: BTreeMap::new(),
            state_poll_ms: 1_000,
            rebuild_chunk_events: 50_000,
            rebuild_chunk_bytes: 16 * 1024 * 1024,
            rebuild_workers: 2,
            keep_previous_hours: 72,
        }
    }
}
