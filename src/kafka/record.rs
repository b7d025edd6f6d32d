//! A consumed record, owned: bytes as they were on the topic.

use std::sync::Arc;

use rdkafka::message::{BorrowedMessage, Headers, Message};

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
    headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// A record without headers and time.
    pub fn new(source: TopicPartition, offset: i64, key: Option<Vec<u8>>, value: Option<Vec<u8>>) -> Self {
        Self { source, offset, timestamp_ms: 0, key, value, headers: Vec::new() }
    }

    /// The same with these headers.
    #[must_use]
    pub fn with_headers(self, headers: Vec<(String, Vec<u8>)>) -> Self {
        Self { headers, ..self }
    }

    /// Copies a message out of the client's buffer.
    pub fn detach(message: &BorrowedMessage<'_>, topic: Arc<str>) -> Self {
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
        });
        Self {
            source: TopicPartition { topic, partition: message.partition() },
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
        }
    }

    /// The last header of that name, as text; none when absent or not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    /// All headers, as they came.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// All headers, for dead letters: text where it is text, else lossy.
    pub fn headers_json(&self) -> serde_json::Value {
        self.headers
            .iter()
            .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned().into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Memory held, bytes, roughly.
    pub fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
        128 + headers + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}
