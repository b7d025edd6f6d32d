//! The order aggregate: its state, which command goes to which rule, and how events fold into it.
//! The rules themselves stand in the command files.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cancel_order::{self, CancelOrder};
use super::codes;
use super::events::{OrderEvent, OrderPlaced, PlacedItem};
use super::money::Money;
use super::place_order::{self, PlaceOrder};
use super::record_payment::{self, RecordPayment};
use super::ship_order::{self, ShipOrder};
use throughline::engine::{Aggregate, Decision, Refusal};

/// What may be asked of an order. Shapes and sizes were checked before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderCommand {
    /// Place it.
    PlaceOrder(PlaceOrder),
    /// Record a payment for it.
    RecordPayment(RecordPayment),
    /// Ship it.
    ShipOrder(ShipOrder),
    /// Cancel it.
    CancelOrder(CancelOrder),
}

/// One order. The default is the order id that nobody has used yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    placed: Option<PlacedOrder>,
}

/// An order that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedOrder {
    /// The order.
    pub order_id: Uuid,
    /// Who ordered.
    pub customer_id: String,
    /// Where it stands.
    pub status: OrderStatus,
    /// The lines.
    pub items: Vec<PlacedItem>,
    /// What it comes to.
    pub total: Money,
    /// What has been paid; never above the total.
    pub paid: Money,
    /// Payments recorded, in order; bounded by [`record_payment::MAX_PAYMENTS`].
    pub payments: Vec<Uuid>,
    /// How it was shipped, once it was.
    pub shipment: Option<Shipment>,
    /// Why it was cancelled, once it was.
    pub cancellation_reason: Option<String>,
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderStatus {
    /// Placed, not (wholly) paid.
    Placed,
    /// Paid, not shipped.
    Paid,
    /// Shipped.
    Shipped,
    /// Cancelled.
    Cancelled,
}

impl OrderStatus {
    /// Lower case, as the public face spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A shipment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    /// Who carries it.
    pub carrier: String,
    /// The carrier's number for it.
    pub tracking_number: String,
}

impl Order {
    /// The order, if it was placed.
    pub fn placed(&self) -> Option<&PlacedOrder> {
        self.placed.as_ref()
    }

    /// The order, or the refusal that says there is none.
    pub(super) fn existing(&self, order_id: Uuid) -> Result<&PlacedOrder, Refusal> {
        self.placed
            .as_ref()
            .ok_or_else(|| Refusal::new(codes::ORDER_NOT_FOUND, format!("order {order_id} was never placed")))
    }

    fn place(event: &OrderPlaced) -> PlacedOrder {
        PlacedOrder {
            order_id: event.order_id,
            customer_id: event.customer_id.clone(),
            status: OrderStatus::Placed,
            items: event.items.clone(),
            total: event.total,
            paid: Money::zero(event.currency),
            payments: Vec::new(),
            shipment: None,
            cancellation_reason: None,
        }
    }
}

impl Aggregate for Order {
    type Command = OrderCommand;
    type Event = OrderEvent;

    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, command: &OrderCommand) -> Decision<OrderEvent> {
        match command {
            OrderCommand::PlaceOrder(command) => place_order::decide(self, command),
            OrderCommand::RecordPayment(command) => record_payment::decide(self, command),
            OrderCommand::ShipOrder(command) => ship_order::decide(self, command),
            OrderCommand::CancelOrder(command) => cancel_order::decide(self, command),
        }
    }

    fn evolve(&mut self, event: &OrderEvent) {
        if let OrderEvent::OrderPlaced(event) = event {
            self.placed = Some(Self::place(event));
            return;
        }
        // Total by promise: an event before the order was placed cannot be decided, and folds to nothing.
        let Some(order) = &mut self.placed else { return };
        match event {
            OrderEvent::OrderPlaced(_) => {}
            OrderEvent::PaymentReceived(event) => {
                order.paid = event.paid;
                order.payments.push(event.payment_id);
                if event.outstanding.is_zero() {
                    order.status = OrderStatus::Paid;
                }
            }
            OrderEvent::OrderShipped(event) => {
                order.status = OrderStatus::Shipped;
                order.shipment =
                    Some(Shipment { carrier: event.carrier.clone(), tracking_number: event.tracking_number.clone() });
            }
            OrderEvent::OrderCancelled(event) => {
                order.status = OrderStatus::Cancelled;
                order.cancellation_reason = Some(event.reason.clone());
            }
        }
    }

    fn weight(&self) -> usize {
        let heap = self.placed.as_ref().map_or(0, |order| {
            order.customer_id.capacity()
                + order.items.capacity() * std::mem::size_of::<PlacedItem>()
                + order.payments.capacity() * std::mem::size_of::<Uuid>()
                + order.shipment.as_ref().map_or(0, |s| s.carrier.capacity() + s.tracking_number.capacity())
                + order.cancellation_reason.as_ref().map_or(0, String::capacity)
        });
        std::mem::size_of::<Self>() + heap
    }
}
