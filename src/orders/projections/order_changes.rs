//! Collapses a batch to one change an order: rows to insert, and rows to update.
//!
//! Shared by the tables that hold one row an order. Knows no SQL.

use std::collections::HashMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use uuid::Uuid;

use crate::engine::Recorded;
use crate::orders::domain::{OrderCancelled, OrderEvent, OrderPlaced, OrderShipped};

/// What a batch makes of one order.
#[derive(Debug, Clone)]
pub(super) struct OrderChange<'a> {
    pub order_id: Uuid,
    pub partition: i32,
    /// Set when the order was placed in this batch: then every field below is final.
    pub placed: Option<(&'a OrderPlaced, Timestamp)>,
    /// None where nothing changed it.
    pub status: Option<&'static str>,
    pub paid: Option<Decimal>,
    pub shipped: Option<&'a OrderShipped>,
    pub cancelled: Option<&'a OrderCancelled>,
    pub version: i64,
    pub updated_at: Timestamp,
}

/// The changes of a batch, in the order in which their orders first appear: inserts and updates.
pub(super) fn collapse(batch: &[Recorded<OrderEvent>]) -> (Vec<OrderChange<'_>>, Vec<OrderChange<'_>>) {
    let mut index: HashMap<Uuid, usize> = HashMap::with_capacity(batch.len());
    let mut changes: Vec<OrderChange<'_>> = Vec::with_capacity(batch.len());
    for recorded in batch {
        let at = *index.entry(recorded.stream_id).or_insert_with(|| {
            changes.push(OrderChange {
                order_id: recorded.stream_id,
                partition: recorded.position.partition,
                placed: None,
                status: None,
                paid: None,
                shipped: None,
                cancelled: None,
                version: 0,
                updated_at: recorded.recorded_at,
            });
            changes.len() - 1
        });
        let change = &mut changes[at];
        change.version = recorded.version;
        change.updated_at = recorded.recorded_at;
        match &recorded.event {
            OrderEvent::OrderPlaced(event) => {
                change.placed = Some((event, recorded.recorded_at));
                change.status = Some("placed");
                change.paid = Some(Decimal::new(0, event.currency.minor_digits()));
            }
            OrderEvent::PaymentReceived(event) => {
                change.paid = Some(event.paid.decimal());
                if event.outstanding.is_zero() {
                    change.status = Some("paid");
                }
            }
            OrderEvent::OrderShipped(event) => {
                change.shipped = Some(event);
                change.status = Some("shipped");
            }
            OrderEvent::OrderCancelled(event) => {
                change.cancelled = Some(event);
                change.status = Some("cancelled");
            }
        }
    }
    changes.into_iter().partition(|change| change.placed.is_some())
}

/// One column of some changes.
pub(super) fn column<'a, 'b, T>(changes: &'b [OrderChange<'a>], pick: impl Fn(&'b OrderChange<'a>) -> T) -> Vec<T> {
    changes.iter().map(pick).collect()
}

/// One column of the orders placed.
pub(super) fn placed_column<'a, 'b, T>(
    changes: &'b [OrderChange<'a>],
    pick: impl Fn(&'a OrderPlaced, Timestamp) -> T,
) -> Vec<T> {
    changes.iter().filter_map(|change| change.placed.map(|(event, at)| pick(event, at))).collect()
}
