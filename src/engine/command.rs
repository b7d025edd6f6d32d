//! A command as the processor handles it: who asked what of which stream, under which ids.

use sha2::{Digest, Sha256};
use uuid::Uuid;

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

/// What is kept of a command to tell whether it came again: the first bytes of the SHA-256 of what
/// [`BoundedContext::write_command`](super::BoundedContext::write_command) writes, or of a record's value as it is
/// where that is no command.
pub type Fingerprint = [u8; 16];

/// The fingerprint of these bytes.
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let digest = Sha256::digest(bytes);
    std::array::from_fn(|n| digest[n])
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
