//! The audit's bounds.

use serde::{Deserialize, Serialize};

/// What the role `audit` may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSettings {
    /// Events that it looks at a second, in the store and on the topic, at most.
    pub events_per_second: u64,
    /// New events are looked for this often, milliseconds.
    pub poll_ms: u64,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { events_per_second: 5_000, poll_ms: 1_000 }
    }
}
