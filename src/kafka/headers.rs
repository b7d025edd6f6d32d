//! Names of the record headers, and the headers of a published record.
//!
//! CloudEvents 1.0, Kafka protocol binding, binary mode, where it has a name for the thing; our own
//! names else. One place, so that writers, readers and documents agree.

use jiff::Timestamp;
use rdkafka::message::{Header, OwnedHeaders};
use uuid::Uuid;

use super::record::Record;

pub const CE_SPECVERSION: &str = "ce_specversion";
pub const CE_ID: &str = "ce_id";
pub const CE_TYPE: &str = "ce_type";
pub const CE_SOURCE: &str = "ce_source";
pub const CE_TIME: &str = "ce_time";
pub const CE_SUBJECT: &str = "ce_subject";
pub const CONTENT_TYPE: &str = "content-type";
pub const SCHEMA_VERSION: &str = "schema-version";
pub const STREAM_VERSION: &str = "stream-version";
pub const SEQ: &str = "seq";
pub const COMMAND_ID: &str = "command-id";
pub const CORRELATION_ID: &str = "correlation-id";
pub const CAUSATION_ID: &str = "causation-id";
pub const TRACEPARENT: &str = "traceparent";
pub const REPLY_TO: &str = "reply-to";
/// Who sent a command, where it was authenticated. Set by our HTTP server only.
pub const PRINCIPAL: &str = "principal";

/// Longest correlation, causation or reply-to header that is taken over, bytes; a longer one is
/// cut off at the door, since it travels with every event for ever.
pub const TEXT_HEADER_BYTES_MAX: usize = 256;

/// Whether `text` is a W3C trace context: `version-traceid-parentid-flags`, all lower-case hex. Anything else is as
/// good as absent, as that standard asks for.
pub fn is_traceparent(text: &str) -> bool {
    let hyphens = [2, 35, 52];
    text.len() == 55
        && text.bytes().enumerate().all(|(at, byte)| match byte {
            b'-' => hyphens.contains(&at),
            _ => !hyphens.contains(&at) && matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// The sequence number of a record that the relay wrote: plain digits from 1 on, beside the id of an event or
/// result. None on anything else, so that a stranger's record with such a header counts for nothing.
pub fn seq_of(record: &Record) -> Option<i64> {
    let text = record.sole_header(SEQ).ok()??;
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let seq = text.parse().ok().filter(|_| is_plain)?;
    Uuid::try_parse(record.sole_header(CE_ID).ok()??).ok()?;
    Some(seq)
}

/// What a published record says about itself, beside key and value.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    /// Event id, or the id of the result.
    pub id: Uuid,
    /// Type with name space, such as `acme.bank.Opened`.
    pub message_type: &'a str,
    /// Such as `/acme/bank`.
    pub source: &'a str,
    pub time: Timestamp,
    /// The stream.
    pub subject: Uuid,
    /// Such as `application/avro`.
    pub content_type: &'a str,
    pub schema_version: Option<i16>,
    pub stream_version: Option<i64>,
    pub seq: i64,
    pub command_id: Uuid,
    pub correlation_id: &'a str,
    /// None in rows of releases that kept only what the sender named: they are published as they always were.
    pub causation_id: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    pub reply_to: Option<&'a str>,
}

impl Envelope<'_> {
    /// The record headers, in a fixed order.
    pub fn headers(&self) -> OwnedHeaders {
        let mut headers = Some(OwnedHeaders::new_with_capacity(15));
        let mut add = |key: &str, value: &str| {
            headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
        };
        let mut uuid = Uuid::encode_buffer();
        add(CE_SPECVERSION, "1.0");
        add(CE_ID, self.id.hyphenated().encode_lower(&mut uuid));
        add(CE_TYPE, self.message_type);
        add(CE_SOURCE, self.source);
        add(CE_TIME, &self.time.to_string());
        add(CE_SUBJECT, self.subject.hyphenated().encode_lower(&mut uuid));
        add(CONTENT_TYPE, self.content_type);
        if let Some(version) = self.schema_version {
            add(SCHEMA_VERSION, &version.to_string());
        }
        if let Some(version) = self.stream_version {
            add(STREAM_VERSION, &version.to_string());
        }
        add(SEQ, &self.seq.to_string());
        add(COMMAND_ID, self.command_id.hyphenated().encode_lower(&mut uuid));
        add(CORRELATION_ID, self.correlation_id);
        for (key, value) in
            [(CAUSATION_ID, self.causation_id), (TRACEPARENT, self.traceparent), (REPLY_TO, self.reply_to)]
        {
            if let Some(value) = value {
                add(key, value);
            }
        }
        headers.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_trace_context_is_carried_on() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in [
            "",
            "00-4bf9-00f0-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
