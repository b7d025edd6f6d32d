//! The producer: what was handed to it, what came back, and the first thing that went wrong.
//!
//! One generation of it. The first failure ends the generation: it is dropped with everything it
//! still holds, and the next one starts from what Kafka then has. Never `flush()`: it costs 100 ms;
//! delivery reports are counted instead. Knows no PostgreSQL.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use metrics::{Counter, Histogram};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tokio::sync::Notify;

use super::acknowledged::Acknowledged;
use crate::kafka::{KafkaError, Tended, TopicPartition, client, voice};
use crate::settings::KafkaSettings;

/// Librdkafka's own wait for a batch. Batches are made by the reader; this only keeps the first
/// record of one from leaving alone.
const PRODUCER_LINGER_MS: u32 = 1;

/// What ended a generation.
#[derive(Debug, Clone)]
pub struct SendFailure {
    /// The record that failed; none when the producer as a whole did.
    pub record: Option<(TopicPartition, i64)>,
    pub code: Option<RDKafkaErrorCode>,
    pub reason: String,
}

impl SendFailure {
    /// How much it explains.
    fn rank(&self) -> u8 {
        match (&self.record, self.code) {
            (None, _) => 1,
            (
                Some(_),
                Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::Fatal) | None,
            ) => 0,
            (Some(_), Some(_)) => 2,
        }
    }

    /// Whether only an operator can help, and only this partition is concerned.
    pub fn is_lasting(&self) -> bool {
        matches!(
            self.code,
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition
                    | RDKafkaErrorCode::InvalidTopic
                    | RDKafkaErrorCode::InvalidRecord
                    | RDKafkaErrorCode::PolicyViolation
            )
        )
    }

    /// Whether the broker found the request of that record too large.
    pub fn is_too_large(&self) -> bool {
        matches!(
            self.code,
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                    | RDKafkaErrorCode::InvalidMessageSize
                    | RDKafkaErrorCode::MessageBatchTooLarge
            )
        )
    }
}

/// Travels with a record to its delivery report.
pub struct Delivery {
    target: TopicPartition,
    acknowledged: Arc<Acknowledged>,
    seq: i64,
    bytes: usize,
    created_ms: i64,
}

/// Counts delivery reports, on the producer's thread.
pub struct Deliveries {
    rows: AtomicUsize,
    bytes: AtomicUsize,
    half: usize,
    failed: AtomicBool,
    failure: Mutex<Option<SendFailure>>,
    progress: Arc<Notify>,
    latency: Histogram,
    published: Counter,
}

impl Deliveries {
    fn fail(&self, failure: SendFailure) {
        let mut told = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // The first of its rank: a fatal error is announced before the record that caused it.
        if told.as_ref().is_none_or(|told| told.rank() < failure.rank()) {
            *told = Some(failure);
        }
        drop(told);
        self.failed.store(true, Ordering::Release);
        self.progress.notify_one();
    }

    /// What ended the generation, as far as reports came in.
    pub fn failure(&self) -> Option<SendFailure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn settle(&self, delivery: &Delivery) {
        self.bytes.fetch_sub(delivery.bytes, Ordering::AcqRel);
        delivery.acknowledged.left(delivery.bytes);
        let left = self.rows.fetch_sub(1, Ordering::AcqRel) - 1;
        if left == 0 || left == self.half {
            self.progress.notify_one();
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        voice::log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        voice::error(&error, reason);
        // A fatal one comes under the code of its cause: whoever owns the client looks for it.
        self.progress.notify_one();
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        match result {
            Ok(message) => {
                // Once failed, nothing counts: what Kafka has is read from Kafka.
                if !self.failed.load(Ordering::Acquire) {
                    match delivery.acknowledged.advance(delivery.seq, message.offset()) {
                        Ok(()) => {
                            self.published.increment(1);
                            let took = (Timestamp::now().as_millisecond() - delivery.created_ms).max(0);
                            self.latency.record(took as f64 / 1_000.0);
                        }
                        Err(reason) => {
                            let record = Some((delivery.target.clone(), delivery.seq));
                            self.fail(SendFailure { record, code: None, reason });
                        }
                    }
                }
            }
            Err((error, _)) => self.fail(SendFailure {
                record: Some((delivery.target.clone(), delivery.seq)),
                code: error.rdkafka_error_code(),
                reason: error.to_string(),
            }),
        }
        self.settle(&delivery);
    }
}

/// The producer's options. Order and gaplessness are not for sale: they come after the operator's own.
fn config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = client::producer(settings, PRODUCER_LINGER_MS);
    // A record never times out: one that did could be overtaken by the next, which leaves a hole in
    // the topic, where a late duplicate is merely dropped by its readers. For the same reason a record
    // that is refused for good must stop the producer.
    config.remove("delivery.timeout.ms");
    config
        .set("message.timeout.ms", "0")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all");
    config
}

