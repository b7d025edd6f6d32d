//! Public event JSON back to events: what `order_history` keeps is folded again for time travel.
//! The other way round is `public_json`'s; the two are tested against each other.

use serde_json::Value;
use uuid::Uuid;

use super::domain::{
    Currency, Money, OrderCancelled, OrderEvent, OrderPlaced, OrderShipped, PaymentReceived, PlacedItem, Quantity,
    UnitPrice,
};

/// The event of a public payload; none when it is none of ours.
pub(super) fn event_of_json(payload: &Value) -> Option<OrderEvent> {
    let order_id = id(payload, "orderId")?;
    let currency = || Currency::from_code(text(payload, "currency")?);
    Some(match text(payload, "type")? {
        "OrderPlaced" => {
            let currency = currency()?;
            let items = payload.get("items")?.as_array()?.iter().map(|item| placed_item(item, currency));
            OrderEvent::OrderPlaced(OrderPlaced {
                order_id,
                customer_id: text(payload, "customerId")?.to_owned(),
                currency,
                items: items.collect::<Option<_>>()?,
                total: money(payload, "total", currency)?,
                payment_token: payload.get("payment").and_then(|payment| text(payment, "token")).map(str::to_owned),
            })
        }
        "PaymentReceived" => OrderEvent::PaymentReceived(PaymentReceived {
            order_id,
            payment_id: id(payload, "paymentId")?,
            amount: money(payload, "amount", currency()?)?,
            paid: money(payload, "paid", currency()?)?,
            outstanding: money(payload, "outstanding", currency()?)?,
        }),
        "OrderShipped" => OrderEvent::OrderShipped(OrderShipped {
            order_id,
            carrier: text(payload, "carrier")?.to_owned(),
            tracking_number: text(payload, "trackingNumber")?.to_owned(),
        }),
        "OrderCancelled" => OrderEvent::OrderCancelled(OrderCancelled {
            order_id,
            reason: text(payload, "reason")?.to_owned(),
            refund_due: money(payload, "refundDue", currency()?)?,
        }),
        _ => return None,
    })
}

fn placed_item(item: &Value, currency: Currency) -> Option<PlacedItem> {
    Some(PlacedItem {
        product_id: id(item, "productId")?,
        quantity: Quantity::new(item.get("quantity")?.as_i64()?)?,
        unit_price: UnitPrice::parse(text(item, "unitPrice")?).ok()?,
        line_total: money(item, "lineTotal", currency)?,
    })
}

fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

fn id(object: &Value, name: &str) -> Option<Uuid> {
    Uuid::try_parse(text(object, name)?).ok()
}

fn money(object: &Value, name: &str, currency: Currency) -> Option<Money> {
    Money::parse(text(object, name)?, currency).ok()
}

#[cfg(test)]
mod tests {
    use super::super::public_json::event_json;
    use super::*;

    #[test]
    fn every_event_comes_back_from_its_public_form() {
        let order_id = Uuid::from_u128(1);
        let euro = Currency::from_code("EUR").unwrap();
        let money = |minor| Money::from_minor(minor, euro).unwrap();
        let item = PlacedItem {
            product_id: Uuid::from_u128(2),
            quantity: Quantity::new(3).unwrap(),
            unit_price: UnitPrice::parse("0.0125").unwrap(),
            line_total: money(4),
        };
        let events = [
            OrderEvent::OrderPlaced(OrderPlaced {
                order_id,
                customer_id: "c \"1\"".into(),
                currency: euro,
                items: vec![item],
                total: money(4),
                payment_token: Some("tok_approve".into()),
            }),
            OrderEvent::PaymentReceived(PaymentReceived {
                order_id,
                payment_id: Uuid::from_u128(3),
                amount: money(1),
                paid: money(1),
                outstanding: money(3),
            }),
            OrderEvent::OrderShipped(OrderShipped { order_id, carrier: "DHL".into(), tracking_number: "1".into() }),
            OrderEvent::OrderCancelled(OrderCancelled { order_id, reason: "no".into(), refund_due: money(1) }),
        ];
        for event in events {
            assert_eq!(event_of_json(&event_json(&event)), Some(event));
        }
        assert_eq!(event_of_json(&serde_json::json!({"type": "Other", "orderId": order_id})), None);
    }
}
