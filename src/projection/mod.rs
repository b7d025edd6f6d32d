//! Events topic to read tables: one loop a projection, each alone in its failure.
//!
//! A projection is a consumer group, a database role, a checkpoint row a partition and some tables.
//! Its truth is the checkpoint: it moves by compare-and-set in the transaction that changes the
//! rows, so what is applied is applied once. Kafka's committed offset only follows, and carries
//! `e=<epoch>` as metadata; Kafka's own reset tool leaves that empty, which is how a reset is told
//! from our own lag, and carried out once (`reset`).
//!
//! The rooms: `run` is the loop, `apply` one batch of it, failures included, and `transact` its transaction; `decode` turns
//! records into events; `checkpoint` is the compare-and-set, `claim` the take-over of a partition;
//! `fill` applies events from the store (a refill after a reset, a rebuild); `rebuild`, `hand_over`,
//! `switch` and `digest` make a new generation beside the live one; `park` keeps what cannot be applied
//! and `replay` brings it back; `gaps` knows what the rows of a generation leave out; `install`, `state`
//! and `offsets` are for operators; `driver` does by hand what `run` does.
//!
//! What a reset does to the rows of a partition:
//!
//! | Kafka's tool | effect |
//! |---|---|
//! | to an earlier offset (`--to-earliest`, `--to-offset`, `--to-datetime`, `--shift-by -n`) | rows cleared, refilled from the event store up to the event before that offset, then Kafka from there: the fold again |
//! | to a later offset (`--to-latest`, `--shift-by n` …) | rows stay, the events between are skipped, and recorded in `throughline.projection_resets` |
//! | to where it stands (`--to-current`) | nothing; a partition that stopped at a hole is refilled from the store and goes on |
//! | `--delete-offsets`, or offsets expired | nothing: the checkpoint holds |
//!
//! This room knows no context of ours: events come as a type parameter with their codec.

mod any;
mod apply;
mod audit;
pub mod checkpoint;
mod claim;
mod decode;
pub mod digest;
mod driver;
mod fill;
mod gaps;
mod hand_over;
mod handler;
mod install;
mod offsets;
mod park;
mod peek;
mod rebuild;
mod replay;
mod reset;
mod run;
mod setback;
mod skip;
pub mod state;
mod switch;
mod transact;

use std::sync::Arc;

pub use any::AnyProjector;
pub use audit::{Audited, Unaudited};
pub use claim::TopicView;
pub use decode::recorded;
pub use driver::Driver;
pub use install::{Installed, install};
pub use offsets::{PlannedReset, ResetTarget, reset_offsets};
pub use rebuild::{Progress, RebuildMode, RebuildReport, rebuild};
pub use replay::{ReplayedKey, RowChange, replay};
pub use run::run;
pub use skip::skip;
pub use switch::{RollbackReport, drop_previous, rollback};

use crate::engine::{EventCodec, Position, Projection};
use crate::kafka::KafkaError;
use crate::kafka::topics::TopicNames;
use crate::settings::{FailurePolicy, Settings};
use crate::store::{DatabaseRole, Line, StoreError};

/// Live generation: the schema that queries read.
pub const LIVE: &str = "read";
/// Generation that a rebuild fills.
pub const NEXT: &str = "read_next";
/// Generation kept for rollback.
pub const PREVIOUS: &str = "read_previous";

/// One projection with all it needs: what every room here works on.
pub struct Projector<E: Send + Sync + 'static> {
    pub settings: Arc<Settings>,
    pub projection: Arc<dyn Projection<Event = E>>,
    pub codec: Arc<dyn EventCodec<Event = E>>,
    /// The events topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
}

impl<E: Send + Sync + 'static> Clone for Projector<E> {
    fn clone(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            projection: self.projection.clone(),
            codec: self.codec.clone(),
            topic: self.topic.clone(),
            group: self.group.clone(),
        }
    }
}

impl<E: Send + Sync + 'static> Projector<E> {
    /// Puts a projection and its surroundings together.
    pub fn new(
        settings: Arc<Settings>,
        names: &TopicNames,
        projection: Arc<dyn Projection<Event = E>>,
        codec: Arc<dyn EventCodec<Event = E>>,
    ) -> Self {
        let (topic, group) = (names.events(), names.projection_group(projection.read_model().name));
        Self { settings, projection, codec, topic, group }
    }

    /// The projection's name.
    pub fn name(&self) -> &'static str {
        self.projection.read_model().name
    }

    fn policy(&self) -> FailurePolicy {
        self.settings.projection.policy(self.name())
    }

    fn role(&self) -> DatabaseRole {
        DatabaseRole::Projector(self.name())
    }

    /// A connection in the projection's role whose unqualified names mean `generation`.
    async fn connect(&self, generation: &str) -> Result<Line, StoreError> {
        // A statement ends before the handler's time does: then it is known who was slow.
        let (statement, handler) =
            (self.settings.database.statement_timeout_ms, self.settings.projection.apply_timeout_ms);
        let setup = format!(
            "set search_path = {generation}, pg_catalog; set statement_timeout = {};",
            statement.min(handler / 4 * 3)
        );
        crate::store::connect::connect_with(&self.settings.database, &self.role(), &setup).await
    }
}

/// What ends a projection's loop, or a command on it.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionLoopError {
    /// A step against PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A step against Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// An event that cannot be applied, where no policy covers it: in a refill, a rebuild, a replay.
    #[error(
        "projection {projection} cannot apply the event at partition {}, seq {}: {reason}. Fix the projection, or \
         discard the event by letting the live projection park it (projection.on_failure=park) and `throughline dlq discard`.",
        position.partition, position.seq
    )]
    Event { projection: &'static str, position: Position, reason: String },
    /// The operator asked for what cannot be done now; says why and what to do.
    #[error("projection {projection}: {reason}")]
    Refused { projection: String, reason: String },
}

impl ProjectionLoopError {
    fn refused(projection: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { projection: projection.into(), reason: reason.into() }
    }
}
