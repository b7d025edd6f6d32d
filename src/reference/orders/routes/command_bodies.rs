//! The bodies of command requests as the document shows them. Parsing is `orders::command`'s: it
//! reads the bytes in one pass, and is the authority on what is valid.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use uuid::Uuid;

use crate::orders::domain::Currency;

/// A body: the fields that every command has, and its own.
macro_rules! command_body {
    ($(#[$about:meta])* $name:ident, $kind:tt { $($(#[$of_field:meta])* $field:ident: $type:ty,)* }) => {
        #[derive(Debug, Serialize, ToSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        $(#[$about])*
        pub struct $name {
            /// Repeats the route.
            #[serde(rename = "type")]
            #[schema(required = false, pattern = $kind)]
            pub kind: Option<String>,
            /// Idempotency key within the order: one outcome per order and id. Made when absent.
            #[schema(required = false)]
            pub command_id: Option<Uuid>,
            /// The order: as in the path; on placing it may be given, and is made when absent.
            #[schema(required = false)]
            pub order_id: Option<Uuid>,
            /// Refuse unless the order stands at this version.
            #[schema(required = false, minimum = 0)]
            pub expected_version: Option<i64>,
            $($(#[$of_field])* pub $field: $type,)*
        }
    };
}

command_body! {
    /// The body of `POST /api/orders`.
    #[schema(example = json!({"customerId": "customer-42", "currency": "USD", "items": [
        {"productId": "0198c0de-7a3e-7000-8000-00000000000a", "quantity": 2, "unitPrice": "19.99"}]}))]
    PlaceOrderBody, "^PlaceOrder$" {
        /// Who orders, in the caller's own terms.
        #[schema(min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
        customer_id: String,
        #[schema(schema_with = currency_code)]
        currency: String,
        /// The lines.
        #[schema(min_items = 1, max_items = 1000)]
        items: Vec<ItemBody>,
        /// How it is to be paid; without it, payments are recorded by whoever takes them.
        #[schema(required = false)]
        payment: Option<PaymentChoiceBody>,
    }
}

/// How an order is to be paid.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PaymentChoiceBody {
    /// What the payment gateway knows the payer by.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$", example = "tok_approve")]
    pub token: String,
}

/// One line of an order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ItemBody {
    pub product_id: Uuid,
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quantity: i64,
    /// Decimal text, at most four decimals.
    #[schema(pattern = r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,4})?$", example = "19.99")]
    pub unit_price: String,
}

command_body! {
    /// The body of `POST /api/orders/{id}/payments`.
    #[schema(example = json!({"paymentId": "0198c0de-7a3e-7000-8000-00000000000b", "amount": "39.98", "currency": "USD"}))]
    RecordPaymentBody, "^RecordPayment$" {
        /// The payment, in the payer's books; recorded once.
        payment_id: Uuid,
        /// Decimal text with at most the currency's minor digits; above zero.
        #[schema(
            pattern = r"^([1-9][0-9]{0,8}(\.[0-9]{1,4})?|0\.([1-9][0-9]{0,3}|0[1-9][0-9]{0,2}|00[1-9][0-9]?|000[1-9]))$",
            example = "39.98"
        )]
        amount: String,
        #[schema(schema_with = currency_code)]
        currency: String,
    }
}

command_body! {
    /// The body of `POST /api/orders/{id}/shipments`.
    #[schema(example = json!({"carrier": "DHL", "trackingNumber": "JD014600"}))]
    ShipOrderBody, "^ShipOrder$" {
        /// Who carries it.
        #[schema(min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
        carrier: String,
        /// The carrier's number for it.
        #[schema(min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
        tracking_number: String,
    }
}

command_body! {
    /// The body of `POST /api/orders/{id}/cancellation`.
    #[schema(example = json!({"reason": "changed my mind"}))]
    CancelOrderBody, "^CancelOrder$" {
        /// Why, in the caller's words.
        #[schema(min_length = 1, max_length = 1000, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
        reason: String,
    }
}

/// The codes that the domain takes: a pattern would promise some that it refuses.
fn currency_code() -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("ISO 4217; one for the whole order."))
        .enum_values(Some(Currency::codes()))
        .examples(["USD"])
        .into()
}
