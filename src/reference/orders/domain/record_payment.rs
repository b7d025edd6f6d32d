//! `RecordPayment`: payments may be partial and never exceed the total; each payment id counts once.

use uuid::Uuid;

use super::codes;
use super::events::{OrderEvent, PaymentReceived};
use super::money::Money;
use super::order::{Order, OrderStatus};
use throughline::engine::{Decision, Refusal};

/// The most payments of one order: bounds the state that is kept in memory and in snapshots.
pub const MAX_PAYMENTS: usize = 1_000;

/// Tells that money arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordPayment {
    /// The order it is for.
    pub order_id: Uuid,
    /// The payment, in the payer's books.
    pub payment_id: Uuid,
    /// How much; above zero.
    pub amount: Money,
}

pub(super) fn decide(order: &Order, command: &RecordPayment) -> Decision<OrderEvent> {
    let placed = order.existing(command.order_id)?;
    if placed.payments.contains(&command.payment_id) {
        // Before the status: whoever repeats a payment learns that it counted, also on a shipped order.
        let reason = format!("payment {} of order {} was recorded before", command.payment_id, placed.order_id);
        return Err(Refusal::new(codes::PAYMENT_ALREADY_RECORDED, reason));
    }
    if placed.status == OrderStatus::Cancelled {
        let reason = format!("order {} was cancelled and takes no payment", placed.order_id);
        return Err(Refusal::new(codes::ORDER_CANCELLED, reason));
    }
    let (total, amount) = (placed.total, command.amount);
    if amount.currency() != total.currency() {
        let reason =
            format!("order {} is in {}, the payment in {}", placed.order_id, total.currency(), amount.currency());
        return Err(Refusal::new(codes::CURRENCY_MISMATCH, reason));
    }
    let exceeds = || {
        let reason = format!("{amount} on top of {} would exceed the total of {total}", placed.paid);
        Refusal::new(codes::PAYMENT_EXCEEDS_TOTAL, reason)
    };
    let paid = placed.paid.checked_add(amount).map_err(|_| exceeds())?;
    let outstanding = total.checked_sub(paid).map_err(|_| exceeds())?;
    if placed.payments.len() >= MAX_PAYMENTS {
        let reason = format!("order {} has {MAX_PAYMENTS} payments, the most an order takes", placed.order_id);
        return Err(Refusal::new(codes::TOO_MANY_PAYMENTS, reason));
    }
    Ok(vec![OrderEvent::PaymentReceived(PaymentReceived {
        order_id: placed.order_id,
        payment_id: command.payment_id,
        amount,
        paid,
        outstanding,
    })])
}

#[cfg(test)]
mod tests {
    use super::super::scenario::*;
    use super::*;
    use throughline::engine::given::given;

    #[test]
    fn payments_may_be_partial() {
        given::<Order>([placed("10")]).when(&pay(1, "4")).then([received(1, "4", "4", "6")]);
        given::<Order>([placed("10"), received(1, "4", "4", "6")])
            .when(&pay(2, "6"))
            .then([received(2, "6", "10", "0")]);
    }

    #[test]
    fn payments_never_exceed_the_total() {
        given::<Order>([placed("10")]).when(&pay(1, "10.01")).then_refused("PAYMENT_EXCEEDS_TOTAL");
        given::<Order>([placed("10"), received(1, "10", "10", "0")])
            .when(&pay(2, "0.01"))
            .then_refused("PAYMENT_EXCEEDS_TOTAL");
        given::<Order>([placed("10"), received(1, "10", "10", "0"), shipped()])
            .when(&pay(2, "0.01"))
            .then_refused("PAYMENT_EXCEEDS_TOTAL");
    }

    #[test]
    fn a_payment_counts_once_whatever_the_command_id() {
        for past in [
            vec![placed("10"), received(1, "4", "4", "6")],
            vec![placed("10"), received(1, "10", "10", "0"), shipped()],
            vec![placed("10"), received(1, "4", "4", "6"), cancelled("4")],
        ] {
            given::<Order>(past).when(&pay(1, "4")).then_refused("PAYMENT_ALREADY_RECORDED");
        }
    }

    #[test]
    fn a_payment_needs_a_live_order_in_its_currency() {
        given::<Order>([]).when(&pay(1, "4")).then_refused("ORDER_NOT_FOUND");
        given::<Order>([placed("10"), cancelled("0")]).when(&pay(1, "4")).then_refused("ORDER_CANCELLED");
        given::<Order>([placed("10")]).when(&pay_in(1, "4", "EUR")).then_refused("CURRENCY_MISMATCH");
    }

    #[test]
    fn the_number_of_payments_is_bounded() {
        let mut past = vec![placed("100")];
        for n in 1..=MAX_PAYMENTS as i64 {
            let owed = Money::from_minor(10_000 - n, usd("0").currency()).unwrap();
            past.push(received(
                n as u128,
                "0.01",
                &(usd("100").checked_sub(owed).unwrap()).amount_text(),
                &owed.amount_text(),
            ));
        }
        given::<Order>(past).when(&pay(5_000, "1")).then_refused("TOO_MANY_PAYMENTS");
    }
}
