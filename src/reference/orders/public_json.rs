//! Orders and their events as public JSON: the shape of `GET /api/orders/{id}` and of its history.
//! Money is decimal text. Times and versions belong to the envelope and are added by the caller.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::domain::{Currency, Order, OrderEvent, PlacedItem, PlacedOrder};

/// The state of an order, without version and times; null if it was never placed.
pub(super) fn order_json(order: &Order) -> Value {
    order.placed().map_or(Value::Null, placed_json)
}

fn placed_json(order: &PlacedOrder) -> Value {
    let mut json = json!({
        "orderId": order.order_id,
        "customerId": order.customer_id,
        "status": order.status.as_str(),
        "currency": order.total.currency().code(),
        "total": order.total.amount_text(),
        "paid": order.paid.amount_text(),
        "items": public_items(&order.items, order.total.currency()),
    });
    if let Some(shipment) = &order.shipment {
        json["carrier"] = shipment.carrier.as_str().into();
        json["trackingNumber"] = shipment.tracking_number.as_str().into();
    }
    if let Some(reason) = &order.cancellation_reason {
        json["cancellationReason"] = reason.as_str().into();
    }
    json
}

/// One event, newest shape.
pub(super) fn event_json(event: &OrderEvent) -> Value {
    serde_json::to_value(PublicEvent::of(event)).unwrap_or_default()
}

/// One event, newest shape, borrowed: for writers that need its text alone.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub(super) enum PublicEvent<'a> {
    OrderPlaced {
        order_id: Uuid,
        customer_id: &'a str,
        currency: &'static str,
        items: Vec<PublicItem>,
        total: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        payment: Option<PublicPayment<'a>>,
    },
    PaymentReceived {
        order_id: Uuid,
        payment_id: Uuid,
        amount: String,
        currency: &'static str,
        paid: String,
        outstanding: String,
    },
    OrderShipped {
        order_id: Uuid,
        carrier: &'a str,
        tracking_number: &'a str,
    },
    OrderCancelled {
        order_id: Uuid,
        reason: &'a str,
        refund_due: String,
        currency: &'static str,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct PublicPayment<'a> {
    token: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PublicItem {
    product_id: Uuid,
    quantity: i64,
    unit_price: String,
    line_total: String,
}

impl<'a> PublicEvent<'a> {
    pub(super) fn of(event: &'a OrderEvent) -> Self {
        match event {
            OrderEvent::OrderPlaced(placed) => Self::OrderPlaced {
                order_id: placed.order_id,
                customer_id: &placed.customer_id,
                currency: placed.currency.code(),
                items: public_items(&placed.items, placed.currency),
                total: placed.total.amount_text(),
                payment: placed.payment_token.as_deref().map(|token| PublicPayment { token }),
            },
            OrderEvent::PaymentReceived(received) => Self::PaymentReceived {
                order_id: received.order_id,
                payment_id: received.payment_id,
                amount: received.amount.amount_text(),
                currency: received.amount.currency().code(),
                paid: received.paid.amount_text(),
                outstanding: received.outstanding.amount_text(),
            },
            OrderEvent::OrderShipped(shipped) => Self::OrderShipped {
                order_id: shipped.order_id,
                carrier: &shipped.carrier,
                tracking_number: &shipped.tracking_number,
            },
            OrderEvent::OrderCancelled(cancelled) => Self::OrderCancelled {
                order_id: cancelled.order_id,
                reason: &cancelled.reason,
                refund_due: cancelled.refund_due.amount_text(),
                currency: cancelled.refund_due.currency().code(),
            },
        }
    }
}

fn public_items(items: &[PlacedItem], currency: Currency) -> Vec<PublicItem> {
    let item = |item: &PlacedItem| PublicItem {
        product_id: item.product_id,
        quantity: item.quantity.get(),
        unit_price: item.unit_price.text(currency),
        line_total: item.line_total.amount_text(),
    };
    items.iter().map(item).collect()
}
