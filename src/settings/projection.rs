//! The projections' bounds.

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
    /// While behind, wait this long for a batch to fill, milliseconds.
    pub linger_ms: u64,
    /// Events that wait in memory, at most.
    pub queue_events_max: usize,
    /// Tries of a batch that keeps failing, before the policy is applied.
    pub retries_max: u32,
    /// First wait between tries, milliseconds; doubles up to `retry_wait_max_ms`.
    pub retry_wait_ms: u64,
    /// Longest wait between tries, milliseconds.
    pub retry_wait_max_ms: u64,
    /// What happens to an event that cannot be applied.
    pub on_failure: FailurePolicy,
}

impl Default for ProjectionSettings {
    fn default() -> Self {
        Self {
            batch_events_max: 5_000,
            linger_ms: 25,
            queue_events_max: 20_000,
            retries_max: 5,
            retry_wait_ms: 100,
            retry_wait_max_ms: 5_000,
            on_failure: FailurePolicy::Halt,
        }
    }
}
