//! `customer_summary`: what a customer ordered, paid and called off, by currency.
//!
//! Payments and cancellations do not name the customer: whose order it is, and what it came to,
//! is kept in a table of this projection.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::orders::domain::{OrderEvent, OrderPlaced};
use throughline::engine::{Applied, Projection, ProjectionError, ReadModel, Recorded, Rows};

/// Customer summary.
pub(super) struct CustomerSummary;

impl Projection for CustomerSummary {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: "customer-summary",
            version: 1,
            ddl: "create table customer_summary_by_partition (
                 customer_id      text not null,
                 currency         text not null,
                 partition        int not null,
                 orders           bigint not null,
                 orders_shipped   bigint not null,
                 orders_cancelled bigint not null,
                 ordered          numeric not null,
                 cancelled        numeric not null,
                 paid             numeric not null,
                 refund_due       numeric not null,
                 first_order_at   timestamptz not null,
                 last_order_at    timestamptz not null,
                 primary key (customer_id, currency, partition)
             ) with (fillfactor = 80);
             create table customer_orders (
                 order_id    uuid primary key,
                 partition   int not null,
                 customer_id text not null,
                 currency    text not null,
                 total       numeric not null
             );
             create view customer_summary as
                 select customer_id, currency, sum(orders)::bigint as orders,
                        sum(orders_shipped)::bigint as orders_shipped, sum(orders_cancelled)::bigint as orders_cancelled,
                        sum(ordered) as ordered, sum(cancelled) as cancelled, sum(paid) as paid,
                        sum(refund_due) as refund_due, min(first_order_at) as first_order_at,
                        max(last_order_at) as last_order_at
                 from customer_summary_by_partition group by customer_id, currency;
             comment on view customer_summary is 'Orders and amounts by customer and currency; cancelled orders count in orders and ordered too';
             comment on table customer_summary_by_partition is 'What customer_summary sums up';
             comment on table customer_orders is 'Whose an order is, and what it came to'",
            indexes: &[],
            tables: &["customer_summary_by_partition", "customer_orders"],
            views: &["customer_summary"],
        }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(async move {
            let changes = Changes::of(batch);
            futures_util::try_join!(changes.keep_orders(tx), changes.count(tx), changes.count_earlier(tx))?;
            Ok(())
        })
    }
}

/// A customer's row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cell<'a> {
    customer_id: &'a str,
    currency: &'static str,
    partition: i32,
}

#[derive(Clone, Copy)]
struct Sum {
    orders: i64,
    shipped: i64,
    cancelled: i64,
    ordered: Decimal,
    called_off: Decimal,
    paid: Decimal,
    refund_due: Decimal,
    first_order_at: Timestamp,
    last_order_at: Timestamp,
}

/// What a batch adds on behalf of an order of an earlier one.
#[derive(Default)]
struct Change {
    shipped: i64,
    cancelled: i64,
    paid: Decimal,
    refund_due: Decimal,
}

/// A batch, collapsed.
#[derive(Default)]
struct Changes<'a> {
    placed: Vec<(Cell<'a>, &'a OrderPlaced)>,
    /// Of orders placed in this batch. Sorted by key, so that two batches lock rows in one order.
    sums: BTreeMap<Cell<'a>, Sum>,
    /// Of orders placed before: their customers are in the table.
    earlier: BTreeMap<Uuid, Change>,
}

