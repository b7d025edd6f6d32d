//! Kafka: clients, the consumer thread, the producer, topics, headers.
//!
//! Delivery here is at least once and nothing more: PostgreSQL decides what counts (design
//! decision D1). This room knows no context of ours and no SQL.

mod claiming;
mod claims;
pub mod client;
mod committed;
pub mod consumer;
pub mod ends;
pub mod headers;
mod lane;
pub mod mailbox;
mod membership;
mod owner;
pub mod peek;
mod poller;
pub mod probe;
mod rebalance;
pub mod record;
pub mod record_headers;
pub mod shares;
mod stalls;
pub mod tended;
pub mod topic_id;
pub mod topics;
pub mod voice;
pub mod watermarks;

pub use consumer::{Consumer, ConsumerOptions, PartitionOwner};
pub use lane::Lane;
pub use mailbox::{Batch, Claim, Mailbox};
pub use peek::Peek;
pub use record::{HeaderFault, Record, TopicPartition};
pub use record_headers::RecordHeaders;
pub use tended::Tended;

/// A step against Kafka that failed.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// No broker answered.
    #[error(
        "cannot reach Kafka at {brokers}: {reason}. Check KAFKA_BROKERS, or start one with `throughline dev up --detach`."
    )]
    Connect { brokers: String, reason: String },
    /// A client refused its options.
    #[error("Kafka settings: {0}")]
    Settings(String),
    /// A topic does not fit.
    #[error("{0}")]
    Topic(String),
    /// A request failed; `step` names it.
    #[error("{step}: {source}")]
    Request { step: &'static str, source: rdkafka::error::KafkaError },
    /// The client cannot go on and has to be made anew, usually by restarting the process.
    #[error("{0}")]
    Fatal(String),
}

impl KafkaError {
    /// Wraps a client error with the step it happened in.
    pub fn at(step: &'static str) -> impl FnOnce(rdkafka::error::KafkaError) -> Self {
        move |source| Self::Request { step, source }
    }
}
