//! What a command means, as bytes: those that mean the same are the same bytes, however they were written.
//!
//! Only the fingerprint of these bytes is kept, with a command's outcome, to tell a repetition from another command. The
//! form is kept like a schema: one that changes takes retries of commands decided before for other commands.

use super::domain::{CancelOrder, OrderCommand, OrderedItem, PlaceOrder, RecordPayment, ShipOrder};

/// Writes the meaning. Patterns name every field, so that a new one cannot be forgotten here; the order's id is no part,
/// since ids are told apart within an order anyway.
pub(super) fn write(command: &OrderCommand, into: &mut Vec<u8>) {
    match command {
        OrderCommand::PlaceOrder(PlaceOrder { order_id: _, customer_id, currency, items, payment_token }) => {
            into.push(1);
            text(into, customer_id);
            text(into, currency.code());
            number(into, items.len() as i64);
            for OrderedItem { product_id, quantity, unit_price } in items {
                into.extend_from_slice(product_id.as_bytes());
                number(into, quantity.get());
                number(into, unit_price.ten_thousandths());
            }
            // Nothing where there is none: what was decided before it could be said means the same.
            if let Some(token) = payment_token {
                text(into, token);
            }
        }
        OrderCommand::RecordPayment(RecordPayment { order_id: _, payment_id, amount }) => {
            into.push(2);
            into.extend_from_slice(payment_id.as_bytes());
            text(into, amount.currency().code());
            number(into, amount.minor_units());
        }
        OrderCommand::ShipOrder(ShipOrder { order_id: _, carrier, tracking_number }) => {
            into.push(3);
            text(into, carrier);
            text(into, tracking_number);
        }
        OrderCommand::CancelOrder(CancelOrder { order_id: _, reason }) => {
            into.push(4);
            text(into, reason);
        }
    }
}

/// With its length before it, so that ("ab", "c") and ("a", "bc") differ.
fn text(into: &mut Vec<u8>, text: &str) {
    number(into, text.len() as i64);
    into.extend_from_slice(text.as_bytes());
}

fn number(into: &mut Vec<u8>, number: i64) {
    into.extend_from_slice(&number.to_be_bytes());
}
