//! The newest Avro shape of each event as Rust structs, borrowed both ways: no copy that the
//! domain does not need. Field order is the schema's. Mirrors the schemas; they are the authority.

use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::domain::{
    Currency, Money, OrderCancelled, OrderPlaced, OrderShipped, PaymentReceived, PlacedItem, Quantity, UnitPrice,
};

/// `OrderPlaced` version 4, to be written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OrderPlacedOut<'a> {
    #[serde(serialize_with = "uuid_text::serialize")]
    order_id: Uuid,
    customer: Customer<'a>,
    currency: &'static str,
    #[serde(serialize_with = "items_out")]
    items: &'a [PlacedItem],
    total: i64,
    payment: Option<PaymentChoice<'a>>,
}

/// `OrderPlaced` version 4, as read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OrderPlacedIn<'a> {
    #[serde(deserialize_with = "uuid_text::deserialize")]
    order_id: Uuid,
    #[serde(borrow)]
    customer: Customer<'a>,
    currency: &'a str,
    items: Vec<Item>,
    total: i64,
    #[serde(borrow)]
    payment: Option<PaymentChoice<'a>>,
}

#[derive(Serialize, Deserialize)]
struct PaymentChoice<'a> {
    token: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Customer<'a> {
    id: &'a str,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(with = "uuid_text")]
    product_id: Uuid,
    quantity: i32,
    unit_price: i64,
    line_total: i64,
}

fn items_out<S: Serializer>(items: &[PlacedItem], serializer: S) -> Result<S::Ok, S::Error> {
    let mut sequence = serializer.serialize_seq(Some(items.len()))?;
    for item in items {
        sequence.serialize_element(&Item {
            product_id: item.product_id,
            quantity: i32::try_from(item.quantity.get()).map_err(serde::ser::Error::custom)?,
            unit_price: item.unit_price.ten_thousandths(),
            line_total: item.line_total.minor_units(),
        })?;
    }
    sequence.end()
}

impl<'a> From<&'a OrderPlaced> for OrderPlacedOut<'a> {
    fn from(event: &'a OrderPlaced) -> Self {
        Self {
            order_id: event.order_id,
            customer: Customer { id: &event.customer_id },
            currency: event.currency.code(),
            items: &event.items,
            total: event.total.minor_units(),
            payment: event.payment_token.as_deref().map(|token| PaymentChoice { token }),
        }
    }
}

impl TryFrom<OrderPlacedIn<'_>> for OrderPlaced {
    type Error = String;

    fn try_from(wire: OrderPlacedIn<'_>) -> Result<Self, String> {
        let currency = currency(wire.currency)?;
        let item = |item: Item| {
            let quantity = i64::from(item.quantity);
            Ok(PlacedItem {
                product_id: item.product_id,
                quantity: Quantity::new(quantity).ok_or_else(|| format!("quantity {quantity} is out of bounds"))?,
                unit_price: UnitPrice::from_ten_thousandths(item.unit_price)
                    .map_err(|error| format!("unitPrice {error}"))?,
                line_total: money("lineTotal", item.line_total, currency)?,
            })
        };
        Ok(Self {
            order_id: wire.order_id,
            customer_id: wire.customer.id.to_owned(),
            currency,
            items: wire.items.into_iter().map(item).collect::<Result<_, String>>()?,
            total: money("total", wire.total, currency)?,
            payment_token: wire.payment.map(|payment| payment.token.to_owned()),
        })
    }
}

/// `PaymentReceived` version 2.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PaymentReceivedWire<'a> {
    #[serde(with = "uuid_text")]
    order_id: Uuid,
    #[serde(with = "uuid_text")]
    payment_id: Uuid,
    amount: i64,
    currency: &'a str,
    paid: i64,
    outstanding: i64,
}

impl From<&PaymentReceived> for PaymentReceivedWire<'static> {
    fn from(event: &PaymentReceived) -> Self {
        Self {
            order_id: event.order_id,
            payment_id: event.payment_id,
            amount: event.amount.minor_units(),
            currency: event.amount.currency().code(),
            paid: event.paid.minor_units(),
            outstanding: event.outstanding.minor_units(),
        }
    }
}

impl TryFrom<PaymentReceivedWire<'_>> for PaymentReceived {
    type Error = String;

    fn try_from(wire: PaymentReceivedWire<'_>) -> Result<Self, String> {
        let currency = currency(wire.currency)?;
        Ok(Self {
            order_id: wire.order_id,
            payment_id: wire.payment_id,
            amount: money("amount", wire.amount, currency)?,
            paid: money("paid", wire.paid, currency)?,
            outstanding: money("outstanding", wire.outstanding, currency)?,
        })
    }
}

/// `OrderShipped` version 2.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OrderShippedWire<'a> {
    #[serde(with = "uuid_text")]
    order_id: Uuid,
    carrier: &'a str,
    tracking_number: &'a str,
}

impl<'a> From<&'a OrderShipped> for OrderShippedWire<'a> {
    fn from(event: &'a OrderShipped) -> Self {
        Self { order_id: event.order_id, carrier: &event.carrier, tracking_number: &event.tracking_number }
    }
}

impl From<OrderShippedWire<'_>> for OrderShipped {
    fn from(wire: OrderShippedWire<'_>) -> Self {
        Self {
            order_id: wire.order_id,
            carrier: wire.carrier.to_owned(),
            tracking_number: wire.tracking_number.to_owned(),
        }
    }
}

/// `OrderCancelled` version 2.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OrderCancelledWire<'a> {
    #[serde(with = "uuid_text")]
    order_id: Uuid,
    reason: &'a str,
    refund_due: i64,
    currency: &'a str,
}

impl<'a> From<&'a OrderCancelled> for OrderCancelledWire<'a> {
    fn from(event: &'a OrderCancelled) -> Self {
        Self {
            order_id: event.order_id,
            reason: &event.reason,
            refund_due: event.refund_due.minor_units(),
            currency: event.refund_due.currency().code(),
        }
    }
}

impl TryFrom<OrderCancelledWire<'_>> for OrderCancelled {
    type Error = String;

    fn try_from(wire: OrderCancelledWire<'_>) -> Result<Self, String> {
        Ok(Self {
            order_id: wire.order_id,
            reason: wire.reason.to_owned(),
            refund_due: money("refundDue", wire.refund_due, currency(wire.currency)?)?,
        })
    }
}

fn currency(code: &str) -> Result<Currency, String> {
    Currency::from_code(code).ok_or_else(|| format!("unknown currency {code:?}"))
}

fn money(field: &str, minor_units: i64, currency: Currency) -> Result<Money, String> {
    Money::from_minor(minor_units, currency).map_err(|error| format!("{field} {error}, it is {minor_units}"))
}

/// UUIDs as the 36-character text of Avro's `uuid` on `string`, without an allocation.
mod uuid_text {
    use serde::{Deserializer, Serializer, de};
    use uuid::Uuid;
    use uuid::fmt::Hyphenated;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(id.hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH]))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Uuid;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a hyphenated UUID")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Uuid, E> {
                if text.len() != Hyphenated::LENGTH {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Uuid::try_parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}
