//! What happened to an order: the newest shape of each event, self-contained, so that a read table
//! can be folded without looking anything up. Older shapes live in the schemas and upcasters only.

use uuid::Uuid;

use super::currency::Currency;
use super::money::Money;
use super::price::{Quantity, UnitPrice};

/// Everything that can happen to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderEvent {
    /// The order was placed.
    OrderPlaced(OrderPlaced),
    /// Some or all of the total was paid.
    PaymentReceived(PaymentReceived),
    /// The order left the house.
    OrderShipped(OrderShipped),
    /// The order was called off.
    OrderCancelled(OrderCancelled),
}

impl OrderEvent {
    /// Type name without name space.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::OrderPlaced(_) => "OrderPlaced",
            Self::PaymentReceived(_) => "PaymentReceived",
            Self::OrderShipped(_) => "OrderShipped",
            Self::OrderCancelled(_) => "OrderCancelled",
        }
    }

    /// The order it happened to.
    pub fn order_id(&self) -> Uuid {
        match self {
            Self::OrderPlaced(event) => event.order_id,
            Self::PaymentReceived(event) => event.order_id,
            Self::OrderShipped(event) => event.order_id,
            Self::OrderCancelled(event) => event.order_id,
        }
    }
}

/// An order was placed: what was ordered, by whom, and what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderPlaced {
    /// The order.
    pub order_id: Uuid,
    /// Who ordered, in the caller's own terms.
    pub customer_id: String,
    /// One currency for the whole order.
    pub currency: Currency,
    /// The lines, 1 to 1,000.
    pub items: Vec<PlacedItem>,
    /// Sum of the line totals; above zero.
    pub total: Money,
    /// What the payment gateway knows the payer by, where the order is to be paid through it.
    pub payment_token: Option<String>,
}

/// One line of a placed order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PlacedItem {
    /// What was ordered.
    pub product_id: Uuid,
    /// How many.
    pub quantity: Quantity,
    /// For how much a piece.
    pub unit_price: UnitPrice,
    /// Quantity times price, rounded half to even to minor digits.
    pub line_total: Money,
}

/// A payment was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentReceived {
    /// The order.
    pub order_id: Uuid,
    /// The payment, in the payer's books.
    pub payment_id: Uuid,
    /// This payment.
    pub amount: Money,
    /// All payments so far, this one included.
    pub paid: Money,
    /// What is still owed; zero means that the order is paid.
    pub outstanding: Money,
}

/// The order was handed to a carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderShipped {
    /// The order.
    pub order_id: Uuid,
    /// Who carries it.
    pub carrier: String,
    /// The carrier's number for it.
    pub tracking_number: String,
}

/// The order was cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderCancelled {
    /// The order.
    pub order_id: Uuid,
    /// Why, in the caller's words.
    pub reason: String,
    /// What had been paid and has to be given back; zero if nothing had.
    pub refund_due: Money,
}
