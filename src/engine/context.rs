//! Where a bounded context plugs in: its names, its aggregate, its wire formats.

use uuid::Uuid;

use super::aggregate::Aggregate;
use super::command::{Command, InvalidCommand};

/// Everything the loops need to know of a context.
pub trait BoundedContext: Send + Sync + 'static {
    /// The aggregate of the context.
    type Aggregate: Aggregate;
    /// Its event encoding.
    type Codec: EventCodec<Event = <Self::Aggregate as Aggregate>::Event>;

    /// Prefix of its topics and consumer groups: `bank` gives `bank-commands`, `bank-events`.
    const NAME: &'static str;

    /// Name space of its events' types: a company's or product's own and the context, such as `acme.bank`.
    const NAMESPACE: &'static str;

    /// What its public JSON calls the stream id, such as `accountId`.
    const STREAM_ID_FIELD: &'static str = "streamId";

    /// Turns the value of a commands record (JSON) into a command: shape, bounds and sizes are
    /// checked here, before anything is loaded. `fallback_id` is the id when the value carries none.
    fn parse_command(
        value: &[u8],
        fallback_id: Uuid,
    ) -> Result<Command<<Self::Aggregate as Aggregate>::Command>, InvalidCommand>;

    /// Writes what a command means to the aggregate: commands that mean the same write the same bytes, however they came,
    /// and others write others. By these a command whose id comes again is told from another one. Their fingerprint is
    /// stored, so the form is kept like a schema. Where the aggregate's command is plain data, its JSON will do.
    fn write_meaning(command: &<Self::Aggregate as Aggregate>::Command, into: &mut Vec<u8>);

    /// The public JSON form of an aggregate's state, for time travel and audit.
    fn describe_state(state: &Self::Aggregate) -> serde_json::Value;

    /// The public JSON form of an event: an object whose `type` is the event's type name.
    fn describe_event(event: &<Self::Aggregate as Aggregate>::Event) -> serde_json::Value;
}

/// Encodes events to the bytes that are stored and published alike, and decodes every version.
pub trait EventCodec: Send + Sync + 'static {
    /// The newest shape.
    type Event;

    /// Encodes in the newest schema version, framed for the topic. Encoding happens once.
    fn encode(&self, event: &Self::Event) -> Result<Encoded, UndecodableEvent>;

    /// Decodes stored or published bytes of any known version and upcasts them to the newest.
    fn decode(&self, bytes: &[u8]) -> Result<Self::Event, UndecodableEvent>;
}

/// The stored and published form of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Type name without name space, such as `Deposited`.
    pub event_type: &'static str,
    /// Schema version, from 1.
    pub schema_version: i16,
    /// Confluent wire format: a zero byte, the schema id in four bytes (big endian), Avro binary.
    pub bytes: Vec<u8>,
}

/// Bytes that are not an event we know how to read (or write). Parked, never guessed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UndecodableEvent(pub String);
