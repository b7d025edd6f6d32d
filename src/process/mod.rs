//! Process managers: events, outcomes and deadlines in, commands and deadlines out.
//!
//! What an instance was told, its state, its deadlines, its commands and the checkpoints of the records that told it
//! move in one PostgreSQL transaction, under the lock of the instance's row. So each input is handled once, whatever
//! dies when, and whatever comes again.
//!
//! Commands are produced after that commit ([`send`]), from a table of the process's own and not by the relay: the
//! relay finds its place by the last record of a topic that it alone writes, where commands topics are written by
//! everybody. What was produced and not marked is produced again; its id follows from process, instance, cause and
//! ordinal, and counts once in its stream.
//!
//! The rooms: `run` is the loop, `apply` one batch of it and `transact` its transaction; `read` turns records into
//! inputs; `ledger` is what a transaction does to instances, whatever the input came from; `claim` takes a partition
//! over, `checkpoint` is the compare-and-set; `deadline` fires; `send` produces; `park` keeps what cannot be handled,
//! `retry` brings it back, and `reset` handles everything again; `state` is for operators, and
//! `audit` holds instances against their inputs.
//!
//! This room knows no context: events come through readers that the application binds to the contexts it hosts.

mod apply;
mod audit;
mod checkpoint;
mod claim;
mod deadline;
mod ledger;
mod park;
mod read;
mod registration;
mod reset;
mod retry;
mod run;
mod send;
pub mod state;
mod transact;

use std::collections::HashMap;
use std::sync::Arc;

pub use audit::Fault;
pub use registration::{AnyProcess, Codecs, OpenProcess, Process};
pub use reset::ResetReport;
pub use retry::RetryReport;

use crate::engine::ProcessManager;
use crate::kafka::KafkaError;
use crate::settings::Settings;
use crate::store::{DatabaseRole, Line, StoreError};
use read::Feed;

/// A process manager with all it needs: what every room here works on.
struct Managed<P: ProcessManager> {
    settings: Arc<Settings>,
    process: P,
    /// The consumer group.
    group: String,
    /// What it reads, by topic.
    feeds: HashMap<String, Feed<P::Event>>,
}

impl<P: ProcessManager> Managed<P> {
    /// A connection in the process managers' role.
    async fn connect(&self) -> Result<Line, StoreError> {
        crate::store::connect::connect_with(&self.settings.database, &DatabaseRole::Process, "").await
    }
}

/// What ends the loop of a process manager, or a command on it.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A step against PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A step against Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// It was not put together as it should be.
    #[error("process {process}: {reason}")]
    Registration { process: &'static str, reason: String },
}
