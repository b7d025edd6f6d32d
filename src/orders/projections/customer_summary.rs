//! `customer_summary`: what a customer ordered, paid and called off, by currency.
//!
//! Payments and cancellations do not name the customer: whose order it is, and what it came to,
//! is kept in a table of this projection.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::engine::{Projection, ProjectionError, Recorded};
use crate::orders::domain::{OrderEvent, OrderPlaced};

/// Customer summary.
pub(super) struct CustomerSummary;

impl Projection for CustomerSummary {
    type Event = OrderEvent;

    fn name(&self) -> &'static str {
        "customer-summary"
    }

    fn version(&self) -> i32 {
        1
    }

    fn ddl(&self) -> &'static str {
        "create table customer_summary_by_partition (
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
         comment on table customer_orders is 'Whose an order is, and what it came to'"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["customer_summary_by_partition", "customer_orders"]
    }

    fn views(&self) -> &'static [&'static str] {
        &["customer_summary"]
    }

    fn apply<'a>(
        &'a self,
        tx: &'a Transaction<'a>,
        batch: &'a [Recorded<OrderEvent>],
    ) -> BoxFuture<'a, Result<(), ProjectionError>> {
        Box::pin(async move {
            let mut placed = Vec::new();
            let mut changes: BTreeMap<Uuid, Change> = BTreeMap::new();
            for recorded in batch {
                if let OrderEvent::OrderPlaced(event) = &recorded.event {
                    placed.push((recorded.position.partition, event));
                }
                changes.entry(recorded.stream_id).or_default().add(recorded);
            }
            // Sent together, run in this order: the second reads what the first inserted.
            futures_util::try_join!(insert_orders(tx, &placed), count(tx, &changes))?;
            Ok(())
        })
    }
}

/// What a batch adds to its customer's row on behalf of one order.
#[derive(Default)]
struct Change {
    placed_at: Option<Timestamp>,
    shipped: i64,
    cancelled: i64,
    paid: Decimal,
    refund_due: Decimal,
}

impl Change {
    fn add(&mut self, recorded: &Recorded<OrderEvent>) {
        match &recorded.event {
            OrderEvent::OrderPlaced(_) => self.placed_at = Some(recorded.recorded_at),
            OrderEvent::PaymentReceived(event) => self.paid += event.amount.decimal(),
            OrderEvent::OrderShipped(_) => self.shipped += 1,
            OrderEvent::OrderCancelled(event) => {
                self.cancelled += 1;
                self.refund_due += event.refund_due.decimal();
            }
        }
    }
}

async fn insert_orders(tx: &Transaction<'_>, placed: &[(i32, &OrderPlaced)]) -> Result<(), ProjectionError> {
    if placed.is_empty() {
        return Ok(());
    }
    tx.execute_typed(
        "insert into customer_orders (order_id, partition, customer_id, currency, total)
         select * from unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::numeric[])",
        &[
            (&placed.iter().map(|(_, event)| event.order_id).collect::<Vec<_>>(), Type::UUID_ARRAY),
            (&placed.iter().map(|(partition, _)| *partition).collect::<Vec<_>>(), Type::INT4_ARRAY),
            (&placed.iter().map(|(_, event)| event.customer_id.as_str()).collect::<Vec<_>>(), Type::TEXT_ARRAY),
            (&placed.iter().map(|(_, event)| event.currency.code()).collect::<Vec<_>>(), Type::TEXT_ARRAY),
            (&placed.iter().map(|(_, event)| event.total.decimal()).collect::<Vec<_>>(), Type::NUMERIC_ARRAY),
        ],
    )
    .await?;
    Ok(())
}

async fn count(tx: &Transaction<'_>, changes: &BTreeMap<Uuid, Change>) -> Result<(), ProjectionError> {
    tx.execute_typed(
        "insert into customer_summary_by_partition as s (customer_id, currency, partition, orders, orders_shipped,
             orders_cancelled, ordered, cancelled, paid, refund_due, first_order_at, last_order_at)
         select o.customer_id, o.currency, o.partition, count(c.placed_at), sum(c.shipped), sum(c.cancelled),
                coalesce(sum(o.total) filter (where c.placed_at is not null), 0), sum(c.cancelled * o.total),
                sum(c.paid), sum(c.refund_due), coalesce(min(c.placed_at), 'infinity'),
                coalesce(max(c.placed_at), '-infinity')
         from unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::bigint[], $5::numeric[], $6::numeric[])
              c (order_id, placed_at, shipped, cancelled, paid, refund_due)
         join customer_orders o using (order_id)
         group by o.customer_id, o.currency, o.partition
         order by o.customer_id, o.currency, o.partition
         on conflict (customer_id, currency, partition) do update
         set orders = s.orders + excluded.orders, orders_shipped = s.orders_shipped + excluded.orders_shipped,
             orders_cancelled = s.orders_cancelled + excluded.orders_cancelled,
             ordered = s.ordered + excluded.ordered, cancelled = s.cancelled + excluded.cancelled,
             paid = s.paid + excluded.paid, refund_due = s.refund_due + excluded.refund_due,
             first_order_at = least(s.first_order_at, excluded.first_order_at),
             last_order_at = greatest(s.last_order_at, excluded.last_order_at)",
        &[
            (&changes.keys().collect::<Vec<_>>(), Type::UUID_ARRAY),
            (&changes.values().map(|c| c.placed_at).collect::<Vec<_>>(), Type::TIMESTAMPTZ_ARRAY),
            (&changes.values().map(|c| c.shipped).collect::<Vec<_>>(), Type::INT8_ARRAY),
            (&changes.values().map(|c| c.cancelled).collect::<Vec<_>>(), Type::INT8_ARRAY),
            (&changes.values().map(|c| c.paid).collect::<Vec<_>>(), Type::NUMERIC_ARRAY),
            (&changes.values().map(|c| c.refund_due).collect::<Vec<_>>(), Type::NUMERIC_ARRAY),
        ],
    )
    .await?;
    Ok(())
}
