//! Orders and their events as public JSON: the shape of `GET /api/orders/{id}` and of its history.
//! Money is decimal text. Times and versions belong to the envelope and are added by the caller.

use serde_json::{Value, json};

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
        "items": items_json(&order.items, order.total.currency()),
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
    let mut json = match event {
        OrderEvent::OrderPlaced(placed) => json!({
            "customerId": placed.customer_id,
            "currency": placed.currency.code(),
            "items": items_json(&placed.items, placed.currency),
            "total": placed.total.amount_text(),
        }),
        OrderEvent::PaymentReceived(received) => json!({
            "paymentId": received.payment_id,
            "amount": received.amount.amount_text(),
            "currency": received.amount.currency().code(),
            "paid": received.paid.amount_text(),
            "outstanding": received.outstanding.amount_text(),
        }),
        OrderEvent::OrderShipped(shipped) => json!({
            "carrier": shipped.carrier,
            "trackingNumber": shipped.tracking_number,
        }),
        OrderEvent::OrderCancelled(cancelled) => json!({
            "reason": cancelled.reason,
            "refundDue": cancelled.refund_due.amount_text(),
            "currency": cancelled.refund_due.currency().code(),
        }),
    };
    json["type"] = event.type_name().into();
    json["orderId"] = event.order_id().to_string().into();
    json
}

fn items_json(items: &[PlacedItem], currency: Currency) -> Value {
    let item = |item: &PlacedItem| {
        json!({
            "productId": item.product_id,
            "quantity": item.quantity.get(),
            "unitPrice": item.unit_price.text(currency),
            "lineTotal": item.line_total.amount_text(),
        })
    };
    items.iter().map(item).collect()
}
