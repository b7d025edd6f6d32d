//! The events of a plain context: a variant of the enum is the Avro record of its name.
//!
//! Bytes are made straight from the enum. Reading goes by way of JSON values, since only the record's id says which
//! variant it is; a context whose replays must be faster has a codec of its own.

use std::collections::HashMap;
use std::marker::PhantomData;

use serde_json::{Map, Value};

use super::PlainContext;
use crate::avro::{Catalogue, CatalogueError, Codec, CodecError, SchemaIds};
use crate::engine::{Aggregate, Encoded, EventCodec, UndecodableEvent};

/// Room for an event of usual size.
const EXPECTED_BYTES: usize = 256;

/// Encodes and decodes the events of a [`PlainContext`].
pub struct PlainCodec<P> {
    codec: Codec,
    /// By type: its name, and what the codec calls it.
    handles: HashMap<&'static str, usize>,
    names: HashMap<usize, &'static str>,
    context: PhantomData<P>,
}

/// The codec could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlainCodecError {
    /// The schema files are at fault.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// Ids or upcasters are at fault.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl<P: PlainContext> PlainCodec<P> {
    /// The codec under these schema ids.
    ///
    /// # Errors
    /// Schemas, ids and upcasters do not fit each other.
    pub fn new(ids: &SchemaIds) -> Result<Self, PlainCodecError> {
        let schemas = P::SCHEMAS;
        let catalogue = Catalogue::new(&format!("{}-events", P::NAME), P::NAMESPACE, schemas.published)?;
        let codec = Codec::new(catalogue, (schemas.upcasters)(), ids)?;
        let named = schemas.published.iter().filter_map(|one| Some((one.event_type, codec.handle(one.event_type)?)));
        let handles: HashMap<_, _> = named.collect();
        let names = handles.iter().map(|(name, handle)| (*handle, *name)).collect();
        Ok(Self { codec, handles, names, context: PhantomData })
    }
}

impl<P: PlainContext> EventCodec for PlainCodec<P> {
    type Event = <P::Aggregate as Aggregate>::Event;

    fn encode(&self, event: &Self::Event) -> Result<Encoded, UndecodableEvent> {
        let name = serde_variant::to_variant_name(event).map_err(|error| UndecodableEvent(error.to_string()))?;
        let Some((event_type, handle)) = self.handles.get_key_value(name) else {
            return Err(UndecodableEvent(format!("event type {name} has no schema")));
        };
        let bytes = self.codec.encode(*handle, event, EXPECTED_BYTES)?;
        Ok(Encoded { event_type, schema_version: self.codec.newest_version(*handle), bytes })
    }

    fn decode(&self, bytes: &[u8]) -> Result<Self::Event, UndecodableEvent> {
        let (handle, datum) = self.codec.newest_datum(bytes)?;
        let Some(name) = self.names.get(&handle) else {
            return Err(UndecodableEvent("the type of the event is unknown".into()));
        };
        let fields: Value = self.codec.read(handle, &datum)?;
        serde_json::from_value(Map::from_iter([((*name).to_owned(), fields)]).into())
            .map_err(|error| UndecodableEvent(format!("{name} does not fit its type: {error}")))
    }
}
