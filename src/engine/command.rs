//! A command as the processor handles it: who asked what of which stream, under which ids.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Aggregate, BoundedContext};

/// A validated command addressed to one stream.
#[derive(Debug, Clone)]
pub struct Command<C> {
    /// Ids and expectations that travel around the payload.
    pub meta: CommandMeta,
    /// What the aggregate decides on.
    pub payload: C,
}

/// The envelope of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandMeta {
    /// Idempotency key: one outcome per id and stream of a context, for as long as outcomes are kept.
    pub command_id: Uuid,
    /// The stream addressed.
    pub stream_id: Uuid,
    /// Refuse unless the stream stands at this version.
    pub expected_version: Option<i64>,
}

/// What is kept of a command to tell whether it came again: the first bytes of a SHA-256, of what the command means or,
/// where a record is no command, of its value.
pub type Fingerprint = [u8; 16];

/// The fingerprint of these bytes.
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let digest = Sha256::digest(bytes);
    std::array::from_fn(|n| digest[n])
}

impl<P> Command<P> {
    /// The fingerprint of what the command means in its context. The version that it expects is part of that; its ids
    /// are not, since they are what it was found by, nor is anything that only travels along.
    pub fn fingerprint<C: BoundedContext>(&self) -> Fingerprint
    where
        C::Aggregate: Aggregate<Command = P>,
    {
        let mut meaning = Vec::with_capacity(256);
        // No JSON text begins with this byte, so that no record's bytes pass for a meaning.
        meaning.push(1);
        let expected = self.meta.expected_version;
        meaning.push(u8::from(expected.is_some()));
        meaning.extend_from_slice(&expected.unwrap_or_default().to_be_bytes());
        C::write_meaning(&self.payload, &mut meaning);
        fingerprint(&meaning)
    }
}

/// A record that cannot become a command. Recorded as a refusal with code `INVALID_COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidCommand {
    /// What is wrong, naming the field.
    pub reason: String,
    /// The command id, where the record still tells it.
    pub command_id: Option<Uuid>,
    /// The stream id, where the record still tells it.
    pub stream_id: Option<Uuid>,
}