impl<'a> Changes<'a> {
    fn of(batch: &'a [Recorded<OrderEvent>]) -> Self {
        let mut changes = Self::default();
        let mut known: HashMap<Uuid, (Cell<'a>, Decimal)> = HashMap::new();
        for recorded in batch {
            if let OrderEvent::OrderPlaced(event) = &recorded.event {
                let cell = Cell {
                    customer_id: &event.customer_id,
                    currency: event.currency.code(),
                    partition: recorded.position.partition,
                };
                let total = event.total.decimal();
                known.insert(recorded.stream_id, (cell, total));
                changes.placed.push((cell, event));
                changes.sums.entry(cell).or_insert_with(|| Sum::at(recorded.recorded_at)).place(recorded, total);
                continue;
            }
            let mut change = Change::default();
            change.add(&recorded.event);
            match known.get(&recorded.stream_id).and_then(|(cell, total)| Some((changes.sums.get_mut(cell)?, *total))) {
                Some((sum, total)) => sum.add(&change, total),
                None => changes.earlier.entry(recorded.stream_id).or_default().add(&recorded.event),
            }
        }
        // By key: a large batch walks the index once.
        changes.placed.sort_unstable_by_key(|(_, event)| event.order_id);
        changes
    }

    async fn keep_orders(&self, tx: &Transaction<'_>) -> Result<(), ProjectionError> {
        Rows::of(&self.placed)
            .column("order_id", Type::UUID_ARRAY, |(_, event)| event.order_id)
            .column("partition", Type::INT4_ARRAY, |(cell, _)| cell.partition)
            .column("customer_id", Type::TEXT_ARRAY, |(cell, _)| cell.customer_id)
            .column("currency", Type::TEXT_ARRAY, |(cell, _)| cell.currency)
            .column("total", Type::NUMERIC_ARRAY, |(_, event)| event.total.decimal())
            .insert_into(tx, "customer_orders")
            .await
    }

    async fn count(&self, tx: &Transaction<'_>) -> Result<(), ProjectionError> {
        let sums: Vec<(&Cell<'_>, &Sum)> = self.sums.iter().collect();
        Rows::of(&sums)
            .column("customer_id", Type::TEXT_ARRAY, |(cell, _)| cell.customer_id)
            .column("currency", Type::TEXT_ARRAY, |(cell, _)| cell.currency)
            .column("partition", Type::INT4_ARRAY, |(cell, _)| cell.partition)
            .column("orders", Type::INT8_ARRAY, |(_, sum)| sum.orders)
            .column("orders_shipped", Type::INT8_ARRAY, |(_, sum)| sum.shipped)
            .column("orders_cancelled", Type::INT8_ARRAY, |(_, sum)| sum.cancelled)
            .column("ordered", Type::NUMERIC_ARRAY, |(_, sum)| sum.ordered)
            .column("cancelled", Type::NUMERIC_ARRAY, |(_, sum)| sum.called_off)
            .column("paid", Type::NUMERIC_ARRAY, |(_, sum)| sum.paid)
            .column("refund_due", Type::NUMERIC_ARRAY, |(_, sum)| sum.refund_due)
            .column("first_order_at", Type::TIMESTAMPTZ_ARRAY, |(_, sum)| sum.first_order_at)
            .column("last_order_at", Type::TIMESTAMPTZ_ARRAY, |(_, sum)| sum.last_order_at)
            .run(tx, &format!("{INSERT} select * from {{rows}} {ADD}"))
            .await
    }

    async fn count_earlier(&self, tx: &Transaction<'_>) -> Result<(), ProjectionError> {
        let changes: Vec<(&Uuid, &Change)> = self.earlier.iter().collect();
        Rows::of(&changes)
            .column("order_id", Type::UUID_ARRAY, |(order_id, _)| order_id)
            .column("shipped", Type::INT8_ARRAY, |(_, change)| change.shipped)
            .column("cancelled", Type::INT8_ARRAY, |(_, change)| change.cancelled)
            .column("paid", Type::NUMERIC_ARRAY, |(_, change)| change.paid)
            .column("refund_due", Type::NUMERIC_ARRAY, |(_, change)| change.refund_due)
            .run(
                tx,
                &format!(
                    "{INSERT}
                     select o.customer_id, o.currency, o.partition, 0, sum(c.shipped), sum(c.cancelled), 0,
                            sum(c.cancelled * o.total), sum(c.paid), sum(c.refund_due), 'infinity', '-infinity'
                     from {{rows}} join customer_orders o using (order_id)
                     group by o.customer_id, o.currency, o.partition
                     order by o.customer_id, o.currency, o.partition
                     {ADD}"
                ),
            )
            .await
    }
}

const INSERT: &str = "
    insert into customer_summary_by_partition as s (customer_id, currency, partition, orders, orders_shipped,
        orders_cancelled, ordered, cancelled, paid, refund_due, first_order_at, last_order_at)";

const ADD: &str = "
    on conflict (customer_id, currency, partition) do update
    set orders = s.orders + excluded.orders, orders_shipped = s.orders_shipped + excluded.orders_shipped,
        orders_cancelled = s.orders_cancelled + excluded.orders_cancelled,
        ordered = s.ordered + excluded.ordered, cancelled = s.cancelled + excluded.cancelled,
        paid = s.paid + excluded.paid, refund_due = s.refund_due + excluded.refund_due,
        first_order_at = least(s.first_order_at, excluded.first_order_at),
        last_order_at = greatest(s.last_order_at, excluded.last_order_at)";

impl Sum {
    fn at(time: Timestamp) -> Self {
        Self {
            orders: 0,
            shipped: 0,
            cancelled: 0,
            ordered: Decimal::ZERO,
            called_off: Decimal::ZERO,
            paid: Decimal::ZERO,
            refund_due: Decimal::ZERO,
            first_order_at: time,
            last_order_at: time,
        }
    }

    fn place(&mut self, recorded: &Recorded<OrderEvent>, total: Decimal) {
        self.orders += 1;
        self.ordered += total;
        self.first_order_at = self.first_order_at.min(recorded.recorded_at);
        self.last_order_at = self.last_order_at.max(recorded.recorded_at);
    }

    fn add(&mut self, change: &Change, total: Decimal) {
        self.shipped += change.shipped;
        self.cancelled += change.cancelled;
        self.called_off += Decimal::from(change.cancelled) * total;
        self.paid += change.paid;
        self.refund_due += change.refund_due;
    }
}

impl Change {
    fn add(&mut self, event: &OrderEvent) {
        match event {
            OrderEvent::OrderPlaced(_) => {}
            OrderEvent::PaymentReceived(event) => self.paid += event.amount.decimal(),
            OrderEvent::OrderShipped(_) => self.shipped += 1,
            OrderEvent::OrderCancelled(event) => {
                self.cancelled += 1;
                self.refund_due += event.refund_due.decimal();
            }
        }
    }
}
