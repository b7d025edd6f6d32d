//! The process managers' bounds.

use serde::{Deserialize, Serialize};

/// Batches, waits and sending of every process manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSettings {
    /// Records of one transaction, at most.
    pub batch_records_max: usize,
    /// Bytes of records of one transaction, at most.
    pub batch_bytes_max: usize,
    /// Records that wait in memory, at most.
    pub queue_records_max: usize,
    /// Bytes that wait in memory, at most.
    pub queue_bytes_max: usize,
    /// First wait between tries, milliseconds; doubles up to `retry_wait_max_ms`.
    pub retry_wait_ms: u64,
    /// Longest wait between tries, milliseconds.
    pub retry_wait_max_ms: u64,
    /// Deadlines, pause and commands of other processes are looked for this often, milliseconds: a deadline is late by
    /// as much at most, while all goes well.
    pub poll_ms: u64,
    /// Deadlines of one transaction, at most.
    pub deadlines_max: i64,
    /// Commands produced and not acknowledged, at most.
    pub in_flight_max: usize,
}

impl Default for ProcessSettings {
    fn default() -> Self {
        Self {
            batch_records_max: 1_000,
            batch_bytes_max: 4 * 1024 * 1024,
            queue_records_max: 5_000,
            queue_bytes_max: 16 * 1024 * 1024,
            retry_wait_ms: 100,
            retry_wait_max_ms: 5_000,
            poll_ms: 250,
            deadlines_max: 500,
            in_flight_max: 1_000,
        }
    }
}
