//! Events of payments as Avro: the schemas under `schemas/payments` are the authority, serde stands between.

use serde::{Deserialize, Serialize};
use throughline::avro::{Catalogue, Codec, Published, SchemaIds, Schemas, Upcasters};
use throughline::engine::{Encoded, EventCodec, UndecodableEvent};
use uuid::Uuid;

use super::domain::{Due, PaymentEvent};
use crate::orders::domain::{Currency, Money};

/// Name space of the events.
pub const NAMESPACE: &str = "throughline.payments";
const EVENTS_TOPIC: &str = "payments-events";

macro_rules! published {
    ($($event_type:literal)*) => {
        [$(Published {
            event_type: $event_type,
            version: 1,
            definition: include_str!(concat!("../../../schemas/payments/", $event_type, ".v1.avsc")),
        }),*]
    };
}

/// Every schema ever published.
pub const PUBLISHED: [Published<'static>; 6] = published! {
    "PaymentRequested"
    "PaymentAuthorized"
    "PaymentDeclined"
    "PaymentCaptured"
    "PaymentVoided"
    "PaymentRefunded"
};

/// What the context hands over.
pub const SCHEMAS: Schemas =
    Schemas { published: &PUBLISHED, upcasters, lock: include_str!("../../../schemas/payments/schemas.lock") };

fn upcasters() -> Upcasters {
    Upcasters::new(&[])
}

/// The largest event but for its text, bytes.
const BYTES: usize = 128;

/// Every field of any of the events; each schema has its own.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    payment_id: String,
    order_id: String,
    amount: i64,
    currency: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authorization_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Encodes and decodes the events of payments.
pub struct PaymentsCodec {
    codec: Codec,
    /// As in [`PUBLISHED`].
    handles: Vec<(usize, &'static str)>,
}

impl PaymentsCodec {
    /// The codec under these schema ids.
    pub fn new(ids: &SchemaIds) -> anyhow::Result<Self> {
        let codec = Codec::new(Catalogue::new(EVENTS_TOPIC, NAMESPACE, &PUBLISHED)?, upcasters(), ids)?;
        let handle = |one: &Published<'static>| {
            let handle = codec.handle(one.event_type);
            handle
                .map(|handle| (handle, one.event_type))
                .ok_or_else(|| anyhow::anyhow!("{} has no schema", one.event_type))
        };
        let handles = PUBLISHED.iter().map(handle).collect::<anyhow::Result<_>>()?;
        Ok(Self { codec, handles })
    }
}

impl EventCodec for PaymentsCodec {
    type Event = PaymentEvent;

    fn encode(&self, event: &PaymentEvent) -> Result<Encoded, UndecodableEvent> {
        let name = event.type_name();
        let unknown = || UndecodableEvent(format!("{name} has no schema"));
        let handle = self.handles.iter().find(|(_, known)| *known == name).ok_or_else(unknown)?.0;
        let bytes = self.codec.encode(handle, &Wire::from(event), BYTES)?;
        Ok(Encoded { event_type: name, schema_version: self.codec.newest_version(handle), bytes })
    }

    fn decode(&self, bytes: &[u8]) -> Result<PaymentEvent, UndecodableEvent> {
        let (handle, datum) = self.codec.newest_datum(bytes)?;
        let unknown = || UndecodableEvent("an event of no known type".into());
        let name = self.handles.iter().find(|(known, _)| *known == handle).ok_or_else(unknown)?.1;
        let wire: Wire = self.codec.read(handle, &datum)?;
        wire.event(name).map_err(|reason| UndecodableEvent(format!("the event breaks its own rules: {reason}")))
    }
}

impl From<&PaymentEvent> for Wire {
    fn from(event: &PaymentEvent) -> Self {
        let due = event.due();
        let mut wire = Self {
            payment_id: due.payment_id.to_string(),
            order_id: due.order_id.to_string(),
            amount: due.amount.minor_units(),
            currency: due.amount.currency().code().to_owned(),
            token: None,
            authorization_id: None,
            reason: None,
        };
        match event {
            PaymentEvent::Requested { token, .. } => wire.token = Some(token.clone()),
            PaymentEvent::Authorized { authorization_id, .. } => wire.authorization_id = Some(authorization_id.clone()),
            PaymentEvent::Declined { reason, .. } => wire.reason = Some(reason.clone()),
            PaymentEvent::Captured { .. } | PaymentEvent::Voided { .. } | PaymentEvent::Refunded { .. } => {}
        }
        wire
    }
}

impl Wire {
    fn event(self, name: &str) -> Result<PaymentEvent, String> {
        let id = |text: &str| Uuid::try_parse(text).map_err(|_| format!("{text:?} is no id"));
        let currency =
            Currency::from_code(&self.currency).ok_or_else(|| format!("unknown currency {:?}", self.currency))?;
        let amount = Money::from_minor(self.amount, currency).map_err(|error| error.to_string())?;
        let due = Due { payment_id: id(&self.payment_id)?, order_id: id(&self.order_id)?, amount };
        let text = |field: Option<String>| field.ok_or_else(|| format!("{name} lacks a field"));
        Ok(match name {
            "PaymentRequested" => PaymentEvent::Requested { due, token: text(self.token)? },
            "PaymentAuthorized" => PaymentEvent::Authorized { due, authorization_id: text(self.authorization_id)? },
            "PaymentDeclined" => PaymentEvent::Declined { due, reason: text(self.reason)? },
            "PaymentCaptured" => PaymentEvent::Captured { due },
            "PaymentVoided" => PaymentEvent::Voided { due },
            _ => PaymentEvent::Refunded { due },
        })
    }
}

#[cfg(test)]
mod tests {
    use throughline::avro::lock;

    use super::*;

    #[test]
    fn every_schema_is_locked_and_every_event_comes_back() {
        let catalogue = Catalogue::new(EVENTS_TOPIC, NAMESPACE, &PUBLISHED).unwrap();
        assert_eq!(lock::lock_text(&catalogue), SCHEMAS.lock);
        let codec = PaymentsCodec::new(&SchemaIds::in_order(&catalogue)).unwrap();
        let amount = Money::from_minor(1_999, Currency::USD).unwrap();
        let due = Due { payment_id: Uuid::from_u128(1), order_id: Uuid::from_u128(2), amount };
        let text = || "a text".to_owned();
        for event in [
            PaymentEvent::Requested { due, token: text() },
            PaymentEvent::Authorized { due, authorization_id: text() },
            PaymentEvent::Declined { due, reason: text() },
            PaymentEvent::Captured { due },
            PaymentEvent::Voided { due },
            PaymentEvent::Refunded { due },
        ] {
            let encoded = codec.encode(&event).unwrap();
            assert_eq!((encoded.event_type, codec.decode(&encoded.bytes)), (event.type_name(), Ok(event)));
        }
    }
}
