//! The order as a consistency boundary: money, state, commands, events and the rules between them.
//!
//! Pure: no clock, no random, no I/O, no wire format. One file per command holds its rule and its
//! given/when/then tests. The public contract (CONTRACT's "Commands") is the authority on rules and codes.

mod cancel_order;
mod currency;
mod events;
mod money;
mod order;
mod place_order;
mod price;
#[cfg(test)]
mod properties;
mod record_payment;
#[cfg(test)]
mod scenario;
mod ship_order;

pub use cancel_order::CancelOrder;
pub use currency::Currency;
pub use events::{OrderCancelled, OrderEvent, OrderPlaced, OrderShipped, PaymentReceived, PlacedItem};
pub use money::{MAX_MINOR_UNITS, Money, MoneyError};
pub use order::{Order, OrderCommand, OrderStatus, PlacedOrder, Shipment};
pub use place_order::{MAX_ITEMS, OrderedItem, PlaceOrder};
pub use price::{MAX_QUANTITY, Quantity, UnitPrice};
pub use record_payment::{MAX_PAYMENTS, RecordPayment};
pub use ship_order::ShipOrder;

/// Refusal codes of this context. Callers match on them: never change one.
pub mod codes {
    /// The order id was used before.
    pub const ORDER_ALREADY_PLACED: &str = "ORDER_ALREADY_PLACED";
    /// No such order.
    pub const ORDER_NOT_FOUND: &str = "ORDER_NOT_FOUND";
    /// Only a paid order ships.
    pub const ORDER_NOT_PAID: &str = "ORDER_NOT_PAID";
    /// A shipped order neither ships again nor cancels.
    pub const ORDER_ALREADY_SHIPPED: &str = "ORDER_ALREADY_SHIPPED";
    /// A cancelled order takes no further command.
    pub const ORDER_CANCELLED: &str = "ORDER_CANCELLED";
    /// The payment would bring the amount paid above the total.
    pub const PAYMENT_EXCEEDS_TOTAL: &str = "PAYMENT_EXCEEDS_TOTAL";
    /// The payment is in another currency than the order.
    pub const CURRENCY_MISMATCH: &str = "CURRENCY_MISMATCH";
    /// The payment id is on the order's books already.
    pub const PAYMENT_ALREADY_RECORDED: &str = "PAYMENT_ALREADY_RECORDED";
    /// The order holds as many payments as an order may.
    pub const TOO_MANY_PAYMENTS: &str = "TOO_MANY_PAYMENTS";
    /// The total is zero or above what an order may come to.
    pub const TOTAL_OUT_OF_RANGE: &str = "TOTAL_OUT_OF_RANGE";
}
