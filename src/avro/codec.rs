//! Framed Avro bytes of a context's events: encode the newest version, decode every known one.
//!
//! The newest version goes straight between bytes and Rust structs (serde_avro_fast, chosen by
//! `benches/avro.rs`); older ones go through apache-avro's generic value and the upcasters. Ids
//! decide what bytes are: an unknown id or version is refused, never guessed.

use std::borrow::Cow;
use std::collections::HashMap;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::{Deserialize, Serialize};
use serde_avro_fast::de::read::SliceRead;
use serde_avro_fast::de::{DeserializerConfig, DeserializerState};
use serde_avro_fast::ser::SerializerConfig;

use super::catalogue::Catalogue;
use super::ids::SchemaIds;
use super::limits::{MAX_DEPTH, MAX_ELEMENTS, MAX_EVENT_BYTES};
use super::upcast::Upcasters;
use crate::engine::UndecodableEvent;

/// Length of the frame: a zero byte and the schema id, big endian.
pub const FRAME_BYTES: usize = 5;

/// Encodes and decodes the events of one context.
pub struct Codec {
    catalogue: Catalogue,
    upcasters: Upcasters,
    newest: Vec<NewestVersion>,
    slots: HashMap<i32, Slot>,
}

/// The newest version of one type: what is written, and what every reading ends in.
struct NewestVersion {
    event_type: String,
    version: i16,
    frame: [u8; FRAME_BYTES],
    schema: serde_avro_fast::Schema,
}

/// What a schema id means to this program.
enum Slot {
    /// The newest version of a type (index into `newest`).
    Newest(usize),
    /// An older version of it.
    Older { newest: usize, version: i16 },
    /// Registered by another program; unknown here.
    Unknown { event_type: String, version: i16 },
}

/// A codec could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A schema has no id.
    #[error("schema {event_type} version {version} has no id; run `throughline db apply`")]
    NoId { event_type: String, version: i16 },
    /// The fast path cannot use a schema that the reference accepts.
    #[error("schema {event_type} version {version}: {reason}")]
    Unusable { event_type: String, version: i16, reason: String },
    /// Versions that nothing can read.
    #[error("no path to the newest version from {}; add the upcasters", versions(.0))]
    NoPath(Vec<(String, i16)>),
}

fn versions(list: &[(String, i16)]) -> String {
    list.iter().map(|(event_type, version)| format!("{event_type} version {version}")).collect::<Vec<_>>().join(", ")
}

/// An event as it was written, before any upcasting: for people and audits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WrittenEvent {
    /// Type without name space.
    pub event_type: String,
    /// The version it was written in.
    pub version: i16,
    /// Id of its schema.
    pub schema_id: i32,
    /// Its fields as JSON.
    pub value: serde_json::Value,
}

impl Codec {
    /// A codec; fails unless every schema of the catalogue has an id and a path to the newest.
    pub fn new(catalogue: Catalogue, upcasters: Upcasters, ids: &SchemaIds) -> Result<Self, CodecError> {
        let lost = upcasters.without_path(&catalogue);
        if !lost.is_empty() {
            return Err(CodecError::NoPath(lost));
        }
        let mut newest = Vec::new();
        for one in catalogue.newest_of_each() {
            let (event_type, version) = (one.event_type.clone(), one.version);
            let id = ids
                .id_of(&event_type, version)
                .ok_or_else(|| CodecError::NoId { event_type: event_type.clone(), version })?;
            let schema = one.definition.parse().map_err(|error: serde_avro_fast::schema::SchemaError| {
                CodecError::Unusable { event_type: event_type.clone(), version, reason: error.to_string() }
            })?;
            let mut frame = [0; FRAME_BYTES];
            frame[1..].copy_from_slice(&id.to_be_bytes());
            newest.push(NewestVersion { event_type, version, frame, schema });
        }
        let slot = |event_type: &str, version: i16| {
            let at = newest.iter().position(|one| one.event_type == event_type);
            match at.map(|at| (at, newest[at].version)) {
                Some((at, newest)) if newest == version => Slot::Newest(at),
                Some((at, newest)) if (1..newest).contains(&version) => Slot::Older { newest: at, version },
                _ => Slot::Unknown { event_type: event_type.to_owned(), version },
            }
        };
        let slots = ids.iter().map(|(id, event_type, version)| (id, slot(event_type, version))).collect();
        Ok(Self { catalogue, upcasters, newest, slots })
    }

