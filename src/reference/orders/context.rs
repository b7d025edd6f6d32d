//! The context as the loops see it: names, aggregate, wire formats. The only type they need.

use serde_json::Value;
use uuid::Uuid;

use super::codec::OrdersCodec;
use super::domain::{Order, OrderCommand, OrderEvent};
use super::{command, meaning, message_schemas, projections, public_json, routes, schemas};
use throughline::app::{Context, Messages};
use throughline::engine::{BoundedContext, Command, InvalidCommand};

/// The bounded context of orders.
#[derive(Debug, Clone, Copy)]
pub struct OrdersContext;

/// Orders, as an application hosts them.
pub fn context() -> Context<OrdersContext> {
    Context::new(schemas::SCHEMAS, |ids| Ok(OrdersCodec::new(ids)?))
        .projections(projections::all())
        .routes(routes::routes)
        .refusals(routes::REFUSALS)
        .messages(|| Messages {
            stream: "order",
            commands: message_schemas::commands(),
            result: message_schemas::result(),
        })
}

impl BoundedContext for OrdersContext {
    type Aggregate = Order;
    type Codec = OrdersCodec;

    const NAME: &'static str = "orders";
    const NAMESPACE: &'static str = schemas::NAMESPACE;
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
