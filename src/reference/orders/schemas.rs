//! The schemas of this context and the steps from each version to the next.
//!
//! The files under `schemas/orders` are the authority on shapes and are never edited once
//! published. A new version is a new file, a line here, a step below and golden bytes.

use apache_avro::types::Value;

use super::domain::{Currency, Money, Quantity, UnitPrice};
use throughline::avro::{Catalogue, CatalogueError, Fields, Published, Schemas, Upcasters};

/// Topic of the events.
pub const EVENTS_TOPIC: &str = "orders-events";

/// Avro name space of the events.
pub const NAMESPACE: &str = "throughline.orders";

/// The lock file: fingerprints of everything published.
pub const LOCK: &str = include_str!("../../../schemas/orders/schemas.lock");

macro_rules! published {
    ($($event_type:literal $version:literal)*) => {
        [$(Published {
            event_type: $event_type,
            version: $version,
            definition: include_str!(concat!("../../../schemas/orders/", $event_type, ".v", $version, ".avsc")),
        }),*]
    };
}

/// Every schema ever published, oldest first.
pub const PUBLISHED: [Published<'static>; 10] = published! {
    "OrderPlaced" 1
    "OrderPlaced" 2
    "OrderPlaced" 3
    "OrderPlaced" 4
    "PaymentReceived" 1
    "PaymentReceived" 2
    "OrderShipped" 1
    "OrderShipped" 2
    "OrderCancelled" 1
    "OrderCancelled" 2
};

/// What the context hands over.
pub const SCHEMAS: Schemas = Schemas { published: &PUBLISHED, upcasters, lock: LOCK };

/// The schema catalogue of this context.
pub fn catalogue() -> Result<Catalogue, CatalogueError> {
    Catalogue::new(EVENTS_TOPIC, NAMESPACE, &PUBLISHED)
}

/// The steps from each version to the next.
pub fn upcasters() -> Upcasters {
    Upcasters::new(&[
        ("OrderPlaced", 1, in_dollars),
        ("OrderPlaced", 2, with_totals),
        ("OrderPlaced", 3, without_payment),
        ("PaymentReceived", 1, with_outstanding),
        ("OrderShipped", 1, |fields| fields.rename("tracking", "trackingNumber")),
        ("OrderCancelled", 1, with_refund_due),
    ])
}

/// Before currencies were recorded, everything was in US dollars.
fn in_dollars(fields: &mut Fields) -> Result<(), String> {
    fields.set("currency", Value::String(Currency::USD.code().to_owned()));
    Ok(())
}

/// Version 3 of OrderPlaced: line totals and total, and the customer as a record.
fn with_totals(fields: &mut Fields) -> Result<(), String> {
    let code = fields.string("currency")?;
    let currency = Currency::from_code(code).ok_or_else(|| format!("unknown currency {code:?}"))?;
    let mut total = Money::zero(currency);
    fields.each("items", |item| {
        let quantity = item.long("quantity")?;
        let quantity = Quantity::new(quantity).ok_or_else(|| format!("quantity {quantity}"))?;
        let price = UnitPrice::from_ten_thousandths(item.long("unitPrice")?).map_err(|error| error.to_string())?;
        let line_total = quantity.line_total(price, currency).map_err(|error| error.to_string())?;
        total = total.checked_add(line_total).map_err(|error| error.to_string())?;
        item.set("lineTotal", Value::Long(line_total.minor_units()));
        Ok(())
    })?;
    fields.set("total", Value::Long(total.minor_units()));
    let mut customer = Fields::new();
    customer.set("id", fields.remove("customerId")?);
    fields.set("customer", customer.into_record());
    Ok(())
}

/// Version 4 of OrderPlaced: before it could be said how an order is paid, nobody said it.
fn without_payment(fields: &mut Fields) -> Result<(), String> {
    fields.set("payment", Value::Null);
    Ok(())
}

/// Version 2 of PaymentReceived: the currency, and what is owed instead of the total.
fn with_outstanding(fields: &mut Fields) -> Result<(), String> {
    in_dollars(fields)?;
    let (total, paid) = (fields.long("total")?, fields.long("paid")?);
    let outstanding = total.checked_sub(paid).ok_or("the amounts are out of range")?;
    fields.remove("total")?;
    fields.set("outstanding", Value::Long(outstanding));
    Ok(())
}

/// Version 2 of OrderCancelled: the currency; all that had been paid is due back.
fn with_refund_due(fields: &mut Fields) -> Result<(), String> {
    in_dollars(fields)?;
    fields.rename("paid", "refundDue")
}