    /// The schemas this codec was built from.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The handle of a type for [`Codec::encode`] and the answer of [`Codec::newest_datum`].
    pub fn handle(&self, event_type: &str) -> Option<usize> {
        self.newest.iter().position(|one| one.event_type == event_type)
    }

    /// Newest version of a type, by handle.
    pub fn newest_version(&self, handle: usize) -> i16 {
        self.newest[handle].version
    }

    /// Encodes in the newest version of the type, framed. `expected_bytes` sizes the buffer.
    pub fn encode<T: Serialize>(
        &self,
        handle: usize,
        value: &T,
        expected_bytes: usize,
    ) -> Result<Vec<u8>, UndecodableEvent> {
        let newest = &self.newest[handle];
        let mut bytes = Vec::with_capacity(FRAME_BYTES + expected_bytes);
        bytes.extend_from_slice(&newest.frame);
        let bytes = serde_avro_fast::to_datum(value, bytes, &mut SerializerConfig::new(&newest.schema))
            .map_err(|error| UndecodableEvent(format!("{} does not encode: {error}", newest.event_type)))?;
        if bytes.len() > MAX_EVENT_BYTES {
            return Err(too_large(&newest.event_type, bytes.len()));
        }
        Ok(bytes)
    }

    /// The event's type (as a handle) and its datum in the newest version: the bytes themselves, or
    /// what the upcasters make of them.
    pub fn newest_datum<'b>(&self, bytes: &'b [u8]) -> Result<(usize, Cow<'b, [u8]>), UndecodableEvent> {
        let (id, datum) = unframe(bytes)?;
        match self.slots.get(&id) {
            Some(Slot::Newest(handle)) => Ok((*handle, Cow::Borrowed(datum))),
            Some(Slot::Older { newest, version }) => self
                .upcast(*newest, *version, datum)
                .map(|datum| (*newest, Cow::Owned(datum)))
                .map_err(UndecodableEvent),
            other => Err(unknown(id, other)),
        }
    }

    /// Reads a datum of the newest version; all of it, within the limits.
    pub fn read<'b, T: Deserialize<'b>>(&self, handle: usize, datum: &'b [u8]) -> Result<T, UndecodableEvent> {
        let newest = &self.newest[handle];
        let mut config = DeserializerConfig::new(&newest.schema);
        config.max_seq_size = MAX_ELEMENTS;
        config.allowed_depth = MAX_DEPTH;
        let mut state = DeserializerState::with_config(SliceRead::new(datum), config);
        let failed = |reason: &dyn std::fmt::Display| {
            UndecodableEvent(format!("{} version {} does not decode: {reason}", newest.event_type, newest.version))
        };
        let value = T::deserialize(state.deserializer()).map_err(|error| failed(&error))?;
        let mut beyond = [0u8; 1];
        match std::io::Read::read(&mut state.into_reader(), &mut beyond) {
            Ok(0) => Ok(value),
            _ => Err(failed(&"bytes are left over after the record")),
        }
    }

    /// The event as it was written, with its own version's fields.
    pub fn written(&self, bytes: &[u8]) -> Result<WrittenEvent, UndecodableEvent> {
        let (schema_id, datum) = unframe(bytes)?;
        let (handle, version) = match self.slots.get(&schema_id) {
            Some(Slot::Newest(handle)) => (*handle, self.newest[*handle].version),
            Some(Slot::Older { newest, version }) => (*newest, *version),
            other => return Err(unknown(schema_id, other)),
        };
        let event_type = self.newest[handle].event_type.clone();
        let value = self.read_generic(&event_type, version, datum).map_err(UndecodableEvent)?;
        let value = value.try_into().map_err(|error: apache_avro::Error| {
            UndecodableEvent(format!("{event_type} version {version}: {error}"))
        })?;
        Ok(WrittenEvent { event_type, version, schema_id, value })
    }

    fn upcast(&self, newest: usize, from: i16, datum: &[u8]) -> Result<Vec<u8>, String> {
        let NewestVersion { event_type, version: to, .. } = &self.newest[newest];
        let old = self.read_generic(event_type, from, datum)?;
        let new = self.upcasters.upcast(event_type, from, *to, old)?;
        let failed = |reason: &dyn std::fmt::Display| {
            format!("{event_type} version {from} does not become version {to}: {reason}")
        };
        let schema = self.catalogue.newest(event_type).ok_or_else(|| failed(&"no schema"))?;
        exact_fields(&new, &schema.schema).map_err(|reason| failed(&reason))?;
        GenericDatumWriter::builder(&schema.schema)
            .build()
            .and_then(|writer| writer.write_value_to_vec(new))
            .map_err(|error| failed(&error))
    }

    fn read_generic(&self, event_type: &str, version: i16, datum: &[u8]) -> Result<Value, String> {
        let failed =
            |reason: &dyn std::fmt::Display| format!("{event_type} version {version} does not decode: {reason}");
        let schema = self.catalogue.schema(event_type, version).ok_or_else(|| failed(&"no schema"))?;
        let mut rest = datum;
        let value = GenericDatumReader::builder(&schema.schema)
            .build()
            .and_then(|reader| reader.read_value(&mut rest))
            .map_err(|error| failed(&error))?;
        if rest.is_empty() { Ok(value) } else { Err(failed(&"bytes are left over after the record")) }
    }
}

