//! The bounded context of payments: authorised by a gateway, then captured, voided or refunded. Plain Rust types.
//!
//! It knows orders by their ids alone, and talks to them through topics: `checkout` stands between.

pub mod domain;
pub mod gateway;
mod gateway_loop;

use std::sync::Arc;

use axum::http::StatusCode;
use throughline::api::{Api, Kind, OpenApiRouter};
use throughline::app::Context;
use throughline::avro::{Published, Schemas, Upcasters};
use throughline::plain::{HistoryTable, Plain, PlainContext, Routes, StateTable};

use domain::{Payment, codes};

/// What is particular to payments.
#[derive(Debug, Clone, Copy)]
pub struct Payments;

/// The bounded context.
pub type PaymentsContext = Plain<Payments>;

macro_rules! published {
    ($($event_type:literal)*) => {
        &[$(Published {
            event_type: $event_type,
            version: 1,
            definition: include_str!(concat!("../../../schemas/payments/", $event_type, ".v1.avsc")),
        }),*]
    };
}

impl PlainContext for Payments {
    type Aggregate = Payment;

    const NAME: &'static str = "payments";
    const NAMESPACE: &'static str = "throughline.payments";
    const STREAM_ID_FIELD: &'static str = "paymentId";
    const SCHEMAS: Schemas = Schemas {
        published: published! {
            "PaymentRequested"
            "PaymentAuthorized"
            "PaymentDeclined"
            "PaymentCaptured"
            "PaymentVoided"
            "PaymentRefunded"
        },
        upcasters: || Upcasters::new(&[]),
        lock: include_str!("../../../schemas/payments/schemas.lock"),
    };
}

/// Payments, as an application hosts them.
pub fn context() -> Context<PaymentsContext> {
    Context::of(Payments)
        .projection(StateTable::<Payments>::new("payments", 1))
        .projection(HistoryTable::<Payments>::new("payment_history", 1))
        .routes(routes)
        .refusals(&REFUSALS)
        .beside(|settings, codec, health, shutdown| {
            let gateway = Arc::new(gateway::Development);
            Box::pin(gateway_loop::run(settings, codec, gateway, health, shutdown))
        })
}

fn routes() -> OpenApiRouter<Arc<Api>> {
    Routes::<Payments>::new()
        .command("/api/payments", "AuthorizePayment")
        .command("/api/payments/{paymentId}/capture", "CapturePayment")
        .command("/api/payments/{paymentId}/decline", "RecordDecline")
        .command("/api/payments/{paymentId}/void", "VoidPayment")
        .command("/api/payments/{paymentId}/refund", "RefundPayment")
        .state("/api/payments/{paymentId}", "payments")
        .history("/api/payments/{paymentId}", "payment_history")
        .done()
}

/// The pages of its refusals.
const REFUSALS: [Kind; 6] = [
    refusal(
        codes::PAYMENT_ALREADY_REQUESTED,
        "The payment was requested before",
        "Ask under another id, or under none.",
    ),
    refusal(codes::PAYMENT_NOT_FOUND, "No such payment", "Authorise it first."),
    refusal(codes::PAYMENT_NOT_PENDING, "The gateway's answer is known", "A payment is authorised or declined once."),
    refusal(
        codes::PAYMENT_NOT_AUTHORIZED,
        "Nothing is held for the payment",
        "Only an authorised payment is captured.",
    ),
    refusal(codes::PAYMENT_NOT_VOIDABLE, "The payment has ended", "What was captured is given back by a refund."),
    refusal(codes::PAYMENT_NOT_CAPTURED, "Nothing was taken", "Only a captured payment is refunded; void another."),
];

const fn refusal(code: &'static str, title: &'static str, remedy: &'static str) -> Kind {
    Kind { code, status: StatusCode::CONFLICT, title, remedy }
}

#[cfg(test)]
mod tests {
    use throughline::avro::{Catalogue, SchemaIds, lock};
    use throughline::engine::EventCodec as _;
    use throughline::plain::PlainCodec;
    use uuid::Uuid;

    use super::domain::{Due, PaymentEvent};
    use super::*;
    use crate::orders::domain::{Currency, Money};

    #[test]
    fn every_schema_is_locked_and_every_event_comes_back() {
        let schemas = Payments::SCHEMAS;
        let catalogue = Catalogue::new("payments-events", Payments::NAMESPACE, schemas.published).unwrap();
        assert_eq!(lock::lock_text(&catalogue), schemas.lock);
        let codec = PlainCodec::<Payments>::new(&SchemaIds::in_order(&catalogue)).unwrap();
        let due = Due { order_id: Uuid::from_u128(2), amount: Money::from_minor(1_999, Currency::USD).unwrap() };
        let text = || "a text".to_owned();
        for event in [
            PaymentEvent::PaymentRequested { due, token: text() },
            PaymentEvent::PaymentAuthorized { due, authorization_id: text() },
            PaymentEvent::PaymentDeclined { due, reason: text() },
            PaymentEvent::PaymentCaptured { due },
            PaymentEvent::PaymentVoided { due },
            PaymentEvent::PaymentRefunded { due },
        ] {
            let encoded = codec.encode(&event).unwrap();
            assert_eq!(codec.decode(&encoded.bytes), Ok(event));
        }
    }

    #[test]
    fn a_fault_names_its_field() {
        use throughline::engine::BoundedContext as _;
        const ID: &str = "0198c0de-7a3e-7000-8000-00000000000a";
        let reason = |text: &str| {
            let value = text.replace("ID", ID);
            PaymentsContext::parse_command(value.as_bytes(), Uuid::nil()).expect_err("refused").reason
        };
        for (text, said) in [
            (r#"{"type":"CapturePayment"}"#, "/paymentId is missing"),
            (r#"{"type":"CapturePayment","paymentId":"7"}"#, "/paymentId"),
            (r#"{"type":"CapturePayment","paymentId":"ID","more":1}"#, "more"),
            (r#"{"type":"RecordDecline","paymentId":"ID","reason":""}"#, "/reason length"),
            (
                r#"{"type":"AuthorizePayment","paymentId":"ID","orderId":"ID","amount":"1.999","currency":"USD","token":"t"}"#,
                "/amount must have at most 2 decimals",
            ),
            (
                r#"{"type":"AuthorizePayment","paymentId":"ID","orderId":"ID","amount":"0.00","currency":"USD","token":"t"}"#,
                "/amount must be above zero",
            ),
            (
                r#"{"type":"AuthorizePayment","paymentId":"ID","orderId":"ID","amount":"1","currency":"USD","token":""}"#,
                "/token length",
            ),
        ] {
            let reason = reason(text);
            assert!(reason.contains(said), "{text}: {reason}");
        }
    }
}
