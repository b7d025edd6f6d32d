//! The bodies of command requests as the document shows them. Parsing is `orders::command`'s: it
//! reads the bytes in one pass, and is the authority on what is valid.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// The body of `POST /api/orders`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"customerId": "customer-42", "currency": "USD", "items": [
    {"productId": "0198c0de-7a3e-7000-8000-00000000000a", "quantity": 2, "unitPrice": "19.99"}]}))]
pub struct PlaceOrderBody {
    /// Repeats the route.
    #[serde(rename = "type")]
    #[schema(required = false, pattern = "^PlaceOrder$")]
    pub kind: Option<String>,
    /// Idempotency key; made when absent.
    #[schema(required = false, nullable = false)]
    pub command_id: Option<Uuid>,
    /// The order; made when absent.
    #[schema(required = false)]
    pub order_id: Option<Uuid>,
    /// Refuse unless the order stands at this version.
    #[schema(required = false, minimum = 0)]
    pub expected_version: Option<i64>,
    /// Who orders, in the caller's own terms.
    #[schema(min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
    pub customer_id: String,
    /// ISO 4217; one for the whole order.
    #[schema(pattern = "^[A-Z]{3}$", example = "USD")]
    pub currency: String,
    /// The lines.
    #[schema(min_items = 1, max_items = 1000)]
    pub items: Vec<ItemBody>,
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

/// The body of `POST /api/orders/{id}/payments`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"paymentId": "0198c0de-7a3e-7000-8000-00000000000b", "amount": "39.98", "currency": "USD"}))]
pub struct RecordPaymentBody {
    /// Repeats the route.
    #[serde(rename = "type")]
    #[schema(required = false, pattern = "^RecordPayment$")]
    pub kind: Option<String>,
    /// Idempotency key; made when absent.
    #[schema(required = false)]
    pub command_id: Option<Uuid>,
    /// Repeats the path.
    #[schema(required = false)]
    pub order_id: Option<Uuid>,
    /// Refuse unless the order stands at this version.
    #[schema(required = false, minimum = 0)]
    pub expected_version: Option<i64>,
    /// The payment, in the payer's books; recorded once.
    pub payment_id: Uuid,
    /// Decimal text with at most the currency's minor digits; above zero.
    #[schema(pattern = r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,2})?$", example = "39.98")]
    pub amount: String,
    /// ISO 4217; the order's.
    #[schema(pattern = "^[A-Z]{3}$", example = "USD")]
    pub currency: String,
}

/// The body of `POST /api/orders/{id}/shipments`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"carrier": "DHL", "trackingNumber": "JD014600"}))]
pub struct ShipOrderBody {
    /// Repeats the route.
    #[serde(rename = "type")]
    #[schema(required = false, pattern = "^ShipOrder$")]
    pub kind: Option<String>,
    /// Idempotency key; made when absent.
    #[schema(required = false)]
    pub command_id: Option<Uuid>,
    /// Repeats the path.
    #[schema(required = false)]
    pub order_id: Option<Uuid>,
    /// Refuse unless the order stands at this version.
    #[schema(required = false, minimum = 0)]
    pub expected_version: Option<i64>,
    /// Who carries it.
    #[schema(min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
    pub carrier: String,
    /// The carrier's number for it.
    #[schema(min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
    pub tracking_number: String,
}

/// The body of `POST /api/orders/{id}/cancellation`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"reason": "changed my mind"}))]
pub struct CancelOrderBody {
    /// Repeats the route.
    #[serde(rename = "type")]
    #[schema(required = false, pattern = "^CancelOrder$")]
    pub kind: Option<String>,
    /// Idempotency key; made when absent.
    #[schema(required = false)]
    pub command_id: Option<Uuid>,
    /// Repeats the path.
    #[schema(required = false)]
    pub order_id: Option<Uuid>,
    /// Refuse unless the order stands at this version.
    #[schema(required = false, minimum = 0)]
    pub expected_version: Option<i64>,
    /// Why, in the caller's words.
    #[schema(min_length = 1, max_length = 1000, pattern = r"^[^\x00-\x1F\x7F-\x9F]+$")]
    pub reason: String,
}
