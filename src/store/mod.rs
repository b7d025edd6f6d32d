//! PostgreSQL: connections, migrations, and what more than one loop asks of the store.
//!
//! The database is the arbiter of every promise: order, fencing, idempotency. This room knows no
//! Kafka, no Avro and no context of ours. Statements that only one loop uses live beside that loop.

pub mod commands;
pub mod connect;
pub mod dead_letters;
pub mod destinations;
pub mod events;
pub mod migrate;
pub mod partitions;
pub mod roles;

pub use connect::{Database, DatabaseRole};
pub use dead_letters::DeadLetter;
pub use destinations::Destination;

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
    /// The database's schema and this program do not fit.
    #[error("{0}")]
    Schema(String),
}

impl StoreError {
    /// Wraps a driver error with the step it happened in.
    pub fn at(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Statement { step, source }
    }

    /// Whether trying again later can help: the server is away, restarting, or gave up a lock wait.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Statement { source, .. } => is_transient(source),
            Self::Settings(_) | Self::Schema(_) => false,
        }
    }
}

/// Whether a driver error is about the connection or a conflict rather than about the statement.
pub fn is_transient(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        // No SQLSTATE: the connection broke, unless a value did not fit its column.
        None => !error.to_string().starts_with("error serializing") && !error.to_string().starts_with("error deserial"),
        // 08 connection, 40 rollback, 53 resources, 55 lock not available, 57 operator intervention,
        // 25P03 idle transaction ended, 23514 a row without a time partition: maintenance is late.
        Some(code) => {
            ["08", "40", "53", "55", "57", "25P03", "23514"].iter().any(|class| code.code().starts_with(class))
        }
    }
}

/// Whether a row has a time for which there is no partition. A check that a row breaks has the same code, and a
/// name.
pub fn is_without_partition(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.code().code() == "23514" && db.constraint().is_none())
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
