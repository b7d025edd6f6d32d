//! The bounded context of payments: authorised by a gateway, then captured, voided or refunded.
//!
//! It knows orders by their ids alone, and talks to them through topics: `checkout` stands between.

pub mod codec;
mod command;
pub mod domain;
pub mod gateway;
mod gateway_loop;
mod payment_list;

use std::sync::Arc;

use serde_json::{Value, json};
use throughline::app::Context;
use throughline::engine::{BoundedContext, Command, InvalidCommand};
use uuid::Uuid;

use codec::PaymentsCodec;
use domain::{Due, Payment, PaymentCommand, PaymentEvent};

/// The bounded context of payments.
#[derive(Debug, Clone, Copy)]
pub struct PaymentsContext;

/// Payments, as an application hosts them.
pub fn context() -> Context<PaymentsContext> {
    Context::new(codec::SCHEMAS, PaymentsCodec::new).projection(payment_list::PaymentList).beside(
        |settings, codec, health, shutdown| {
            let gateway = Arc::new(gateway::Development);
            Box::pin(gateway_loop::run(settings, codec, gateway, health, shutdown))
        },
    )
}

impl BoundedContext for PaymentsContext {
    type Aggregate = Payment;
    type Codec = PaymentsCodec;

    const NAME: &'static str = "payments";
    const NAMESPACE: &'static str = codec::NAMESPACE;
    const STREAM_ID_FIELD: &'static str = "paymentId";

    fn parse_command(value: &[u8], fallback_id: Uuid) -> Result<Command<PaymentCommand>, InvalidCommand> {
        command::parse(value, fallback_id)
    }

    fn write_meaning(command: &PaymentCommand, into: &mut Vec<u8>) {
        command::write_meaning(command, into);
    }

    fn describe_state(payment: &Payment) -> Value {
        payment.requested().map_or(Value::Null, |(due, status)| {
            let mut json = due_json(&due);
            json["status"] = status.as_str().into();
            json
        })
    }

    fn describe_event(event: &PaymentEvent) -> Value {
        let mut json = due_json(event.due());
        json["type"] = event.type_name().into();
        match event {
            PaymentEvent::Requested { token, .. } => json["token"] = token.as_str().into(),
            PaymentEvent::Authorized { authorization_id, .. } => {
                json["authorizationId"] = authorization_id.as_str().into();
            }
            PaymentEvent::Declined { reason, .. } => json["reason"] = reason.as_str().into(),
            PaymentEvent::Captured { .. } | PaymentEvent::Voided { .. } | PaymentEvent::Refunded { .. } => {}
        }
        json
    }
}

fn due_json(due: &Due) -> Value {
    json!({"paymentId": due.payment_id, "orderId": due.order_id, "amount": due.amount.amount_text(),
           "currency": due.amount.currency().code()})
}
