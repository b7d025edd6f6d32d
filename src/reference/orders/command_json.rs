//! Commands to JSON: exactly the shape of the public contract, for whoever sends them.

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::domain::{OrderCommand, OrderedItem, PlaceOrder};
use throughline::engine::Command;

/// A command as it stands on the commands topic.
#[derive(Serialize)]
#[serde(tag = "type")]
pub enum CommandJson<'a> {
    /// Place an order.
    #[serde(rename_all = "camelCase")]
    PlaceOrder {
        /// Idempotency key.
        command_id: Uuid,
        /// The order.
        order_id: Uuid,
        /// Refuse unless the order stands at this version.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_version: Option<i64>,
        /// Who orders.
        customer_id: &'a str,
        /// ISO 4217.
        currency: &'static str,
        /// The lines.
        items: ItemsJson<'a>,
        /// How it is to be paid, where it says so.
        #[serde(skip_serializing_if = "Option::is_none")]
        payment: Option<PaymentJson<'a>>,
    },
    /// Record a payment.
    #[serde(rename_all = "camelCase")]
    RecordPayment {
        /// Idempotency key.
        command_id: Uuid,
        /// The order.
        order_id: Uuid,
        /// Refuse unless the order stands at this version.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_version: Option<i64>,
        /// The payment.
        payment_id: Uuid,
        /// Decimal text with the currency's minor digits.
        amount: String,
        /// ISO 4217.
        currency: &'static str,
    },
    /// Ship an order.
    #[serde(rename_all = "camelCase")]
    ShipOrder {
        /// Idempotency key.
        command_id: Uuid,
        /// The order.
        order_id: Uuid,
        /// Refuse unless the order stands at this version.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_version: Option<i64>,
        /// Who carries it.
        carrier: &'a str,
        /// The carrier's number for it.
        tracking_number: &'a str,
    },
    /// Cancel an order.
    #[serde(rename_all = "camelCase")]
    CancelOrder {
        /// Idempotency key.
        command_id: Uuid,
        /// The order.
        order_id: Uuid,
        /// Refuse unless the order stands at this version.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_version: Option<i64>,
        /// Why.
        reason: &'a str,
    },
}

/// How a `PlaceOrder` is to be paid.
#[derive(Serialize)]
pub struct PaymentJson<'a> {
    /// What the payment gateway knows the payer by.
    pub token: &'a str,
}

/// The lines of a `PlaceOrder`, written without an intermediate list.
pub struct ItemsJson<'a>(&'a PlaceOrder);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemJson {
    product_id: Uuid,
    quantity: i64,
    unit_price: String,
}

impl Serialize for ItemsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.items.iter().map(|item: &OrderedItem| ItemJson {
            product_id: item.product_id,
            quantity: item.quantity.get(),
            unit_price: item.unit_price.text(self.0.currency),
        }))
    }
}

impl<'a> From<&'a Command<OrderCommand>> for CommandJson<'a> {
    fn from(command: &'a Command<OrderCommand>) -> Self {
        let meta = &command.meta;
        let (command_id, order_id, expected_version) = (meta.command_id, meta.stream_id, meta.expected_version);
        match &command.payload {
            OrderCommand::PlaceOrder(place) => Self::PlaceOrder {
                command_id,
                order_id,
                expected_version,
                customer_id: &place.customer_id,
                currency: place.currency.code(),
                items: ItemsJson(place),
                payment: place.payment_token.as_deref().map(|token| PaymentJson { token }),
            },
            OrderCommand::RecordPayment(payment) => Self::RecordPayment {
                command_id,
                order_id,
                expected_version,
                payment_id: payment.payment_id,
                amount: payment.amount.amount_text(),
                currency: payment.amount.currency().code(),
            },
            OrderCommand::ShipOrder(ship) => Self::ShipOrder {
                command_id,
                order_id,
                expected_version,
                carrier: &ship.carrier,
                tracking_number: &ship.tracking_number,
            },
            OrderCommand::CancelOrder(cancel) => {
                Self::CancelOrder { command_id, order_id, expected_version, reason: &cancel.reason }
            }
        }
    }
}

/// The value of a commands record: what [`super::parse_command`] reads back as the same command.
pub fn command_to_json(command: &Command<OrderCommand>) -> Vec<u8> {
    serde_json::to_vec(&CommandJson::from(command)).expect("a command of strings and integers always serializes")
}
