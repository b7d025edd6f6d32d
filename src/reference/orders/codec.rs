//! The event codec of this context: which Rust struct goes with which Avro type.
//! Framing, ids, versions and limits belong to the avro room.

use std::sync::Arc;

use super::domain::OrderEvent;
use super::schemas;
use super::wire::{OrderCancelledWire, OrderPlacedIn, OrderPlacedOut, OrderShippedWire, PaymentReceivedWire};
use throughline::app::install;
use throughline::avro::{Catalogue, CatalogueError, Codec, CodecError, SchemaIds, Upcasters, WrittenEvent};
use throughline::engine::{Encoded, EventCodec, UndecodableEvent};
use throughline::settings::Settings;
use throughline::store::{DatabaseRole, connect};

/// Encodes and decodes the events of orders.
pub struct OrdersCodec {
    codec: Codec,
    placed: usize,
    received: usize,
    shipped: usize,
    cancelled: usize,
}

/// The codec of orders could not be built.
#[derive(Debug, thiserror::Error)]
pub enum OrdersCodecError {
    /// The schema files are at fault.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// Ids or upcasters are at fault.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A type has no schema.
    #[error("event type {0} has no schema")]
    NoSchema(&'static str),
}

impl OrdersCodec {
    /// The codec under these schema ids.
    pub fn new(ids: &SchemaIds) -> Result<Self, OrdersCodecError> {
        Self::with(schemas::catalogue()?, schemas::upcasters(), ids)
    }

    /// The codec under the ids that the database of `settings` gave.
    ///
    /// # Errors
    /// The schemas are not registered there.
    pub async fn installed(settings: &Settings) -> anyhow::Result<Arc<Self>> {
        let context = super::context();
        let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
        Ok(Arc::new(Self::new(&install::schema_ids(&context, settings, &client).await?)?))
    }

    /// The codec with upcasters of another set: for the tests of the checks themselves.
    pub(super) fn with(catalogue: Catalogue, upcasters: Upcasters, ids: &SchemaIds) -> Result<Self, OrdersCodecError> {
        let codec = Codec::new(catalogue, upcasters, ids)?;
        let handle = |event_type| codec.handle(event_type).ok_or(OrdersCodecError::NoSchema(event_type));
        let (placed, received) = (handle("OrderPlaced")?, handle("PaymentReceived")?);
        let (shipped, cancelled) = (handle("OrderShipped")?, handle("OrderCancelled")?);
        Ok(Self { placed, received, shipped, cancelled, codec })
    }

    /// An event as it was written, in its own version.
    pub fn written(&self, bytes: &[u8]) -> Result<WrittenEvent, UndecodableEvent> {
        self.codec.written(bytes)
    }
}

impl EventCodec for OrdersCodec {
    type Event = OrderEvent;

    fn encode(&self, event: &OrderEvent) -> Result<Encoded, UndecodableEvent> {
        // Sizes are upper estimates: 36 characters an id, up to 5 bytes a usual amount.
        let (handle, bytes) = match event {
            OrderEvent::OrderPlaced(event) => {
                let size = 60 + event.customer_id.len() + event.items.len() * 56;
                (self.placed, self.codec.encode(self.placed, &OrderPlacedOut::from(event), size)?)
            }
            OrderEvent::PaymentReceived(event) => {
                (self.received, self.codec.encode(self.received, &PaymentReceivedWire::from(event), 104)?)
            }
            OrderEvent::OrderShipped(event) => {
                let size = 44 + event.carrier.len() + event.tracking_number.len();
                (self.shipped, self.codec.encode(self.shipped, &OrderShippedWire::from(event), size)?)
            }
            OrderEvent::OrderCancelled(event) => {
                let size = 56 + event.reason.len();
                (self.cancelled, self.codec.encode(self.cancelled, &OrderCancelledWire::from(event), size)?)
            }
        };
        let schema_version = self.codec.newest_version(handle);
        Ok(Encoded { event_type: event.type_name(), schema_version, bytes })
    }

    fn decode(&self, bytes: &[u8]) -> Result<OrderEvent, UndecodableEvent> {
        let (handle, datum) = self.codec.newest_datum(bytes)?;
        let event = if handle == self.placed {
            let wire: OrderPlacedIn<'_> = self.codec.read(handle, &datum)?;
            wire.try_into().map(OrderEvent::OrderPlaced)
        } else if handle == self.received {
            let wire: PaymentReceivedWire<'_> = self.codec.read(handle, &datum)?;
            wire.try_into().map(OrderEvent::PaymentReceived)
        } else if handle == self.shipped {
            let wire: OrderShippedWire<'_> = self.codec.read(handle, &datum)?;
            Ok(OrderEvent::OrderShipped(wire.into()))
        } else {
            let wire: OrderCancelledWire<'_> = self.codec.read(handle, &datum)?;
            wire.try_into().map(OrderEvent::OrderCancelled)
        };
        event.map_err(|reason| UndecodableEvent(format!("the event breaks its own rules: {reason}")))
    }
}
