//! The command routes: body to command, command to Kafka, and the wait where one is asked for.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use uuid::Uuid;

use super::answers::{CommandAccepted, CommandStatus};
use super::command_bodies::{CancelOrderBody, PlaceOrderBody, RecordPaymentBody, ShipOrderBody};
use crate::orders::{CommandKind, OrdersContext, RequestContext, command_to_json, parse_request};
use throughline::api::problem::{INVALID_COMMAND, INVALID_JSON};
use throughline::api::{
    Api, CommandHeaders, CommandQuery, Id, JsonBody, PathOf, Problem, ProblemBody, RequestEnvelope, Submission,
};

async fn send(
    api: &Api,
    envelope: RequestEnvelope,
    kind: CommandKind,
    order_id: Option<Uuid>,
    body: &[u8],
    waits: bool,
) -> Result<Response, Problem> {
    let made_id = Uuid::now_v7();
    let context = RequestContext {
        kind,
        order_id: order_id.unwrap_or_else(|| envelope.new_stream_id()),
        order_id_is_fixed: order_id.is_some(),
        command_id: made_id,
    };
    let mut command = parse_request(body, context).map_err(|invalid| refuse_body(body, &invalid.reason))?;
    let given_id = command.meta.command_id != made_id;
    envelope.complete(&mut command.meta, given_id)?;
    let value = command_to_json(&command);
    let submission = Submission {
        command_id: command.meta.command_id,
        stream_id: command.meta.stream_id,
        value: &value,
        fingerprint: command.fingerprint::<OrdersContext>(),
        repeatable: given_id || envelope.key.is_some(),
        wait: None,
    };
    api.answer(&envelope, submission, ("/api/orders", waits)).await
}

fn refuse_body(body: &[u8], reason: &str) -> Problem {
    // Told apart on this path only: nothing is parsed twice that is valid.
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Ok(_) => Problem::new(INVALID_COMMAND, reason),
        Err(error) => Problem::new(INVALID_JSON, error.to_string()),
    }
}

macro_rules! command_routes {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident, $sync:ident, $path:literal, $sync_path:literal, $body:ty, $kind:ident, [$($id:ident)?], [$($param:tt)*];
    )*) => {$(
        $(#[doc = $doc])*
        #[utoipa::path(
            post, path = $path, tag = "commands", params($($param)* CommandQuery, CommandHeaders),
            request_body = $body,
            responses(
                (status = 202, body = CommandAccepted, description = "Kafka holds the command; `Location` tells its state",
                 headers(("Location" = String), ("X-Correlation-ID" = String))),
                (status = 201, body = CommandStatus, description = "Decided within the wait that `Prefer` asked for",
                 headers(("Location" = String), ("ETag" = String), ("Consistency-Token" = String))),
                (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "Refused; see `code`"),
                (status = 412, body = ProblemBody, content_type = "application/problem+json", description = "`If-Match` names another version"),
                (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "The command is invalid, or its id was used with another payload"),
            ),
        )]
        pub async fn $name(
            State(api): State<Arc<Api>>,
            $(PathOf(Id($id)): PathOf<Id>,)?
            envelope: RequestEnvelope,
            JsonBody(body): JsonBody,
        ) -> Result<Response, Problem> {
            let order_id = None$(.or(Some($id)))?;
            send(&api, envelope, CommandKind::$kind, order_id, &body, false).await
        }

        $(#[doc = $doc])*
        ///
        /// Waits for the decision: 201 once accepted, 202 when the wait runs out.
        #[utoipa::path(
            post, path = $sync_path, tag = "commands", params($($param)* CommandQuery, CommandHeaders),
            request_body = $body,
            responses(
                (status = 201, body = CommandStatus, description = "Decided",
                 headers(("Location" = String), ("ETag" = String), ("Consistency-Token" = String))),
                (status = 202, body = CommandAccepted, description = "Not decided within the wait; `Location` tells its state",
                 headers(("Location" = String), ("X-Correlation-ID" = String))),
                (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "Refused; see `code`"),
                (status = 412, body = ProblemBody, content_type = "application/problem+json", description = "`If-Match` names another version"),
                (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "The command is invalid, or its id was used with another payload"),
            ),
        )]
        pub async fn $sync(
            State(api): State<Arc<Api>>,
            $(PathOf(Id($id)): PathOf<Id>,)?
            envelope: RequestEnvelope,
            JsonBody(body): JsonBody,
        ) -> Result<Response, Problem> {
            let order_id = None$(.or(Some($id)))?;
            send(&api, envelope, CommandKind::$kind, order_id, &body, true).await
        }
    )*};
}

command_routes! {
    /// Places an order.
    place_order, place_order_sync, "/api/orders", "/api/orders/sync", PlaceOrderBody, PlaceOrder, [], [];
    /// Records a payment for an order.
    record_payment, record_payment_sync, "/api/orders/{orderId}/payments", "/api/orders/{orderId}/payments/sync",
        RecordPaymentBody, RecordPayment, [order_id], [("orderId" = Uuid, Path),];
    /// Ships a paid order.
    ship_order, ship_order_sync, "/api/orders/{orderId}/shipments", "/api/orders/{orderId}/shipments/sync",
        ShipOrderBody, ShipOrder, [order_id], [("orderId" = Uuid, Path),];
    /// Cancels an order that was not shipped.
    cancel_order, cancel_order_sync, "/api/orders/{orderId}/cancellation", "/api/orders/{orderId}/cancellation/sync",
        CancelOrderBody, CancelOrder, [order_id], [("orderId" = Uuid, Path),];
}
