//! What is promised, held against what is stored and published: by `throughline verify` for whoever asks, and by the
//! role `audit` all the time; and by `throughline whatif`, the commands of the past held against the rules of today.
//!
//! ```text
//!              seq dense, versions dense, outcomes agree ─> span ─┐
//!  PostgreSQL                                                     ├─> findings ─> verify: exit code 3
//!  Kafka       each record is its event, byte for byte ─> topic ──┘          └──> auditor: the partition stands
//!              each result is its outcome ─────────────> results                  else throughline.audits moves on
//! ```
//!
//! Reads only, beside what runs; only the auditor writes, how far it came. Shares with the pipeline the shape of its
//! tables and of its records, none of its decisions. PostgreSQL is authoritative for what happened, Kafka for what
//! others were told.

mod auditor;
mod outbox;
mod places;
mod records;
mod report;
mod results;
mod span;
mod topic;
mod verify;
mod what_if;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use auditor::{Proven, proven, run};
pub use places::Places;
pub use report::{Check, Report};
pub use verify::{Scope, Verification};
pub use what_if::{Group, WhatIf, what_if};

use crate::kafka::KafkaError;
use crate::kafka::topics::TopicNames;
use crate::process::ProcessError;
use crate::projection::ProjectionLoopError;
use crate::store::StoreError;

/// A context whose promises are held.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name.
    pub context: &'static str,
    /// Of its events' types.
    pub namespace: &'static str,
    /// What its JSON calls the id of a stream.
    pub stream_id_field: &'static str,
    /// Its topics.
    pub names: TopicNames,
}

/// Something that is not as promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The topic that it concerns; of a read table, its projection's.
    pub topic: String,
    pub partition: i32,
    /// The sequence number there, where it is known.
    pub seq: Option<i64>,
    /// The stream, where it is known.
    pub stream_id: Option<Uuid>,
    /// What is promised and what is there, for people.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)?;
        if let Some(seq) = self.seq {
            write!(f, " seq {seq}")?;
        }
        if let Some(stream) = self.stream_id {
            write!(f, " stream {stream}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What keeps an audit from being carried out. What it finds is no error.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Projection(#[from] ProjectionLoopError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The records of a partition did not come.
    #[error("{place} was not read in time: {reached} of {wanted} records since offset {from}; ask again")]
    Silent { place: String, from: i64, reached: usize, wanted: usize },
    /// What was proven cannot be kept.
    #[error("cannot {action} {path}: {reason}")]
    Places { action: &'static str, path: String, reason: String },
}
