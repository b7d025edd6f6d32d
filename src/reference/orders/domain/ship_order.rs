//! `ShipOrder`: only a paid order ships, and only once.

use uuid::Uuid;

use super::codes;
use super::events::{OrderEvent, OrderShipped};
use super::order::{Order, OrderStatus};
use throughline::engine::{Decision, Refusal};

/// Asks for an order to be shipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShipOrder {
    /// The order.
    pub order_id: Uuid,
    /// Who carries it.
    pub carrier: String,
    /// The carrier's number for it.
    pub tracking_number: String,
}

pub(super) fn decide(order: &Order, command: &ShipOrder) -> Decision<OrderEvent> {
    let placed = order.existing(command.order_id)?;
    let refuse = |code, reason: String| Err(Refusal::new(code, format!("order {} {reason}", placed.order_id)));
    match placed.status {
        OrderStatus::Paid => Ok(vec![OrderEvent::OrderShipped(OrderShipped {
            order_id: placed.order_id,
            carrier: command.carrier.clone(),
            tracking_number: command.tracking_number.clone(),
        })]),
        OrderStatus::Placed => {
            refuse(codes::ORDER_NOT_PAID, format!("is not paid: {} of {} arrived", placed.paid, placed.total))
        }
        OrderStatus::Shipped => refuse(codes::ORDER_ALREADY_SHIPPED, "was shipped before".to_owned()),
        OrderStatus::Cancelled => refuse(codes::ORDER_CANCELLED, "was cancelled and does not ship".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::*;
    use super::*;
    use throughline::engine::given::given;

    #[test]
    fn a_paid_order_ships() {
        given::<Order>([placed("10"), received(1, "10", "10", "0")]).when(&ship()).then([shipped()]);
    }

    #[test]
    fn an_order_that_is_not_wholly_paid_does_not_ship() {
        given::<Order>([placed("10")]).when(&ship()).then_refused("ORDER_NOT_PAID");
        given::<Order>([placed("10"), received(1, "9.99", "9.99", "0.01")])
            .when(&ship())
            .then_refused("ORDER_NOT_PAID");
    }

    #[test]
    fn what_is_unknown_shipped_or_cancelled_does_not_ship() {
        given::<Order>([]).when(&ship()).then_refused("ORDER_NOT_FOUND");
        given::<Order>([placed("10"), received(1, "10", "10", "0"), shipped()])
            .when(&ship())
            .then_refused("ORDER_ALREADY_SHIPPED");
        given::<Order>([placed("10"), received(1, "10", "10", "0"), cancelled("10")])
            .when(&ship())
            .then_refused("ORDER_CANCELLED");
    }
}
