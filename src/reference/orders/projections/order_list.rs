//! `order_list`: one row an order, for lists by status or customer, newest first.

use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::order_changes::{NewOrder, OrderChange, changed_rows, collapse, new_rows};
use crate::orders::domain::OrderEvent;
use throughline::engine::{Applied, Projection, ProjectionError, ReadModel, Recorded};

/// The order list.
pub(super) struct OrderList;

impl Projection for OrderList {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: "order-list",
            version: 1,
            ddl: "create table order_list (
                 order_id    uuid primary key,
                 partition   int not null,
                 customer_id text not null,
                 status      text not null,
                 currency    text not null,
                 total       numeric not null,
                 paid        numeric not null,
                 item_count  int not null,
                 version     bigint not null,
                 placed_at   timestamptz not null,
                 updated_at  timestamptz not null
             ) with (fillfactor = 85);
             comment on table order_list is 'One row an order; status placed, paid, shipped or cancelled';
             comment on column order_list.item_count is 'Lines of the order'",
            indexes: &[
                "create index order_list_by_time on order_list (placed_at, order_id)",
                "create index order_list_by_status on order_list (status, placed_at, order_id)",
                "create index order_list_by_customer on order_list (customer_id, placed_at, order_id)",
            ],
            tables: &["order_list"],
            views: &[],
        }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(async move {
            let (inserts, updates) = collapse(batch);
            // Different orders each: neither waits for the other's answer.
            futures_util::try_join!(insert(tx, &inserts), update(tx, &updates))?;
            Ok(())
        })
    }
}

async fn insert(tx: &Transaction<'_>, orders: &[NewOrder<'_>]) -> Result<(), ProjectionError> {
    new_rows(orders)
        .column("item_count", Type::INT4_ARRAY, |o| o.event.items.len() as i32)
        .insert_into(tx, "order_list")
        .await
}

async fn update(tx: &Transaction<'_>, changes: &[OrderChange<'_>]) -> Result<(), ProjectionError> {
    changed_rows(changes)
        // An order that a skip forward left out has no row, and gets none.
        .run(
            tx,
            "update order_list o
             set status = coalesce(c.status, o.status), paid = coalesce(c.paid, o.paid), version = c.version,
                 updated_at = c.updated_at
             from {rows} where o.order_id = c.order_id",
        )
        .await
}
