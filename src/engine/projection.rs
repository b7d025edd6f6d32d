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
///
/// The projection's loop calls `apply` in the transaction that moves its checkpoint: rows and checkpoint move together
/// or not at all, and an event comes once to each generation of the tables. A reset or a rebuild gives all events
/// again, to empty tables; so rows may depend on events alone. [`crate::testing::project`] tries one on PostgreSQL.
///
/// ```
/// use throughline::engine::{Applied, Projection, ReadModel, Recorded};
/// use throughline::tokio_postgres::Transaction;
///
/// /// How many streams there are, by partition.
/// struct Population;
///
/// impl Projection for Population {
///     type Event = String;
///
///     fn read_model(&self) -> ReadModel {
///         ReadModel {
///             name: "population",
///             version: 1,
///             ddl: "create table population (partition int primary key, streams bigint not null)",
///             indexes: &[],
///             tables: &["population"],
///             views: &[],
///         }
///     }
///
///     fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<String>]) -> Applied<'a> {
///         Box::pin(async move {
///             let born = batch.iter().filter(|one| one.version == 1);
///             let partitions: Vec<i32> = born.map(|one| one.position.partition).collect();
///             tx.execute(
///                 "insert into population select p, count(*) from unnest($1::int[]) p group by p
///                  on conflict (partition) do update set streams = population.streams + excluded.streams",
///                 &[&partitions],
///             )
///             .await?;
///             Ok(())
///         })
///     }
/// }
/// # assert_eq!(Population.read_model().name, "population");
/// ```
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
