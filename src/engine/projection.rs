//! What the author of a read table writes: names, tables, and a batch of events turned into rows.

use futures_util::future::BoxFuture;
use tokio_postgres::Transaction;

use super::event::Recorded;

/// A read model fed from an events topic by its own consumer group, role and checkpoint.
///
/// Every table of a projection has a column `partition int not null`, so that one Kafka partition
/// can be cleared and replayed without touching the others.
pub trait Projection: Send + Sync + 'static {
    /// The newest shape of the events it folds.
    type Event: Send + Sync + 'static;

    /// Kebab case; names the consumer group, the database role and the `projection:NAME` role.
    fn name(&self) -> &'static str;

    /// Raised when the tables change shape: the live tables then wait for a rebuild by command.
    fn version(&self) -> i32;

    /// DDL of its tables with their keys, and views, unqualified: the schema is the search path's first.
    fn ddl(&self) -> &'static str;

    /// DDL of secondary indexes, unqualified. A rebuild makes them after its tables are filled.
    fn indexes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Tables it owns, unqualified. Each is cleared per partition on a reset.
    fn tables(&self) -> &'static [&'static str];

    /// Views over its tables, unqualified; they move with the tables when generations switch.
    fn views(&self) -> &'static [&'static str] {
        &[]
    }

    /// Applies a batch, in order within each partition, as set-based changes in `tx`, collapsing
    /// changes to one row within the batch. Names tables unqualified. Never commits.
    ///
    /// A rebuild calls it with batches of tens of thousands of events of one partition; what is inserted
    /// by [`super::Rows`] is written by COPY then.
    fn apply<'a>(
        &'a self,
        tx: &'a Transaction<'a>,
        batch: &'a [Recorded<Self::Event>],
    ) -> BoxFuture<'a, Result<(), ProjectionError>>;
}

/// A failure of [`Projection::apply`].
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// PostgreSQL refused a statement.
    #[error("database: {0}")]
    Database(#[from] tokio_postgres::Error),
    /// The event at hand cannot be applied; names why.
    #[error("{0}")]
    Event(String),
}
