//! A read model of everything that happened: one row an event, with its public JSON.
//!
//! The state at a moment is the fold of the rows until then, by the aggregate. [`crate::api::HistoryOf`] answers.

use std::marker::PhantomData;

use serde_json::Value;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::{Plain, PlainContext, described, read_model, undescribed};
use crate::api::{HistoryEvent, HistoryOf, Problem};
use crate::engine::{Aggregate, Applied, BoundedContext, Projection, ProjectionError, ReadModel, Recorded, Rows};

/// A table of the events of a context's streams, keyed by `stream_id` and `version`.
pub struct HistoryTable<P> {
    model: ReadModel,
    context: PhantomData<P>,
}

type Event<P> = <<P as PlainContext>::Aggregate as Aggregate>::Event;

impl<P: PlainContext> HistoryTable<P> {
    /// The table `name` (snake case), of this version: raise it when events are shown in another shape than before.
    pub fn new(name: &'static str, version: i32) -> Self {
        let ddl = format!(
            "create table {name} (
                 stream_id      uuid not null,
                 version        bigint not null,
                 partition      int not null,
                 seq            bigint not null,
                 event_id       uuid not null,
                 type           text not null,
                 recorded_at    timestamptz not null,
                 command_id     uuid not null,
                 correlation_id text not null,
                 causation_id   text,
                 payload        jsonb not null,
                 primary key (stream_id, version)
             );
             comment on table {name} is 'Every event of every stream, oldest version 1';
             comment on column {name}.payload is 'The event in its newest shape, as public JSON'"
        );
        Self { model: read_model(name, version, ddl), context: PhantomData }
    }
}

impl<P: PlainContext> Projection for HistoryTable<P> {
    type Event = Event<P>;

    fn read_model(&self) -> ReadModel {
        self.model
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<Event<P>>]) -> Applied<'a> {
        Box::pin(async move {
            let row = |one: &'a Recorded<Event<P>>| {
                let name = serde_variant::to_variant_name(&one.event)
                    .map_err(|error| ProjectionError::Event(format!("the event cannot be shown: {error}")))?;
                Ok((one, name))
            };
            let mut events = batch.iter().map(row).collect::<Result<Vec<_>, ProjectionError>>()?;
            // By key: rows of one stream stay together, and a large batch walks the index once.
            events.sort_unstable_by_key(|(one, _)| (one.stream_id, one.version));
            Rows::of(&events)
                .column("stream_id", Type::UUID_ARRAY, |(one, _)| one.stream_id)
                .column("version", Type::INT8_ARRAY, |(one, _)| one.version)
                .column("partition", Type::INT4_ARRAY, |(one, _)| one.position.partition)
                .column("seq", Type::INT8_ARRAY, |(one, _)| one.position.seq)
                .column("event_id", Type::UUID_ARRAY, |(one, _)| one.event_id)
                .column("type", Type::TEXT_ARRAY, |(_, name)| *name)
                .column("recorded_at", Type::TIMESTAMPTZ_ARRAY, |(one, _)| one.recorded_at)
                .column("command_id", Type::UUID_ARRAY, |(one, _)| one.command_id)
                .column("correlation_id", Type::TEXT_ARRAY, |(one, _)| one.correlation_id.as_str())
                .column("causation_id", Type::TEXT_ARRAY, |(one, _)| one.causation_id.as_deref())
                .column("payload", Type::JSONB_ARRAY, |(one, _)| described(&one.event))
                .insert_into(tx, self.model.tables[0])
                .await
        })
    }
}

/// Where the routes read the table of this name.
pub(super) fn history_of<P: PlainContext>(table: &'static str, projection: &'static str) -> HistoryOf {
    HistoryOf { projection, table, stream_column: "stream_id", fold: fold::<P> }
}

fn fold<P: PlainContext>(events: &[HistoryEvent]) -> Result<Value, Problem> {
    let mut state = P::Aggregate::default();
    for recorded in events {
        state.evolve(&undescribed::<Event<P>>(&recorded.payload).ok_or_else(|| recorded.unreadable())?);
    }
    Ok(Plain::<P>::describe_state(&state))
}
