//! A read model that needs no SQL: one row a stream, with the state that its events fold to.

use std::collections::HashMap;
use std::marker::PhantomData;

use serde::Serialize;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{PlainContext, read_model};
use crate::engine::{Aggregate, Applied, Projection, ProjectionError, ReadModel, Recorded, Rows};

/// A table of a context's states: `stream_id`, `version`, `state` (jsonb, as serde writes it) and when it changed.
pub struct StateTable<P> {
    model: ReadModel,
    context: PhantomData<P>,
}

/// The state of one stream after a batch.
struct Row {
    stream_id: Uuid,
    partition: i32,
    version: i64,
    state: serde_json::Value,
    updated_at: jiff::Timestamp,
}

impl<P: PlainContext> StateTable<P> {
    /// The table `name` (snake case), of this version: raise it when the shape of the state changes.
    pub fn new(name: &'static str, version: i32) -> Self {
        let ddl = format!(
            "create table {name} (
                 stream_id  uuid primary key,
                 partition  int not null,
                 version    bigint not null,
                 state      jsonb not null,
                 updated_at timestamptz not null
             ) with (fillfactor = 85);
             comment on table {name} is 'One row a stream: the state that its events come to'"
        );
        Self { model: read_model(name, version, ddl), context: PhantomData }
    }

    async fn fold(&self, tx: &Transaction<'_>, batch: &[Recorded<Event<P>>]) -> Result<Vec<Row>, ProjectionError> {
        let table = self.model.tables[0];
        let mut ids: Vec<Uuid> = batch.iter().map(|one| one.stream_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let known = tx
            .query_typed(
                &format!("select stream_id, state from {table} where stream_id = any($1)"),
                &[(&ids, Type::UUID_ARRAY)],
            )
            .await?;
        let mut states: HashMap<Uuid, P::Aggregate> = HashMap::with_capacity(ids.len());
        for row in known {
            let state = serde_json::from_value(row.get(1)).map_err(|error| {
                ProjectionError::Event(format!("the state kept in {table} cannot be read: {error}"))
            })?;
            states.insert(row.get(0), state);
        }
        let mut last: HashMap<Uuid, &Recorded<Event<P>>> = HashMap::with_capacity(ids.len());
        for one in batch {
            states.entry(one.stream_id).or_default().evolve(&one.event);
            last.insert(one.stream_id, one);
        }
        let row = |(stream_id, one): (Uuid, &Recorded<Event<P>>)| {
            Ok(Row {
                stream_id,
                partition: one.position.partition,
                version: one.version,
                state: json_of(states.get(&stream_id))?,
                updated_at: one.recorded_at,
            })
        };
        let mut rows = last.into_iter().map(row).collect::<Result<Vec<_>, ProjectionError>>()?;
        rows.sort_unstable_by_key(|row| row.stream_id);
        Ok(rows)
    }
}

type Event<P> = <<P as PlainContext>::Aggregate as Aggregate>::Event;

fn json_of(state: impl Serialize) -> Result<serde_json::Value, ProjectionError> {
    serde_json::to_value(state).map_err(|error| ProjectionError::Event(format!("the state cannot be written: {error}")))
}

impl<P: PlainContext> Projection for StateTable<P> {
    type Event = Event<P>;

    fn read_model(&self) -> ReadModel {
        self.model
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<Event<P>>]) -> Applied<'a> {
        Box::pin(async move {
            let rows = self.fold(tx, batch).await?;
            let statement = format!(
                "insert into {} (stream_id, partition, version, state, updated_at) select * from {{rows}}
                 on conflict (stream_id) do update
                 set version = excluded.version, state = excluded.state, updated_at = excluded.updated_at",
                self.model.tables[0]
            );
            Rows::of(&rows)
                .column("stream_id", Type::UUID_ARRAY, |row| row.stream_id)
                .column("partition", Type::INT4_ARRAY, |row| row.partition)
                .column("version", Type::INT8_ARRAY, |row| row.version)
                .column("state", Type::JSONB_ARRAY, |row| &row.state)
                .column("updated_at", Type::TIMESTAMPTZ_ARRAY, |row| row.updated_at)
                .run(tx, &statement)
                .await
        })
    }
}