/// Splits framed bytes into schema id and datum.
pub fn unframe(bytes: &[u8]) -> Result<(i32, &[u8]), UndecodableEvent> {
    if bytes.len() > MAX_EVENT_BYTES {
        return Err(too_large("the event", bytes.len()));
    }
    match bytes {
        [0, a, b, c, d, datum @ ..] => Ok((i32::from_be_bytes([*a, *b, *c, *d]), datum)),
        [0, ..] | [] => Err(UndecodableEvent(format!("{} bytes are too few for a frame", bytes.len()))),
        [first, ..] => {
            Err(UndecodableEvent(format!("the first byte is {first}, not 0: not the Confluent wire format")))
        }
    }
}

fn too_large(what: &str, length: usize) -> UndecodableEvent {
    UndecodableEvent(format!("{what} is {length} bytes long, the most is {MAX_EVENT_BYTES}"))
}

fn unknown(id: i32, slot: Option<&Slot>) -> UndecodableEvent {
    UndecodableEvent(match slot {
        Some(Slot::Unknown { event_type, version }) => {
            format!(
                "schema id {id} is {event_type} version {version}, which this program does not know: run a newer one"
            )
        }
        _ => format!("schema id {id} is not registered for this context"),
    })
}

/// A value has exactly the fields of its schema: Avro's own writers would fill in defaults, and
/// so hide an upcaster that forgot a field.
fn exact_fields(value: &Value, schema: &apache_avro::Schema) -> Result<(), String> {
    match (value, schema) {
        (Value::Record(fields), apache_avro::Schema::Record(record)) => {
            for (name, _) in fields {
                if !record.fields.iter().any(|field| field.name == *name) {
                    return Err(format!("field {name} is not in the newest schema"));
                }
            }
            for field in &record.fields {
                let value = fields.iter().find(|(name, _)| *name == field.name).map(|(_, value)| value);
                exact_fields(value.ok_or_else(|| format!("field {} is missing", field.name))?, &field.schema)?;
            }
            Ok(())
        }
        (Value::Array(elements), apache_avro::Schema::Array(array)) => {
            elements.iter().try_for_each(|element| exact_fields(element, &array.items))
        }
        _ => Ok(()),
    }
}
