//! `PlaceOrder`: an order id is used once; the total is the sum of its lines and within bounds.

use uuid::Uuid;

use super::codes;
use super::currency::Currency;
use super::events::{OrderEvent, OrderPlaced, PlacedItem};
use super::money::{Money, MoneyError};
use super::order::Order;
use super::price::{Quantity, UnitPrice};
use throughline::engine::{Decision, Refusal};

/// The most lines of an order.
pub const MAX_ITEMS: usize = 1_000;

/// Asks for an order to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceOrder {
    /// The order.
    pub order_id: Uuid,
    /// Who orders.
    pub customer_id: String,
    /// The currency of every price in it.
    pub currency: Currency,
    /// What is ordered: 1 to [`MAX_ITEMS`] lines.
    pub items: Vec<OrderedItem>,
    /// What the payment gateway knows the payer by, where the order is to be paid through it.
    pub payment_token: Option<String>,
}

/// One line as ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderedItem {
    /// What.
    pub product_id: Uuid,
    /// How many.
    pub quantity: Quantity,
    /// For how much a piece.
    pub unit_price: UnitPrice,
}

pub(super) fn decide(order: &Order, command: &PlaceOrder) -> Decision<OrderEvent> {
    if let Some(placed) = order.placed() {
        let reason = format!("order {} was placed before and is {}", placed.order_id, placed.status.as_str());
        return Err(Refusal::new(codes::ORDER_ALREADY_PLACED, reason));
    }
    let (items, total) = priced(command).map_err(|error| {
        Refusal::new(codes::TOTAL_OUT_OF_RANGE, format!("the total of order {}: {error}", command.order_id))
    })?;
    if total.is_zero() {
        // Nothing could ever be paid for it, so it could never ship.
        let reason = format!("the total of order {} must be above zero", command.order_id);
        return Err(Refusal::new(codes::TOTAL_OUT_OF_RANGE, reason));
    }
    Ok(vec![OrderEvent::OrderPlaced(OrderPlaced {
        order_id: command.order_id,
        customer_id: command.customer_id.clone(),
        currency: command.currency,
        items,
        total,
        payment_token: command.payment_token.clone(),
    })])
}

fn priced(command: &PlaceOrder) -> Result<(Vec<PlacedItem>, Money), MoneyError> {
    let mut total = Money::zero(command.currency);
    let mut items = Vec::with_capacity(command.items.len());
    for item in &command.items {
        let line_total = item.quantity.line_total(item.unit_price, command.currency)?;
        total = total.checked_add(line_total)?;
        let OrderedItem { product_id, quantity, unit_price } = *item;
        items.push(PlacedItem { product_id, quantity, unit_price, line_total });
    }
    Ok((items, total))
}

#[cfg(test)]
mod tests {
    use super::super::scenario::*;
    use super::*;
    use throughline::engine::given::given;

    #[test]
    fn a_new_order_is_placed_with_its_totals() {
        let command = place(&[(2, "19.99"), (3, "0.005")]);
        given::<Order>([]).when(&command).then([OrderEvent::OrderPlaced(OrderPlaced {
            order_id: ORDER,
            customer_id: "customer-42".to_owned(),
            currency: Currency::USD,
            items: vec![placed_item(0, 2, "19.99", "39.98"), placed_item(1, 3, "0.005", "0.02")],
            total: usd("40.00"),
            payment_token: None,
        })]);
    }

    #[test]
    fn an_order_id_is_used_once() {
        for past in [vec![placed("10")], vec![placed("10"), cancelled("0")]] {
            given::<Order>(past).when(&place(&[(1, "10")])).then_refused("ORDER_ALREADY_PLACED");
        }
    }

    #[test]
    fn a_total_of_nothing_is_refused() {
        given::<Order>([]).when(&place(&[(5, "0")])).then_refused("TOTAL_OUT_OF_RANGE");
        given::<Order>([]).when(&place(&[(1, "0.005")])).then_refused("TOTAL_OUT_OF_RANGE");
    }

    #[test]
    fn a_total_beyond_the_bound_is_refused() {
        given::<Order>([]).when(&place(&[(1_000_000, "10000000.01")])).then_refused("TOTAL_OUT_OF_RANGE");
        given::<Order>([]).when(&place(&[(1_000_000, "10000000"), (1, "0.01")])).then_refused("TOTAL_OUT_OF_RANGE");
    }
}
