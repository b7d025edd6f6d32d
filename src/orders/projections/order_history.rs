//! `order_history`: every event of every order with its public payload, for audit.

use futures_util::future::BoxFuture;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use crate::engine::{BoundedContext as _, Projection, ProjectionError, Recorded};
use crate::orders::OrdersContext;
use crate::orders::domain::OrderEvent;

/// The history of the orders.
pub(super) struct OrderHistory;

impl Projection for OrderHistory {
    type Event = OrderEvent;

    fn name(&self) -> &'static str {
        "order-history"
    }

    fn version(&self) -> i32 {
        1
    }

    fn ddl(&self) -> &'static str {
        "create table order_history (
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
         comment on column order_history.payload is 'The event in its newest shape, as public JSON'"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["order_history"]
    }

    fn apply<'a>(
        &'a self,
        tx: &'a Transaction<'a>,
        batch: &'a [Recorded<OrderEvent>],
    ) -> BoxFuture<'a, Result<(), ProjectionError>> {
        Box::pin(async move {
            tx.execute_typed(
                "insert into order_history (order_id, version, partition, seq, event_id, type, recorded_at, command_id,
                                            correlation_id, causation_id, payload)
                 select * from unnest($1::uuid[], $2::bigint[], $3::int[], $4::bigint[], $5::uuid[], $6::text[],
                                      $7::timestamptz[], $8::uuid[], $9::text[], $10::text[], $11::jsonb[])",
                &[
                    (&column(batch, |e| e.stream_id), Type::UUID_ARRAY),
                    (&column(batch, |e| e.version), Type::INT8_ARRAY),
                    (&column(batch, |e| e.position.partition), Type::INT4_ARRAY),
                    (&column(batch, |e| e.position.seq), Type::INT8_ARRAY),
                    (&column(batch, |e| e.event_id), Type::UUID_ARRAY),
                    (&column(batch, |e| e.event.type_name()), Type::TEXT_ARRAY),
                    (&column(batch, |e| e.recorded_at), Type::TIMESTAMPTZ_ARRAY),
                    (&column(batch, |e| e.command_id), Type::UUID_ARRAY),
                    (&column(batch, |e| e.correlation_id.as_str()), Type::TEXT_ARRAY),
                    (&column(batch, |e| e.causation_id.as_deref()), Type::TEXT_ARRAY),
                    (&column(batch, |e| OrdersContext::describe_event(&e.event)), Type::JSONB_ARRAY),
                ],
            )
            .await?;
            Ok(())
        })
    }
}

fn column<'a, T>(batch: &'a [Recorded<OrderEvent>], pick: impl Fn(&'a Recorded<OrderEvent>) -> T) -> Vec<T> {
    batch.iter().map(pick).collect()
}
