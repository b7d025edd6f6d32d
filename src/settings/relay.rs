//! The relay's bounds.

use serde::{Deserialize, Serialize};

/// Leases, batches and polling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySettings {
    /// A lease that is not renewed for this long is up for others, milliseconds.
    pub lease_ms: u64,
    /// Rows read for one partition by one query, at most.
    pub batch_rows_max: i64,
    /// Records handed to the producer and not yet acknowledged, at most. Each partition has its share.
    pub in_flight_max: usize,
    /// Bytes of values handed to the producer and not yet acknowledged, at most, roughly.
    pub in_flight_bytes_max: usize,
    /// Shortest wait between polls of an idle outbox, milliseconds.
    pub poll_min_ms: u64,
    /// Longest wait between polls of an idle outbox, milliseconds.
    pub poll_max_ms: u64,
    /// While busy, wait this long for a batch to fill, milliseconds.
    pub linger_ms: u64,
    /// A partition that was stopped is looked at again after this long, milliseconds.
    pub halt_retry_ms: u64,
    /// A partition that Kafka has not answered for this long is told as standing, milliseconds.
    pub silence_ms: u64,
    /// Topics, comma separated, whose lost records are accepted: a topic that holds less than was
    /// published (created anew, truncated) is otherwise refused. Its readers see a hole.
    pub accept_lost_records_of: String,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            lease_ms: 5_000,
            batch_rows_max: 4_000,
            in_flight_max: 20_000,
            in_flight_bytes_max: 64 * 1024 * 1024,
            poll_min_ms: 1,
            poll_max_ms: 10,
            linger_ms: 10,
            halt_retry_ms: 30_000,
            silence_ms: 5_000,
            accept_lost_records_of: String::new(),
        }
    }
}
