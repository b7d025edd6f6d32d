//! A consumed record, owned: bytes as they were on the topic, whatever they are.

use std::sync::Arc;

use rdkafka::message::{BorrowedMessage, Message};

use super::record_headers::RecordHeaders;

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// One record of a topic.
#[derive(Debug, Clone)]
pub struct Record {
    pub source: TopicPartition,
    pub offset: i64,
    /// Milliseconds since the epoch, by producer or broker; 0 when absent.
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// None where the client cannot take them apart.
    headers: Option<RecordHeaders>,
}

/// Why a header cannot be taken at its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    #[error("is not text")]
    NotText,
    #[error("comes more than once, with different values")]
    Repeated,
    #[error("cannot be read: the record has more headers than the Kafka client takes apart")]
    Unreadable,
}

impl Record {
    /// A record without headers and time.
    pub fn new(source: TopicPartition, offset: i64, key: Option<Vec<u8>>, value: Option<Vec<u8>>) -> Self {
        Self { source, offset, timestamp_ms: 0, key, value, headers: Some(RecordHeaders::default()) }
    }

    /// The same record with these headers; none stands for headers that cannot be read.
    #[must_use]
    pub fn with_headers(self, headers: Option<RecordHeaders>) -> Self {
        Self { headers, ..self }
    }

    /// Copies a message out of the client's buffer.
    pub fn detach(message: &BorrowedMessage<'_>, topic: Arc<str>) -> Self {
        Self {
            source: TopicPartition { topic, partition: message.partition() },
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: RecordHeaders::read(message).ok(),
        }
    }

    /// The last header of that name, as text; none when absent or not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.as_ref()?.iter().rev().find(|(key, _)| *key == name.as_bytes())?;
        std::str::from_utf8(value?).ok()
    }

    /// The header of that name where it can mean only one thing; none when absent.
    ///
    /// # Errors
    /// It is there, and says nothing that could be relied on.
    pub fn sole_header(&self, name: &str) -> Result<Option<&str>, HeaderFault> {
        let headers = self.headers.as_ref().ok_or(HeaderFault::Unreadable)?;
        let mut values = headers.iter().filter(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value);
        let Some(first) = values.next() else { return Ok(None) };
        if values.any(|value| value != first) {
            return Err(HeaderFault::Repeated);
        }
        std::str::from_utf8(first.ok_or(HeaderFault::NotText)?).map(Some).map_err(|_| HeaderFault::NotText)
    }

    /// All headers, as they came; none where the client cannot take them apart.
    pub fn headers(&self) -> Option<&RecordHeaders> {
        self.headers.as_ref()
    }

    /// Memory held, bytes, roughly.
    pub fn weight(&self) -> usize {
        let headers = self.headers.as_ref().map_or(0, RecordHeaders::weight);
        128 + headers + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(headers: &[(&[u8], Option<&[u8]>)]) -> Record {
        let mut all = RecordHeaders::default();
        headers.iter().for_each(|(name, value)| all.push(name, *value));
        let source = TopicPartition { topic: "t".into(), partition: 0 };
        Record::new(source, 0, None, None).with_headers(Some(all))
    }

    #[test]
    fn a_header_that_says_nothing_reliable_is_told_from_one_that_is_missing() {
        let sole =
            |headers: &[(&[u8], Option<&[u8]>)]| record(headers).sole_header("id").map(|id| id.map(str::to_owned));
        assert_eq!(sole(&[(b"other", Some(b"1")), (b"id\0", Some(b"2"))]), Ok(None));
        assert_eq!(sole(&[(b"id", Some(b"1"))]), Ok(Some("1".into())));
        assert_eq!(sole(&[(b"id", Some(b"1")), (b"id", Some(b"1"))]), Ok(Some("1".into())));
        assert_eq!(sole(&[(b"id", Some(b"1")), (b"id", Some(b"2"))]), Err(HeaderFault::Repeated));
        assert_eq!(sole(&[(b"id", Some(b"1")), (b"id", None)]), Err(HeaderFault::Repeated));
        assert_eq!(sole(&[(b"id", None)]), Err(HeaderFault::NotText));
        assert_eq!(sole(&[(b"id", Some(b"\xff"))]), Err(HeaderFault::NotText));
        let unreadable = record(&[]).with_headers(None);
        assert_eq!(unreadable.sole_header("id"), Err(HeaderFault::Unreadable));
        assert_eq!(unreadable.header("id"), None);
    }
}
