//! What the author of a read table writes: names, tables, and a batch of events turned into rows.

use futures_util::future::BoxFuture;
use tokio_postgres::Transaction;

use super::event::Recorded;

/// What a projection builds. Tables and views are named unqualified: the schema is the search path's first.
///
/// Every table has a column `partition int not null`, so that one Kafka partition can be cleared and
/// replayed without touching the others.
#[derive(Debug, Clone, Copy)]
pub struct ReadModel {
    /// Kebab case; names the consumer group, the database role and the `projection:NAME` role.
    pub name: &'static str,
    /// Raised when the tables change shape: the live tables then wait for a rebuild by command.
    pub version: i32,
    /// DDL of its tables with their keys, and views.
    pub ddl: &'static str,
    /// DDL of secondary indexes. A rebuild makes them after its tables are filled.
    pub indexes: &'static [&'static str],
    /// Tables it owns. Each is cleared per partition on a reset.
    pub tables: &'static [&'static str],
    /// Views over its tables; they move with the tables when generations switch.
    pub views: &'static [&'static str],
}

/// A read model fed from an events topic by its own consumer group, role and checkpoint.
pub trait Projection: Send + Sync + 'static {
    /// The newest shape of the events it folds.
    type Event: Send + Sync + 'static;

    /// What it builds; always the same.
    fn read_model(&self) -> ReadModel;

    /// Applies a batch, in order within each partition, as set-based changes in `tx`, collapsing
    /// changes to one row within the batch. Names tables unqualified. Never commits.
    ///
    /// A rebuild calls it with batches of tens of thousands of events of one partition; what is inserted
    /// by [`super::Rows`] is written by COPY then.
    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<Self::Event>]) -> Applied<'a>;
}

/// The end of [`Projection::apply`].
pub type Applied<'a> = BoxFuture<'a, Result<(), ProjectionError>>;

/// A failure of [`Projection::apply`].
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// PostgreSQL refused a statement.
    #[error("database: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// The event at hand cannot be applied; names why.
    #[error("{0}")]
    Event(String),
}

/// The server's own message: the driver's `Display` hides it.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
    }
}
