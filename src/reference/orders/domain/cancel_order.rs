//! `CancelOrder`: what has not shipped can be called off; what was paid is then due as a refund.

use uuid::Uuid;

use super::codes;
use super::events::{OrderCancelled, OrderEvent};
use super::order::{Order, OrderStatus};
use throughline::engine::{Decision, Refusal};

/// Asks for an order to be called off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelOrder {
    /// The order.
    pub order_id: Uuid,
    /// Why.
    pub reason: String,
}

pub(super) fn decide(order: &Order, command: &CancelOrder) -> Decision<OrderEvent> {
    let placed = order.existing(command.order_id)?;
    let refuse = |code, reason: &str| Err(Refusal::new(code, format!("order {} {reason}", placed.order_id)));
    match placed.status {
        OrderStatus::Placed | OrderStatus::Paid => Ok(vec![OrderEvent::OrderCancelled(OrderCancelled {
            order_id: placed.order_id,
            reason: command.reason.clone(),
            refund_due: placed.paid,
        })]),
        OrderStatus::Shipped => refuse(codes::ORDER_ALREADY_SHIPPED, "was shipped and cannot be cancelled"),
        OrderStatus::Cancelled => refuse(codes::ORDER_CANCELLED, "was cancelled before"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::*;
    use super::*;
    use throughline::engine::given::given;

    #[test]
    fn cancelling_records_the_refund_due() {
        given::<Order>([placed("10")]).when(&cancel()).then([cancelled("0")]);
        given::<Order>([placed("10"), received(1, "4", "4", "6")]).when(&cancel()).then([cancelled("4")]);
        given::<Order>([placed("10"), received(1, "10", "10", "0")]).when(&cancel()).then([cancelled("10")]);
    }

    #[test]
    fn what_is_unknown_shipped_or_cancelled_does_not_cancel() {
        given::<Order>([]).when(&cancel()).then_refused("ORDER_NOT_FOUND");
        given::<Order>([placed("10"), received(1, "10", "10", "0"), shipped()])
            .when(&cancel())
            .then_refused("ORDER_ALREADY_SHIPPED");
        given::<Order>([placed("10"), cancelled("0")]).when(&cancel()).then_refused("ORDER_CANCELLED");
    }
}
