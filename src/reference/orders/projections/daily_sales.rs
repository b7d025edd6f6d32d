//! `daily_sales`: orders, pieces and revenue by day (UTC), product and currency.
//!
//! Counted on the day an order is placed, and taken back from that day when it is cancelled. What
//! an open order was counted with is kept in a table of this projection until it ships or is
//! cancelled, so that no other projection has to be asked.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::orders::domain::{OrderEvent, OrderPlaced};
use throughline::engine::{Applied, Projection, ProjectionError, ReadModel, Recorded, Rows};

/// Daily sales by product.
pub(super) struct DailySales;

impl Projection for DailySales {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: "daily-sales",
            version: 1,
            ddl: "create table daily_sales_by_partition (
                 day        date not null,
                 product_id uuid not null,
                 currency   text not null,
                 partition  int not null,
                 orders     bigint not null,
                 quantity   bigint not null,
                 revenue    numeric not null,
                 primary key (day, product_id, currency, partition)
             ) with (fillfactor = 80);
             create table daily_sales_open_orders (
                 order_id  uuid primary key,
                 partition int not null,
                 day       date not null,
                 currency  text not null,
                 lines     jsonb not null
             );
             create view daily_sales as
                 select day, product_id, currency, sum(orders)::bigint as orders, sum(quantity)::bigint as quantity,
                        sum(revenue) as revenue
                 from daily_sales_by_partition where orders > 0 group by day, product_id, currency;
             comment on view daily_sales is 'Sales by day (UTC) of placing, product and currency, without cancelled orders';
             comment on table daily_sales_by_partition is 'What daily_sales sums up';
             comment on table daily_sales_open_orders is 'What an order that may still be cancelled was counted with'",
            indexes: &["create index daily_sales_by_product on daily_sales_by_partition (product_id, day)"],
            tables: &["daily_sales_by_partition", "daily_sales_open_orders"],
            views: &["daily_sales"],
        }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(async move {
            let changes = Changes::of(batch);
            futures_util::try_join!(changes.close(tx), changes.open(tx), changes.count(tx))?;
            Ok(())
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    day: Date,
    product_id: Uuid,
    currency: &'static str,
    partition: i32,
}

#[derive(Default, Clone, Copy)]
struct Sum {
    orders: i64,
    quantity: i64,
    revenue: Decimal,
}

struct Open<'a> {
    event: &'a OrderPlaced,
    partition: i32,
    day: Date,
}

/// A batch, collapsed.
#[derive(Default)]
struct Changes<'a> {
    /// Placed in this batch and still open at its end.
    opened: BTreeMap<Uuid, Open<'a>>,
    /// Shipped: no longer cancellable.
    shipped: Vec<Uuid>,
    /// Cancelled, placed in an earlier batch.
    cancelled: Vec<Uuid>,
    /// Sorted by key, so that two batches lock rows in one order.
    sums: BTreeMap<Cell, Sum>,
}

impl<'a> Changes<'a> {
    fn of(batch: &'a [Recorded<OrderEvent>]) -> Self {
        let mut changes = Self::default();
        for recorded in batch {
            match &recorded.event {
                OrderEvent::OrderPlaced(event) => {
                    let day = recorded.recorded_at.to_zoned(TimeZone::UTC).date();
                    let open = Open { event, partition: recorded.position.partition, day };
                    changes.add(&open, 1);
                    changes.opened.insert(recorded.stream_id, open);
                }
                OrderEvent::OrderShipped(_) => {
                    if changes.opened.remove(&recorded.stream_id).is_none() {
                        changes.shipped.push(recorded.stream_id);
                    }
                }
                OrderEvent::OrderCancelled(_) => match changes.opened.remove(&recorded.stream_id) {
                    Some(open) => changes.add(&open, -1),
                    None => changes.cancelled.push(recorded.stream_id),
                },
                OrderEvent::PaymentReceived(_) => {}
            }
        }
        changes
    }

    fn add(&mut self, open: &Open<'_>, sign: i64) {
        for (product_id, line) in lines(open.event) {
            let currency = open.event.currency.code();
            let cell = Cell { day: open.day, product_id, currency, partition: open.partition };
            let sum = self.sums.entry(cell).or_default();
            sum.orders += sign * line.orders;
            sum.quantity += sign * line.quantity;
            sum.revenue += Decimal::from(sign) * line.revenue;
        }
    }

