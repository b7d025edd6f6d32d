//! From a record to a command, or to the reason why it is none. All checks that need no state.
//!
//! Done before any transaction opens. Whatever is wrong with a record, it ends as an outcome: a
//! record is never skipped. The value decides which stream is meant; the key only has to agree.
//!
//! What decides which command it is (value, key, header `command-id`) is right or refused. What only travels along
//! (correlation, causation, trace) never refuses a command: it is made fit to be kept, and a counter tells of it.

use uuid::Uuid;

use crate::engine::ids::{self, parse_id, parse_key};
use crate::engine::{BoundedContext, Command, Fingerprint, InvalidCommand, destination_partition, fingerprint};
use crate::kafka::{Record, headers};

use super::Payload;
use super::batch::Source;
use super::outcome::IdScope;

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
    /// Of what the command means, however it was written; of the record's value where that is no command.
    pub payload_hash: Fingerprint,
    pub correlation_id: String,
    /// The command id where the sender named no cause.
    pub causation_id: String,
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
    /// Where its id counts.
    pub fn scope(&self) -> IdScope {
        IdScope { partition: self.destination, stream_id: self.stream_id, command_id: self.command_id }
    }

    /// Whether `decided` is the fingerprint of this command. Outcomes of earlier releases keep that of the record's
    /// bytes, and bytes that are equal mean the same.
    pub fn is_what_was(&self, decided: &Fingerprint) -> bool {
        self.payload_hash == *decided || fingerprint(self.record.value.as_deref().unwrap_or_default()) == *decided
    }

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
        let (judged, payload_hash) = self.judge::<C>(&record, fallback);
        let (command_id, stream_id, ask) = match judged {
            Ok(command) => {
                let ask = Ask::Decide { payload: command.payload, expected_version: command.meta.expected_version };
                (command.meta.command_id, Some(command.meta.stream_id), ask)
            }
            Err(invalid) => {
                // Without a stream nobody will look there: the bytes are kept for people.
                let park = invalid.stream_id.is_none();
                let reason = clean_reason(&invalid.reason);
                let stream_id = invalid.stream_id.or_else(|| parse_key(record.key.as_deref()?));
                (invalid.command_id.unwrap_or(fallback), stream_id, Ask::Refuse { code: INVALID_COMMAND, reason, park })
            }
        };
        let named = |name| carried(&record, name).filter(|text| !text.is_empty());
        Incoming {
            source: index,
            destination: match stream_id {
                Some(stream_id) => destination_partition(stream_id, self.partitions),
                None => source.place.partition.rem_euclid(self.partitions),
            },
            stream_id: stream_id.unwrap_or(Uuid::nil()),
            command_id,
            payload_hash,
            correlation_id: named(headers::CORRELATION_ID).unwrap_or_else(|| command_id.to_string()),
            causation_id: named(headers::CAUSATION_ID).unwrap_or_else(|| command_id.to_string()),
            traceparent: carried(&record, headers::TRACEPARENT).filter(|text| headers::is_traceparent(text)),
            reply_to: carried(&record, headers::REPLY_TO),
            principal: carried(&record, headers::PRINCIPAL),
            ask,
            record,
        }
    }

    /// The command of a record, and the fingerprint that tells whether it came before.
    fn judge<C: BoundedContext>(
        &self,
        record: &Record,
        fallback: Uuid,
    ) -> (Result<Command<Payload<C>>, InvalidCommand>, Fingerprint) {
        // The header wins over the value: it can be set without touching the command itself.
        let (header, header_fault) = match header_id(record) {
            Ok(header) => (header, None),
            Err(reason) => (None, Some(reason)),
        };
        // Read even where the header is at fault: the value may tell whom to answer.
        let (command, payload_hash) = match self.read::<C>(record, header, fallback) {
            Ok(read) => read,
            Err(mut invalid) => {
                invalid.reason = header_fault.unwrap_or(invalid.reason);
                return (Err(invalid), fingerprint(record.value.as_deref().unwrap_or_default()));
            }
        };
        let judged = match header_fault.or_else(|| key_fault(record.key.as_deref(), command.meta.stream_id)) {
            None => Ok(command),
            Some(reason) => {
                let (command_id, stream_id) = (Some(command.meta.command_id), Some(command.meta.stream_id));
                Err(InvalidCommand { reason, command_id, stream_id })
            }
        };
        (judged, payload_hash)
    }

    /// The command in a record's value, under the id of its header where that has one.
    fn read<C: BoundedContext>(
        &self,
        record: &Record,
        header: Option<Uuid>,
        fallback: Uuid,
    ) -> Result<(Command<Payload<C>>, Fingerprint), InvalidCommand> {
        let invalid = |reason: String| InvalidCommand { reason, command_id: header, stream_id: None };
        let Some(value) = record.value.as_deref() else {
            return Err(invalid("the record has no value: a command is a JSON object".into()));
        };
        if value.len() > self.command_bytes_max {
            let reason = format!("the command has {} bytes, at most {} are taken", value.len(), self.command_bytes_max);
            return Err(invalid(reason));
        }
        let read = std::panic::AssertUnwindSafe(|| {
            C::parse_command(value, header.unwrap_or(fallback)).map(|mut command| {
                command.meta.command_id = header.unwrap_or(command.meta.command_id);
                let meaning = command.fingerprint::<C>();
                (command, meaning)
            })
        });
        let read = std::panic::catch_unwind(read).map_err(|_| invalid("the command could not be read".into()))?;
        read.map_err(|reason| InvalidCommand { command_id: header.or(reason.command_id), ..reason })
    }
}

/// The command id that the header gives, if there is one. One that cannot be read is told: a command that took effect
/// under another id than its sender meant would be done again.
fn header_id(record: &Record) -> Result<Option<Uuid>, String> {
    let text = record.sole_header(headers::COMMAND_ID).map_err(|fault| format!("header command-id {fault}"))?;
    text.map(|text| parse_id(text).map_err(|fault| format!("header command-id {fault}"))).transpose()
}

/// What is wrong with the key of a record whose value names `stream_id`.
fn key_fault(key: Option<&[u8]>, stream_id: Uuid) -> Option<String> {
    let mut text = Uuid::encode_buffer();
    let wanted: &str = stream_id.hyphenated().encode_lower(&mut text);
    match key {
        None => Some("the record has no key: it must be the stream's id".into()),
        Some(key) if key == wanted.as_bytes() => None,
        Some(key) if Uuid::try_parse_ascii(key) == Ok(stream_id) => Some(format!(
            "the record's key must be the stream's id as {wanted}, lower case with hyphens: to Kafka another spelling \
             is another key, and goes to another partition"
        )),
        Some(_) => Some("the record's key is not the stream's id: records of one stream must share a partition".into()),
    }
}

/// The last header of that name, made fit to be kept with every event for ever: text, without NUL, and not too long.
fn carried(record: &Record, name: &'static str) -> Option<String> {
    let (_, value) = record.headers()?.iter().rev().find(|(key, _)| *key == name.as_bytes())?;
    let value = value.unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    let fit = clean(&text, headers::TEXT_HEADER_BYTES_MAX);
    if fit.as_bytes() != value {
        metrics::counter!("throughline_command_headers_amended_total", "header" => name).increment(1);
    }
    Some(fit)
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
