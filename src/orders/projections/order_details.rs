//! `order_details` and `order_lines`: all there is to know of one order.

use futures_util::future::BoxFuture;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::order_changes::{OrderChange, collapse, column, placed_column};
use crate::engine::{Projection, ProjectionError, Recorded};
use crate::orders::domain::{OrderEvent, PlacedItem};

/// Order details with lines.
pub(super) struct OrderDetails;

impl Projection for OrderDetails {
    type Event = OrderEvent;

    fn name(&self) -> &'static str {
        "order-details"
    }

    fn version(&self) -> i32 {
        1
    }

    fn ddl(&self) -> &'static str {
        "create table order_details (
             order_id            uuid primary key,
             partition           int not null,
             customer_id         text not null,
             status              text not null,
             currency            text not null,
             total               numeric not null,
             paid                numeric not null,
             carrier             text,
             tracking_number     text,
             cancellation_reason text,
             refund_due          numeric,
             version             bigint not null,
             placed_at           timestamptz not null,
             updated_at          timestamptz not null
         ) with (fillfactor = 85);
         create table order_lines (
             order_id   uuid not null,
             line       int not null,
             partition  int not null,
             product_id uuid not null,
             quantity   bigint not null,
             unit_price numeric not null,
             line_total numeric not null,
             primary key (order_id, line)
         );
         comment on table order_details is 'One row an order, with shipment and cancellation';
         comment on column order_details.refund_due is 'What a cancelled order has to be given back';
         comment on table order_lines is 'The lines of the orders; line counts from 1'"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["order_details", "order_lines"]
    }

    fn apply<'a>(
        &'a self,
        tx: &'a Transaction<'a>,
        batch: &'a [Recorded<OrderEvent>],
    ) -> BoxFuture<'a, Result<(), ProjectionError>> {
        Box::pin(async move {
            let (inserts, updates) = collapse(batch);
            futures_util::try_join!(insert(tx, &inserts), insert_lines(tx, &inserts), update(tx, &updates))?;
            Ok(())
        })
    }
}

async fn insert(tx: &Transaction<'_>, changes: &[OrderChange<'_>]) -> Result<(), ProjectionError> {
    if changes.is_empty() {
        return Ok(());
    }
    tx.execute_typed(
        "insert into order_details (order_id, partition, customer_id, status, currency, total, paid, carrier,
                                    tracking_number, cancellation_reason, refund_due, version, placed_at, updated_at)
         select * from unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::numeric[], $7::numeric[],
                              $8::text[], $9::text[], $10::text[], $11::numeric[], $12::bigint[],
                              $13::timestamptz[], $14::timestamptz[])",
        &[
            (&column(changes, |c| c.order_id), Type::UUID_ARRAY),
            (&column(changes, |c| c.partition), Type::INT4_ARRAY),
            (&placed_column(changes, |event, _| event.customer_id.as_str()), Type::TEXT_ARRAY),
            (&column(changes, |c| c.status), Type::TEXT_ARRAY),
            (&placed_column(changes, |event, _| event.currency.code()), Type::TEXT_ARRAY),
            (&placed_column(changes, |event, _| event.total.decimal()), Type::NUMERIC_ARRAY),
            (&column(changes, |c| c.paid), Type::NUMERIC_ARRAY),
            (&column(changes, |c| c.shipped.map(|s| s.carrier.as_str())), Type::TEXT_ARRAY),
            (&column(changes, |c| c.shipped.map(|s| s.tracking_number.as_str())), Type::TEXT_ARRAY),
            (&column(changes, |c| c.cancelled.map(|x| x.reason.as_str())), Type::TEXT_ARRAY),
            (&column(changes, |c| c.cancelled.map(|x| x.refund_due.decimal())), Type::NUMERIC_ARRAY),
            (&column(changes, |c| c.version), Type::INT8_ARRAY),
            (&placed_column(changes, |_, at| at), Type::TIMESTAMPTZ_ARRAY),
            (&column(changes, |c| c.updated_at), Type::TIMESTAMPTZ_ARRAY),
        ],
    )
    .await?;
    Ok(())
}