    /// Takes back what cancelled orders were counted with; forgets shipped ones.
    async fn close(&self, tx: &Transaction<'_>) -> Result<(), ProjectionError> {
        Rows::of(&self.shipped)
            .column("order_id", Type::UUID_ARRAY, |order_id| order_id)
            .run(tx, "delete from daily_sales_open_orders o using {rows} where o.order_id = c.order_id")
            .await?;
        Rows::of(&self.cancelled)
            .column("order_id", Type::UUID_ARRAY, |order_id| order_id)
            .run(
                tx,
                "with closed as (
                     delete from daily_sales_open_orders o using {rows} where o.order_id = c.order_id returning o.*
                 ), back as (
                     select c.day, l.product_id, c.currency, c.partition, count(*) as orders,
                            sum(l.quantity) as quantity, sum(l.revenue) as revenue
                     from closed c, jsonb_to_recordset(c.lines) l (product_id uuid, quantity bigint, revenue numeric)
                     group by 1, 2, 3, 4
                 )
                 update daily_sales_by_partition s
                 set orders = s.orders - b.orders, quantity = s.quantity - b.quantity, revenue = s.revenue - b.revenue
                 from back b
                 where s.day = b.day and s.product_id = b.product_id and s.currency = b.currency
                   and s.partition = b.partition",
            )
            .await
    }

    async fn open(&self, tx: &Transaction<'_>) -> Result<(), ProjectionError> {
        let line = |(product_id, sum): (Uuid, Sum)| json!({"product_id": product_id, "quantity": sum.quantity, "revenue": sum.revenue.to_string()});
        let opened: Vec<(&Uuid, &Open<'_>)> = self.opened.iter().collect();
        Rows::of(&opened)
            .column("order_id", Type::UUID_ARRAY, |(order_id, _)| order_id)
            .column("partition", Type::INT4_ARRAY, |(_, open)| open.partition)
            .column("day", Type::DATE_ARRAY, |(_, open)| open.day)
            .column("currency", Type::TEXT_ARRAY, |(_, open)| open.event.currency.code())
            .column("lines", Type::JSONB_ARRAY, |(_, open)| lines(open.event).into_iter().map(line).collect::<Value>())
            .insert_into(tx, "daily_sales_open_orders")
            .await
    }

    async fn count(&self, tx: &Transaction<'_>) -> Result<(), ProjectionError> {
        let cells: Vec<(&Cell, &Sum)> = self.sums.iter().collect();
        Rows::of(&cells)
            .column("day", Type::DATE_ARRAY, |(cell, _)| cell.day)
            .column("product_id", Type::UUID_ARRAY, |(cell, _)| cell.product_id)
            .column("currency", Type::TEXT_ARRAY, |(cell, _)| cell.currency)
            .column("partition", Type::INT4_ARRAY, |(cell, _)| cell.partition)
            .column("orders", Type::INT8_ARRAY, |(_, sum)| sum.orders)
            .column("quantity", Type::INT8_ARRAY, |(_, sum)| sum.quantity)
            .column("revenue", Type::NUMERIC_ARRAY, |(_, sum)| sum.revenue)
            .run(
                tx,
                "insert into daily_sales_by_partition as s
                     (day, product_id, currency, partition, orders, quantity, revenue)
                 select * from {rows}
                 on conflict (day, product_id, currency, partition) do update
                 set orders = s.orders + excluded.orders, quantity = s.quantity + excluded.quantity,
                     revenue = s.revenue + excluded.revenue",
            )
            .await
    }
}

/// An order by product: two lines of one product are one sale.
fn lines(event: &OrderPlaced) -> BTreeMap<Uuid, Sum> {
    let mut lines: BTreeMap<Uuid, Sum> = BTreeMap::new();
    for item in &event.items {
        let sum = lines.entry(item.product_id).or_default();
        sum.orders = 1;
        sum.quantity += item.quantity.get();
        sum.revenue += item.line_total.decimal();
    }
    lines
}
