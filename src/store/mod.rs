//! PostgreSQL: connections, migrations, and what more than one loop asks of the store.
//!
//! The database is the arbiter of every promise: order, fencing, idempotency. This room knows no
//! Kafka, no Avro and no context of ours. Statements that only one loop uses live beside that loop.

pub mod blame;
pub mod commands;
pub mod connect;
pub mod dead_letters;
pub mod destinations;
mod dial;
pub mod events;
mod extent;
pub mod migrate;
mod pace;
pub mod partitions;
mod pool;
pub mod roles;

pub use blame::{Blame, blame};
pub use connect::{DatabaseRole, Line, bounded, ping, while_served};
pub use dead_letters::DeadLetter;
pub use destinations::Destination;
pub use extent::Extent;
pub use pace::Pace;
pub use pool::{Database, Pooled};

use std::time::Duration;

use tokio_postgres::error::SqlState;

/// A step against PostgreSQL that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL or the TLS material cannot be used.
    #[error("database settings: {0}")]
    Settings(String),
    /// No connection: refused, wrong password, no such database, or the wait ran out.
    #[error("cannot connect to PostgreSQL at {target}: {reason}. {next_step}")]
    Connect { target: String, reason: String, next_step: &'static str },
    /// A statement failed; `step` names what it was for.
    #[error("{step}: {}", describe(.source))]
    Statement { step: &'static str, source: tokio_postgres::Error },
    /// No answer: the network or the server has gone silent, or it was too much for the time.
    #[error("{step}: no answer within {waited:?}")]
    Silent { step: &'static str, waited: Duration },
    /// The database's schema and this program do not fit.
    #[error("{0}")]
    Schema(String),
    /// The context whose topic this is was never installed in this database.
    #[error("topic {0} is not known to the database. Run `throughline db apply`.")]
    UnknownTopic(String),
}

impl StoreError {
    /// Wraps a driver error with the step it happened in.
    pub fn at(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Statement { step, source }
    }

    /// Whose fault it is; see [`blame()`].
    pub fn blame(&self) -> Blame {
        match self {
            Self::Statement { source, .. } => blame(source),
            Self::Silent { .. } => Blame::Extent,
            Self::Connect { .. } | Self::Settings(_) | Self::Schema(_) | Self::UnknownTopic(_) => Blame::World,
        }
    }

    /// Whether a row has a time for which there is no partition.
    pub fn is_without_partition(&self) -> bool {
        matches!(self, Self::Statement { source, .. } if blame::is_without_partition(source))
    }

    /// Whether it waited for a lock in vain.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Statement { source, .. } if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }

    /// Whether trying again later can help without anybody changing this program, its settings or the data.
    pub fn heals(&self) -> bool {
        !matches!(self, Self::Settings(_) | Self::Schema(_)) && self.blame() != Blame::Data
    }
}

/// The server's own message where there is one; the driver's `Display` hides it.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let next_step = match db.code().code() {
                "3F000" | "42P01" => "; run `throughline db apply`",
                _ => "",
            };
            let detail = db.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("{} ({}){detail}{next_step}", db.message(), db.code().code())
        }
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