async fn insert_lines(tx: &Transaction<'_>, changes: &[OrderChange<'_>]) -> Result<(), ProjectionError> {
    let lines: Vec<(&OrderChange<'_>, i32, &PlacedItem)> = changes
        .iter()
        .filter_map(|change| change.placed.map(|(event, _)| (change, event)))
        .flat_map(|(change, event)| (1..).zip(&event.items).map(move |(line, item)| (change, line, item)))
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    tx.execute_typed(
        "insert into order_lines (order_id, line, partition, product_id, quantity, unit_price, line_total)
         select * from unnest($1::uuid[], $2::int[], $3::int[], $4::uuid[], $5::bigint[], $6::numeric[], $7::numeric[])",
        &[
            (&lines.iter().map(|(change, ..)| change.order_id).collect::<Vec<_>>(), Type::UUID_ARRAY),
            (&lines.iter().map(|(_, line, _)| *line).collect::<Vec<_>>(), Type::INT4_ARRAY),
            (&lines.iter().map(|(change, ..)| change.partition).collect::<Vec<_>>(), Type::INT4_ARRAY),
            (&lines.iter().map(|(.., item)| item.product_id).collect::<Vec<_>>(), Type::UUID_ARRAY),
            (&lines.iter().map(|(.., item)| item.quantity.get()).collect::<Vec<_>>(), Type::INT8_ARRAY),
            (&lines.iter().map(|(.., item)| item.unit_price.decimal()).collect::<Vec<_>>(), Type::NUMERIC_ARRAY),
            (&lines.iter().map(|(.., item)| item.line_total.decimal()).collect::<Vec<_>>(), Type::NUMERIC_ARRAY),
        ],
    )
    .await?;
    Ok(())
}

async fn update(tx: &Transaction<'_>, changes: &[OrderChange<'_>]) -> Result<(), ProjectionError> {
    if changes.is_empty() {
        return Ok(());
    }
    tx.execute_typed(
        "update order_details o
         set status = coalesce(c.status, o.status), paid = coalesce(c.paid, o.paid),
             carrier = coalesce(c.carrier, o.carrier),
             tracking_number = coalesce(c.tracking_number, o.tracking_number),
             cancellation_reason = coalesce(c.cancellation_reason, o.cancellation_reason),
             refund_due = coalesce(c.refund_due, o.refund_due), version = c.version, updated_at = c.updated_at
         from unnest($1::uuid[], $2::text[], $3::numeric[], $4::text[], $5::text[], $6::text[], $7::numeric[],
                     $8::bigint[], $9::timestamptz[])
              c (order_id, status, paid, carrier, tracking_number, cancellation_reason, refund_due, version, updated_at)
         where o.order_id = c.order_id",
        &[
            (&column(changes, |c| c.order_id), Type::UUID_ARRAY),
            (&column(changes, |c| c.status), Type::TEXT_ARRAY),
            (&column(changes, |c| c.paid), Type::NUMERIC_ARRAY),
            (&column(changes, |c| c.shipped.map(|s| s.carrier.as_str())), Type::TEXT_ARRAY),
            (&column(changes, |c| c.shipped.map(|s| s.tracking_number.as_str())), Type::TEXT_ARRAY),
            (&column(changes, |c| c.cancelled.map(|x| x.reason.as_str())), Type::TEXT_ARRAY),
            (&column(changes, |c| c.cancelled.map(|x| x.refund_due.decimal())), Type::NUMERIC_ARRAY),
            (&column(changes, |c| c.version), Type::INT8_ARRAY),
            (&column(changes, |c| c.updated_at), Type::TIMESTAMPTZ_ARRAY),
        ],
    )
    .await?;
    Ok(())
}
