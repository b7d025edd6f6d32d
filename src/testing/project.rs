//! A read table on a real PostgreSQL: events in, rows out.
//!
//! What comes in a batch must come out as one by one, since nobody knows where a batch ends: both are tried.

use std::collections::HashMap;

use jiff::{Timestamp, ToSpan as _};
use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use super::services::OwnDatabase;
use crate::engine::ids::Position;
use crate::engine::{Projection, ReadModel, Recorded};
use crate::settings::LoadedSettings;

/// When the first event happened; each one a second after the one before.
const FIRST: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// The rows of a read model.
#[derive(Debug, Clone, PartialEq)]
pub struct Projected {
    tables: HashMap<&'static str, Vec<Value>>,
}

impl Projected {
    /// The rows of a table as objects, in the order of their texts.
    ///
    /// # Panics
    /// The read model has no such table.
    #[track_caller]
    pub fn rows(&self, table: &str) -> &[Value] {
        self.tables.get(table).unwrap_or_else(|| panic!("the read model has no table {table}"))
    }
}

/// Applies `events`, each with its stream, to the empty tables of `projection`.
///
/// ```no_run
/// # async fn a_test(balances: impl throughline::engine::Projection<Event = i64>) {
/// let account = throughline::uuid::Uuid::from_u128(1);
/// let projected = throughline::testing::project(&balances, [(account, 5), (account, 7)]).await;
/// assert_eq!(projected.rows("balances")[0]["cents"], 12);
/// # }
/// ```
///
/// # Panics
/// Tables that cannot be made or lack their `partition`, events that are refused, and events that give other rows one
/// by one than together.
pub async fn project<P: Projection>(projection: &P, events: impl IntoIterator<Item = (Uuid, P::Event)>) -> Projected {
    let settings = LoadedSettings::load(None, &[]).unwrap_or_else(|error| panic!("{error}")).settings;
    let (model, batch) = (projection.read_model(), recorded(events));
    let database = OwnDatabase::create(&settings).await;
    let mut line = database.connect().await;
    let made = format!("create schema read; set search_path = read; {}; {}", model.ddl, model.indexes.join("; "));
    execute(&line, &made).await;
    apply(projection, &mut line, &batch).await;
    let together = rows(&line, &model).await;
    execute(&line, &format!("truncate {}", model.tables.join(", "))).await;
    for one in batch.chunks(1) {
        apply(projection, &mut line, one).await;
    }
    let one_by_one = rows(&line, &model).await;
    drop(line);
    database.drop().await;
    assert_eq!(together, one_by_one, "a batch (left) gives other rows than its events one by one (right)");
    together
}

fn recorded<E>(events: impl IntoIterator<Item = (Uuid, E)>) -> Vec<Recorded<E>> {
    let mut versions: HashMap<Uuid, i64> = HashMap::new();
    let one = |(seq, (stream_id, event)): (i64, (Uuid, E))| {
        let version = versions.entry(stream_id).or_default();
        *version += 1;
        Recorded {
            position: Position { partition: 0, seq },
            stream_id,
            version: *version,
            event_id: Uuid::from_u128(seq.unsigned_abs().into()),
            command_id: Uuid::from_u128(seq.unsigned_abs().into()),
            correlation_id: "test".into(),
            causation_id: None,
            recorded_at: FIRST + (seq - 1).seconds(),
            event,
        }
    };
    (1..).zip(events).map(one).collect()
}

async fn apply<P: Projection>(projection: &P, line: &mut Client, batch: &[Recorded<P::Event>]) {
    let tx = line.transaction().await.unwrap_or_else(|error| panic!("{error}"));
    let applied = projection.apply(&tx, batch).await;
    applied.unwrap_or_else(|error| panic!("{} does not apply: {error}", projection.read_model().name));
    tx.commit().await.unwrap_or_else(|error| panic!("{error}"));
}

async fn rows(line: &Client, model: &ReadModel) -> Projected {
    let mut tables = HashMap::new();
    for table in model.tables {
        let query = format!("select to_jsonb(t), t.partition from {table} t order by to_jsonb(t)::text");
        let rows = line.query(&query, &[]).await.unwrap_or_else(|error| panic!("table {table}: {error:?}"));
        tables.insert(*table, rows.iter().map(|row| row.get(0)).collect());
    }
    Projected { tables }
}

async fn execute(line: &Client, statements: &str) {
    line.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}
