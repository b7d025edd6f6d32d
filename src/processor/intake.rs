//! From a record to a command, or to the reason why it is none. All checks that need no state.
//!
//! Done before any transaction opens. Whatever is wrong with a record, it ends as an outcome: a
//! record is never skipped. The value decides which stream is meant; the key only has to agree.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::engine::{BoundedContext, destination_partition, ids};
use crate::kafka::{Record, headers};

use super::Payload;
use super::batch::Source;

/// The refusal of a record that cannot become a command.
pub(super) const INVALID_COMMAND: &str = "INVALID_COMMAND";
/// The refusal of a command that breaks its batch.
pub(super) const COMMAND_FAILED: &str = "COMMAND_FAILED";

/// One record, ready to be decided.
#[derive(Debug)]
pub(super) struct Incoming<P> {
    /// Index into the batch's sources.
    pub source: usize,
    pub record: Record,
    /// Partition of the events topic; where it cannot be known, one derived from the source's.
    pub destination: i32,
    /// Nil where the record does not tell it.
    pub stream_id: Uuid,
    pub command_id: Uuid,
    /// First 16 bytes of the SHA-256 of the record's value.
    pub payload_hash: [u8; 16],
    pub correlation_id: String,
    pub causation_id: Option<String>,
    pub traceparent: Option<String>,
    pub reply_to: Option<String>,
    pub principal: Option<String>,
    pub ask: Ask<P>,
}

/// What to do about a record.
#[derive(Debug)]
pub(super) enum Ask<P> {
    Decide {
        payload: P,
        expected_version: Option<i64>,
    },
    /// Refused before any state is looked at.
    Refuse {
        code: &'static str,
        reason: String,
        /// Keep the record in the dead letters as well.
        park: bool,
    },
}

impl<P> Incoming<P> {
    /// Gives up on deciding this command.
    pub fn fail(&mut self, reason: String) {
        self.ask = Ask::Refuse { code: COMMAND_FAILED, reason: clean_reason(&reason), park: true };
    }
}

/// Longest reason that is stored, bytes.
const REASON_BYTES_MAX: usize = 1_000;

/// What intake has to know of the installation.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    /// Partitions of the events topic.
    pub partitions: i32,
    /// Largest value, bytes.
    pub command_bytes_max: usize,
}

impl Intake {
    /// Admits one record. `namespace` stands for its topic in the ids of commands that carry none.
    pub fn admit<C: BoundedContext>(
        &self,
        record: Record,
        index: usize,
        source: &Source,
        namespace: &str,
    ) -> Incoming<Payload<C>> {
        let fallback = ids::command_id_of_record(namespace, source.place.partition, record.offset);
        let value = record.value.as_deref().unwrap_or_default();
        let digest = Sha256::digest(value);
        let mut payload_hash = [0; 16];
        payload_hash.copy_from_slice(&digest[..16]);

        let judged = self.judge::<C>(&record, fallback);
        let (command_id, stream_id, ask) = match judged {
            Ok(command) => {
                let ask = Ask::Decide { payload: command.payload, expected_version: command.meta.expected_version };
                (command.meta.command_id, Some(command.meta.stream_id), ask)
            }
            Err(invalid) => {
                // Without a stream nobody will look there: the bytes are kept for people.
                let park = invalid.stream_id.is_none();
                let reason = clean_reason(&invalid.reason);
                let stream_id = invalid.stream_id.or_else(|| key_id(&record));
                (invalid.command_id.unwrap_or(fallback), stream_id, Ask::Refuse { code: INVALID_COMMAND, reason, park })
            }
        };
        let text = |name| record.header(name).map(|text| clean(text, headers::TEXT_HEADER_BYTES_MAX));
        Incoming {
            source: index,
            destination: match stream_id {
                Some(stream_id) => destination_partition(stream_id, self.partitions),
                None => source.place.partition.rem_euclid(self.partitions),
            },
            stream_id: stream_id.unwrap_or(Uuid::nil()),
            command_id,
            payload_hash,
            correlation_id: text(headers::CORRELATION_ID)
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| command_id.to_string()),
            causation_id: text(headers::CAUSATION_ID),
            traceparent: text(headers::TRACEPARENT),
            reply_to: text(headers::REPLY_TO),
            principal: text(headers::PRINCIPAL),
            ask,
            record,
        }
    }

    fn judge<C: BoundedContext>(
        &self,
        record: &Record,
        fallback: Uuid,
    ) -> Result<crate::engine::Command<Payload<C>>, crate::engine::InvalidCommand> {
        let invalid =
            |reason: String, command_id, stream_id| crate::engine::InvalidCommand { reason, command_id, stream_id };
        // The header wins over the value: it can be set without touching the command itself.
        let header = match record.sole_header(headers::COMMAND_ID).map(|id| id.map(Uuid::try_parse)) {
            Ok(None) => None,
            Ok(Some(Ok(id))) => Some(id),
            Ok(Some(Err(_))) => return Err(invalid("header command-id is not a UUID".into(), None, None)),
            Err(fault) => return Err(invalid(format!("header command-id {fault}"), None, None)),
        };
        let Some(value) = record.value.as_deref() else {
            return Err(invalid("the record has no value: a command is a JSON object".into(), header, None));
        };
        if value.len() > self.command_bytes_max {
            let reason = format!("the command has {} bytes, at most {} are taken", value.len(), self.command_bytes_max);
            return Err(invalid(reason, header, None));
        }
        let parse = std::panic::AssertUnwindSafe(|| C::parse_command(value, header.unwrap_or(fallback)));
        let mut command = match std::panic::catch_unwind(parse) {
            Ok(Ok(command)) => command,
            Ok(Err(mut reason)) => {
                reason.command_id = header.or(reason.command_id);
                return Err(reason);
            }
            Err(_) => return Err(invalid("the command could not be read".into(), header, None)),
        };
        command.meta.command_id = header.unwrap_or(command.meta.command_id);
        let meta = &command.meta;
        let reason = match record.key.as_deref() {
            None => "the record has no key: it must be the stream's id",
            Some(_) if key_id(record) == Some(meta.stream_id) => return Ok(command),
            Some(_) => "the record's key is not the stream's id: records of one stream must share a partition",
        };
        Err(invalid(reason.into(), Some(meta.command_id), Some(meta.stream_id)))
    }
}

fn key_id(record: &Record) -> Option<Uuid> {
    Uuid::try_parse_ascii(record.key.as_deref()?).ok()
}

/// A reason as it is stored and published, whoever wrote it.
pub(super) fn clean_reason(reason: &str) -> String {
    clean(reason, REASON_BYTES_MAX)
}

/// Text that PostgreSQL takes: without NUL, cut at `bytes_max`.
fn clean(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}
