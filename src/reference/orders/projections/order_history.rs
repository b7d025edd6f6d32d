//! `order_history`: every event of every order with its public payload, for audit.

use tokio_postgres::Transaction;
use tokio_postgres::types::{Json, Type};

use crate::orders::domain::OrderEvent;
use crate::orders::public_json::PublicEvent;
use throughline::engine::{Applied, Projection, ReadModel, Recorded, Rows};

/// The history of the orders.
pub(super) struct OrderHistory;

impl Projection for OrderHistory {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: "order-history",
            version: 1,
            ddl: "create table order_history (
                 order_id       uuid not null,
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
                 primary key (order_id, version)
             );
             comment on table order_history is 'Every event of every order, oldest version 1';
             comment on column order_history.payload is 'The event in its newest shape, as public JSON'",
            indexes: &[],
            tables: &["order_history"],
            views: &[],
        }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(async move {
            // By key: rows of one order stay together, and a large batch walks the index once.
            let mut events: Vec<&Recorded<OrderEvent>> = batch.iter().collect();
            events.sort_unstable_by_key(|e| (e.stream_id, e.version));
            Rows::of(&events)
                .column("order_id", Type::UUID_ARRAY, |e| e.stream_id)
                .column("version", Type::INT8_ARRAY, |e| e.version)
                .column("partition", Type::INT4_ARRAY, |e| e.position.partition)
                .column("seq", Type::INT8_ARRAY, |e| e.position.seq)
                .column("event_id", Type::UUID_ARRAY, |e| e.event_id)
                .column("type", Type::TEXT_ARRAY, |e| e.event.type_name())
                .column("recorded_at", Type::TIMESTAMPTZ_ARRAY, |e| e.recorded_at)
                .column("command_id", Type::UUID_ARRAY, |e| e.command_id)
                .column("correlation_id", Type::TEXT_ARRAY, |e| e.correlation_id.as_str())
                .column("causation_id", Type::TEXT_ARRAY, |e| e.causation_id.as_deref())
                .column("payload", Type::JSONB_ARRAY, |e| Json(PublicEvent::of(&e.event)))
                .insert_into(tx, "order_history")
                .await
        })
    }
}
