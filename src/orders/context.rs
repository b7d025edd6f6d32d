//! The context as the loops see it: names, aggregate, wire formats. The only type they need.

use serde_json::Value;
use uuid::Uuid;

use super::codec::OrdersCodec;
use super::domain::{Order, OrderCommand, OrderEvent};
use super::{command, meaning, public_json};
use crate::engine::{BoundedContext, Command, InvalidCommand};

/// The bounded context of orders.
#[derive(Debug, Clone, Copy)]
pub struct OrdersContext;

impl BoundedContext for OrdersContext {
    type Aggregate = Order;
    type Codec = OrdersCodec;

    const NAME: &'static str = "orders";
    const STREAM_ID_FIELD: &'static str = "orderId";

    fn parse_command(value: &[u8], fallback_id: Uuid) -> Result<Command<OrderCommand>, InvalidCommand> {
        command::parse_command(value, fallback_id)
    }

    fn write_meaning(command: &OrderCommand, into: &mut Vec<u8>) {
        meaning::write(command, into);
    }

    fn describe_state(state: &Order) -> Value {
        public_json::order_json(state)
    }

    fn describe_event(event: &OrderEvent) -> Value {
        public_json::event_json(event)
    }
}