/// A record to publish, borrowed from its outbox row.
pub struct Outgoing<'a> {
    pub target: &'a TopicPartition,
    pub acknowledged: &'a Arc<Acknowledged>,
    pub seq: i64,
    /// The key's text.
    pub key: &'a str,
    pub headers: OwnedHeaders,
    /// Milliseconds since the epoch.
    pub created_ms: i64,
    pub value: &'a [u8],
}

/// What became of handing over one record.
#[derive(Debug, PartialEq, Eq)]
pub enum Handed {
    Taken,
    /// The producer's own queue is full: wait for acknowledgements.
    Full,
    /// The client refuses the record for its size.
    TooLarge,
    /// The generation is over.
    Failed,
}

/// One generation of the producer. Dropping it drops what it still holds, and blocks for up to half
/// a second: drop it where blocking is allowed.
pub struct Publisher {
    producer: Tended<ThreadedProducer<Deliveries>>,
}

impl Publisher {
    /// `progress` is notified when half of `in_flight_max` or nothing is left, and on failure.
    pub fn new(settings: &KafkaSettings, in_flight_max: usize, progress: Arc<Notify>) -> Result<Self, KafkaError> {
        let deliveries = Deliveries {
            rows: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            half: in_flight_max / 2,
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            progress,
            latency: metrics::histogram!("throughline_relay_publish_seconds"),
            published: metrics::counter!("throughline_relay_published_total"),
        };
        Ok(Self { producer: Tended::producer(&config(settings), deliveries)? })
    }

    /// Hands one record over; its bytes are copied.
    pub fn hand_over(&self, record: Outgoing<'_>) -> Handed {
        let deliveries = self.deliveries();
        if deliveries.failed.load(Ordering::Acquire) {
            return Handed::Failed;
        }
        let bytes = record.value.len();
        let delivery = Box::new(Delivery {
            target: record.target.clone(),
            acknowledged: record.acknowledged.clone(),
            seq: record.seq,
            bytes,
            created_ms: record.created_ms,
        });
        deliveries.rows.fetch_add(1, Ordering::AcqRel);
        deliveries.bytes.fetch_add(bytes, Ordering::AcqRel);
        record.acknowledged.handed(bytes);
        let outcome = self.producer.send(
            BaseRecord::with_opaque_to(&record.target.topic, delivery)
                .partition(record.target.partition)
                .key(record.key)
                .payload(record.value)
                // A broker refuses a record from the future: one that the database dated under a clock which was
                // put right since would stop its partition until then. `ce_time` says what the row says.
                .timestamp(record.created_ms.min(Timestamp::now().as_millisecond()))
                .headers(record.headers),
        );
        let Err((error, refused)) = outcome else { return Handed::Taken };
        deliveries.settle(&refused.delivery_opaque);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Handed::Full,
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Handed::TooLarge,
            code => {
                deliveries.fail(SendFailure {
                    record: Some((record.target.clone(), record.seq)),
                    code,
                    reason: error.to_string(),
                });
                Handed::Failed
            }
        }
    }

    /// Records handed over and not yet reported on.
    pub fn in_flight(&self) -> usize {
        self.deliveries().rows.load(Ordering::Acquire)
    }

    /// Bytes of values handed over and not yet reported on.
    pub fn in_flight_bytes(&self) -> usize {
        self.deliveries().bytes.load(Ordering::Acquire)
    }

    /// Whether the generation is over.
    pub fn has_failed(&self) -> bool {
        if let Some((_, reason)) = self.producer.client().fatal_error() {
            let reason = format!("the producer cannot go on: {reason}");
            self.deliveries().fail(SendFailure { record: None, code: Some(RDKafkaErrorCode::Fatal), reason });
        }
        self.deliveries().failed.load(Ordering::Acquire)
    }

    /// Ends the generation with all it still holds, and says what it failed from. Blocks.
    pub fn end(self) -> Option<SendFailure> {
        let deliveries = self.deliveries().clone();
        // The reports of what is dropped tell which record caused a fatal error.
        drop(self);
        deliveries.failure()
    }

    fn deliveries(&self) -> &Arc<Deliveries> {
        use rdkafka::producer::Producer;
        self.producer.client().context()
    }
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
