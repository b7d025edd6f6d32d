//! The command processor's bounds.

use serde::{Deserialize, Serialize};

/// See [`ProcessorSettings::on_lost_offsets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LostOffsets {
    /// The partition halts with an explanation; the others go on.
    Halt,
    /// The operator accepts the loss.
    Earliest,
}

/// Batching, caching, lanes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessorSettings {
    /// Workers of one process; each owns a share of the assigned partitions and one connection.
    pub workers: usize,
    /// Commands of one transaction, at most.
    pub batch_commands_max: usize,
    /// Bytes of commands of one transaction, at most.
    pub batch_bytes_max: usize,
    /// Commands that wait in memory, per worker and lane, at most.
    pub queue_commands_max: usize,
    /// Largest command value, bytes; a larger one is refused.
    pub command_bytes_max: usize,
    /// Memory of the aggregate cache of one worker, bytes, at most.
    pub cache_bytes_max: u64,
    /// A snapshot is written when this many events came after the last one.
    pub snapshot_every_events: i64,
    /// Lane weights out of a batch: priority, normal, bulk. A lane with work is never starved.
    pub lane_weights: [usize; 3],
    /// Static membership: `group.instance.id`, unique and stable per process. Empty = dynamic.
    pub instance_id: String,
    /// What to do where the next offset of a commands partition is not there any more (dropped by
    /// retention, or the topic was created again): stop that partition, or go on at the first
    /// record kept and accept the loss.
    pub on_lost_offsets: LostOffsets,
    /// First wait after a transient failure, milliseconds; doubles up to `retry_wait_max_ms`.
    pub retry_wait_ms: u64,
    /// Longest wait between retries, milliseconds.
    pub retry_wait_max_ms: u64,
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        Self {
            workers: 2,
            batch_commands_max: 2_000,
            batch_bytes_max: 4 * 1024 * 1024,
            queue_commands_max: 10_000,
            command_bytes_max: 256 * 1024,
            cache_bytes_max: 64 * 1024 * 1024,
            snapshot_every_events: 200,
            lane_weights: [70, 25, 5],
            instance_id: String::new(),
            on_lost_offsets: LostOffsets::Halt,
            retry_wait_ms: 50,
            retry_wait_max_ms: 5_000,
        }
    }
}
