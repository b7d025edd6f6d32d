//! `order_details` and `order_lines`: all there is to know of one order.

use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::order_changes::{NewOrder, OrderChange, changed_rows, collapse, new_rows};
use crate::orders::domain::{OrderEvent, PlacedItem};
use throughline::engine::{Applied, Projection, ProjectionError, ReadModel, Recorded, Rows};

/// Order details with lines.
pub(super) struct OrderDetails;

impl Projection for OrderDetails {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: "order-details",
            version: 1,
            ddl: "create table order_details (
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
             comment on table order_lines is 'The lines of the orders; line counts from 1'",
            indexes: &[],
            tables: &["order_details", "order_lines"],
            views: &[],
        }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(async move {
            let (mut inserts, updates) = collapse(batch);
            // By key: a large batch walks the indexes once. Nobody asks for these tables by time.
            inserts.sort_unstable_by_key(|order| order.change.order_id);
            futures_util::try_join!(insert(tx, &inserts), insert_lines(tx, &inserts), update(tx, &updates))?;
            Ok(())
        })
    }
}

async fn insert(tx: &Transaction<'_>, orders: &[NewOrder<'_>]) -> Result<(), ProjectionError> {
    new_rows(orders)
        .column("carrier", Type::TEXT_ARRAY, |o| o.change.shipped.map(|s| s.carrier.as_str()))
        .column("tracking_number", Type::TEXT_ARRAY, |o| o.change.shipped.map(|s| s.tracking_number.as_str()))
        .column("cancellation_reason", Type::TEXT_ARRAY, |o| o.change.cancelled.map(|x| x.reason.as_str()))
        .column("refund_due", Type::NUMERIC_ARRAY, |o| o.change.cancelled.map(|x| x.refund_due.decimal()))
        .insert_into(tx, "order_details")
        .await
}

async fn insert_lines(tx: &Transaction<'_>, orders: &[NewOrder<'_>]) -> Result<(), ProjectionError> {
    let lines: Vec<(&NewOrder<'_>, i32, &PlacedItem)> = orders
        .iter()
        .flat_map(|order| (1..).zip(&order.event.items).map(move |(line, item)| (order, line, item)))
        .collect();
    Rows::of(&lines)
        .column("order_id", Type::UUID_ARRAY, |(order, ..)| order.change.order_id)
        .column("line", Type::INT4_ARRAY, |(_, line, _)| line)
        .column("partition", Type::INT4_ARRAY, |(order, ..)| order.partition)
        .column("product_id", Type::UUID_ARRAY, |(.., item)| item.product_id)
        .column("quantity", Type::INT8_ARRAY, |(.., item)| item.quantity.get())
        .column("unit_price", Type::NUMERIC_ARRAY, |(.., item)| item.unit_price.decimal())
        .column("line_total", Type::NUMERIC_ARRAY, |(.., item)| item.line_total.decimal())
        .insert_into(tx, "order_lines")
        .await
}

async fn update(tx: &Transaction<'_>, changes: &[OrderChange<'_>]) -> Result<(), ProjectionError> {
    changed_rows(changes)
        .column("carrier", Type::TEXT_ARRAY, |c| c.shipped.map(|s| s.carrier.as_str()))
        .column("tracking_number", Type::TEXT_ARRAY, |c| c.shipped.map(|s| s.tracking_number.as_str()))
        .column("cancellation_reason", Type::TEXT_ARRAY, |c| c.cancelled.map(|x| x.reason.as_str()))
        .column("refund_due", Type::NUMERIC_ARRAY, |c| c.cancelled.map(|x| x.refund_due.decimal()))
        .run(
            tx,
            "update order_details o
             set status = coalesce(c.status, o.status), paid = coalesce(c.paid, o.paid),
                 carrier = coalesce(c.carrier, o.carrier),
                 tracking_number = coalesce(c.tracking_number, o.tracking_number),
                 cancellation_reason = coalesce(c.cancellation_reason, o.cancellation_reason),
                 refund_due = coalesce(c.refund_due, o.refund_due), version = c.version, updated_at = c.updated_at
             from {rows} where o.order_id = c.order_id",
        )
        .await
}
