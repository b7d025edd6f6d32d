//! Collapses a batch to one change an order: rows to insert, and rows to update.
//!
//! Shared by the tables that hold one row an order, with the columns that they have in common. Knows no
//! statement.

use std::collections::HashMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::orders::domain::{OrderCancelled, OrderEvent, OrderPlaced, OrderShipped};
use throughline::engine::{Recorded, Rows};

/// What a batch makes of one order.
#[derive(Debug, Clone)]
pub(super) struct OrderChange<'a> {
    pub order_id: Uuid,
    /// None where nothing changed it.
    pub status: Option<&'static str>,
    pub paid: Option<Decimal>,
    pub shipped: Option<&'a OrderShipped>,
    pub cancelled: Option<&'a OrderCancelled>,
    pub version: i64,
    pub updated_at: Timestamp,
}

/// An order placed in the batch: all there is to know of it.
#[derive(Debug, Clone)]
pub(super) struct NewOrder<'a> {
    pub event: &'a OrderPlaced,
    pub partition: i32,
    pub placed_at: Timestamp,
    /// With what the rest of the batch made of it.
    pub change: OrderChange<'a>,
}

/// The changes of a batch, in the order in which their orders first appear: inserts and updates.
pub(super) fn collapse(batch: &[Recorded<OrderEvent>]) -> (Vec<NewOrder<'_>>, Vec<OrderChange<'_>>) {
    let mut index: HashMap<Uuid, usize> = HashMap::with_capacity(batch.len());
    let mut changes: Vec<(OrderChange<'_>, Option<&Recorded<OrderEvent>>)> = Vec::with_capacity(batch.len());
    for recorded in batch {
        let at = *index.entry(recorded.stream_id).or_insert_with(|| {
            changes.push((OrderChange::of(recorded), None));
            changes.len() - 1
        });
        let (change, placed) = &mut changes[at];
        change.add(recorded);
        if matches!(recorded.event, OrderEvent::OrderPlaced(_)) {
            *placed = Some(recorded);
        }
    }
    let (mut inserts, mut updates) = (Vec::new(), Vec::new());
    for (change, placed) in changes {
        match placed.map(|recorded| (recorded, &recorded.event)) {
            Some((recorded, OrderEvent::OrderPlaced(event))) => inserts.push(NewOrder {
                event,
                partition: recorded.position.partition,
                placed_at: recorded.recorded_at,
                change,
            }),
            _ => updates.push(change),
        }
    }
    (inserts, updates)
}

/// New rows, with the columns of either table.
pub(super) fn new_rows<'a>(orders: &'a [NewOrder<'a>]) -> Rows<'a, NewOrder<'a>> {
    Rows::of(orders)
        .column("order_id", Type::UUID_ARRAY, |o| o.change.order_id)
        .column("partition", Type::INT4_ARRAY, |o| o.partition)
        .column("customer_id", Type::TEXT_ARRAY, |o| o.event.customer_id.as_str())
        .column("status", Type::TEXT_ARRAY, |o| o.change.status)
        .column("currency", Type::TEXT_ARRAY, |o| o.event.currency.code())
        .column("total", Type::NUMERIC_ARRAY, |o| o.event.total.decimal())
        .column("paid", Type::NUMERIC_ARRAY, |o| o.change.paid)
        .column("version", Type::INT8_ARRAY, |o| o.change.version)
        .column("placed_at", Type::TIMESTAMPTZ_ARRAY, |o| o.placed_at)
        .column("updated_at", Type::TIMESTAMPTZ_ARRAY, |o| o.change.updated_at)
}

/// Changes of rows, with the columns of either table; null where nothing changed.
pub(super) fn changed_rows<'a>(changes: &'a [OrderChange<'a>]) -> Rows<'a, OrderChange<'a>> {
    Rows::of(changes)
        .column("order_id", Type::UUID_ARRAY, |c| c.order_id)
        .column("status", Type::TEXT_ARRAY, |c| c.status)
        .column("paid", Type::NUMERIC_ARRAY, |c| c.paid)
        .column("version", Type::INT8_ARRAY, |c| c.version)
        .column("updated_at", Type::TIMESTAMPTZ_ARRAY, |c| c.updated_at)
}

impl<'a> OrderChange<'a> {
    fn of(recorded: &Recorded<OrderEvent>) -> Self {
        Self {
            order_id: recorded.stream_id,
            status: None,
            paid: None,
            shipped: None,
            cancelled: None,
            version: 0,
            updated_at: recorded.recorded_at,
        }
    }

    fn add(&mut self, recorded: &'a Recorded<OrderEvent>) {
        self.version = recorded.version;
        self.updated_at = recorded.recorded_at;
        match &recorded.event {
            OrderEvent::OrderPlaced(event) => {
                self.status = Some("placed");
                self.paid = Some(Decimal::new(0, event.currency.minor_digits()));
            }
            OrderEvent::PaymentReceived(event) => {
                self.paid = Some(event.paid.decimal());
                if event.outstanding.is_zero() {
                    self.status = Some("paid");
                }
            }
            OrderEvent::OrderShipped(event) => {
                self.shipped = Some(event);
                self.status = Some("shipped");
            }
            OrderEvent::OrderCancelled(event) => {
                self.cancelled = Some(event);
                self.status = Some("cancelled");
            }
        }
    }
}
