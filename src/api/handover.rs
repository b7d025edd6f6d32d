//! Hands commands to Kafka: one shared idempotent producer, one answer a command.
//!
//! `acks=all`: what was acknowledged here survives the loss of this process. What was not may or
//! may not be on the topic; callers repeat it under the same command id.

use std::time::Instant;

use rdkafka::ClientContext;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::admission::{LANE_HEADER, Permit, Way};
use super::problem::{KAFKA_UNAVAILABLE, Problem};
use crate::kafka::topics::TopicNames;
use crate::kafka::{KafkaError, client, headers};
use crate::settings::Settings;

/// One command, ready for its topic.
#[derive(Debug, Clone, Copy)]
pub struct CommandRecord<'a> {
    /// The key.
    pub stream_id: Uuid,
    pub command_id: Uuid,
    /// The value, as the processor will hash and parse it.
    pub value: &'a [u8],
    pub correlation_id: &'a str,
    pub causation_id: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    /// Who sent it, where that is known.
    pub principal: Option<&'a str>,
}

/// The producer of one server.
pub struct Handover {
    producer: ThreadedProducer<Deliveries>,
    names: TopicNames,
}

/// What a delivery report concludes.
struct Pending {
    permit: Permit,
    sent_at: Instant,
    answer: oneshot::Sender<Result<(), String>>,
}

struct Deliveries;

impl ClientContext for Deliveries {
    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "the command producer");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Self::DeliveryOpaque) {
        let Pending { permit, sent_at, answer } = *pending;
        let delivered = match result {
            Ok(message) => {
                metrics::histogram!("throughline_http_handover_seconds").record(sent_at.elapsed());
                permit.accepted(message.offset());
                Ok(())
            }
            Err((error, _)) => {
                drop(permit);
                Err(error.to_string())
            }
        };
        // A caller that went away is no reason to do anything: the command is accepted all the same.
        drop(answer.send(delivered));
    }
}

impl Handover {
    /// Makes the producer. Commands that Kafka does not acknowledge within the request timeout are
    /// given up, so that nothing is sent after its caller was told.
    pub fn new(settings: &Settings, names: &TopicNames) -> Result<Self, KafkaError> {
        let mut config = client::producer(&settings.kafka, settings.http.produce_linger_ms);
        config.set("message.timeout.ms", settings.http.request_timeout_ms.to_string());
        let producer =
            config.create_with_context(Deliveries).map_err(|error| KafkaError::Settings(error.to_string()))?;
        Ok(Self { producer, names: names.clone() })
    }

    /// Produces the command where its permit says and returns once Kafka acknowledged it.
    pub async fn hand_over(&self, permit: Permit, record: CommandRecord<'_>) -> Result<(), Problem> {
        let way = permit.way();
        let (lane, topic) = match way {
            Way::Lane { lane, .. } => (lane, self.names.lanes()[lane.index()].clone()),
            Way::Overflow { lane, .. } => (lane, self.names.overflow()),
        };
        let mut uuid = Uuid::encode_buffer();
        let key: &str = record.stream_id.hyphenated().encode_lower(&mut uuid);
        let (answer, answered) = oneshot::channel();
        let pending = Box::new(Pending { permit, sent_at: Instant::now(), answer });
        let mut message = BaseRecord::with_opaque_to(&topic, pending).key(key).payload(record.value);
        let mut headers = record_headers(&record);
        // Where the key leads to as well: the permit counts what is on its way to each partition.
        let (Way::Lane { partition, .. } | Way::Overflow { partition, .. }) = way;
        message = message.partition(partition);
        if matches!(way, Way::Overflow { .. }) {
            headers = headers.insert(Header { key: LANE_HEADER, value: Some(lane.name()) });
        }
        if let Err((error, _)) = self.producer.send(message.headers(headers)) {
            return Err(unavailable(record.command_id, &error.to_string()));
        }
        match answered.await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err(unavailable(record.command_id, &reason)),
            Err(_) => return Err(unavailable(record.command_id, "the producer was closed")),
        }
        let way = if matches!(way, Way::Lane { .. }) { "lane" } else { "overflow" };
        metrics::counter!("throughline_admission_accepted_total", "lane" => lane.name(), "way" => way).increment(1);
        Ok(())
    }
}

fn record_headers(record: &CommandRecord<'_>) -> OwnedHeaders {
    let mut uuid = Uuid::encode_buffer();
    let command_id: &str = record.command_id.hyphenated().encode_lower(&mut uuid);
    let mut headers = OwnedHeaders::new_with_capacity(7)
        .insert(Header { key: headers::CONTENT_TYPE, value: Some("application/json") })
        .insert(Header { key: headers::COMMAND_ID, value: Some(command_id) })
        .insert(Header { key: headers::CORRELATION_ID, value: Some(record.correlation_id) });
    for (key, value) in [
        (headers::CAUSATION_ID, record.causation_id),
        (headers::TRACEPARENT, record.traceparent),
        (headers::PRINCIPAL, record.principal),
    ] {
        if value.is_some() {
            headers = headers.insert(Header { key, value });
        }
    }
    headers
}

fn unavailable(command_id: Uuid, reason: &str) -> Problem {
    tracing::warn!(%command_id, reason, "a command could not be handed over");
    Problem::new(KAFKA_UNAVAILABLE, "Kafka did not acknowledge the command in time; the log tells why")
        .with_command(command_id)
        .retry_after(1)
}
