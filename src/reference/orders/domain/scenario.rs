//! The words that the domain's tests are told in: one order, in US dollars, and what happened to it.

use uuid::Uuid;

use super::*;

pub const ORDER: Uuid = Uuid::from_u128(0x0de5);

pub fn usd(text: &str) -> Money {
    Money::parse(text, Currency::USD).unwrap()
}

fn price(text: &str) -> UnitPrice {
    UnitPrice::parse(text).unwrap()
}

pub fn placed_item(product: u128, quantity: i64, unit_price: &str, line_total: &str) -> PlacedItem {
    PlacedItem {
        product_id: Uuid::from_u128(product),
        quantity: Quantity::new(quantity).unwrap(),
        unit_price: price(unit_price),
        line_total: usd(line_total),
    }
}

pub fn placed(total: &str) -> OrderEvent {
    OrderEvent::OrderPlaced(OrderPlaced {
        order_id: ORDER,
        customer_id: "customer-42".to_owned(),
        currency: Currency::USD,
        items: vec![placed_item(0, 1, total, total)],
        total: usd(total),
        payment_token: None,
    })
}

pub fn received(payment: u128, amount: &str, paid: &str, outstanding: &str) -> OrderEvent {
    OrderEvent::PaymentReceived(PaymentReceived {
        order_id: ORDER,
        payment_id: Uuid::from_u128(payment),
        amount: usd(amount),
        paid: usd(paid),
        outstanding: usd(outstanding),
    })
}

pub fn shipped() -> OrderEvent {
    OrderEvent::OrderShipped(OrderShipped {
        order_id: ORDER,
        carrier: "DHL".to_owned(),
        tracking_number: "JD014600".to_owned(),
    })
}

pub fn cancelled(refund_due: &str) -> OrderEvent {
    OrderEvent::OrderCancelled(OrderCancelled {
        order_id: ORDER,
        reason: "changed my mind".to_owned(),
        refund_due: usd(refund_due),
    })
}

pub fn place(lines: &[(i64, &str)]) -> OrderCommand {
    let line = |(n, (quantity, unit_price)): (usize, &(i64, &str))| OrderedItem {
        product_id: Uuid::from_u128(n as u128),
        quantity: Quantity::new(*quantity).unwrap(),
        unit_price: price(unit_price),
    };
    OrderCommand::PlaceOrder(PlaceOrder {
        order_id: ORDER,
        customer_id: "customer-42".to_owned(),
        currency: Currency::USD,
        items: lines.iter().enumerate().map(line).collect(),
        payment_token: None,
    })
}

pub fn pay_in(payment: u128, amount: &str, currency: &str) -> OrderCommand {
    OrderCommand::RecordPayment(RecordPayment {
        order_id: ORDER,
        payment_id: Uuid::from_u128(payment),
        amount: Money::parse(amount, Currency::from_code(currency).unwrap()).unwrap(),
    })
}

pub fn pay(payment: u128, amount: &str) -> OrderCommand {
    pay_in(payment, amount, "USD")
}

pub fn ship() -> OrderCommand {
    OrderCommand::ShipOrder(ShipOrder {
        order_id: ORDER,
        carrier: "DHL".to_owned(),
        tracking_number: "JD014600".to_owned(),
    })
}

pub fn cancel() -> OrderCommand {
    OrderCommand::CancelOrder(CancelOrder { order_id: ORDER, reason: "changed my mind".to_owned() })
}
