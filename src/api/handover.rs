//! Hands commands to Kafka: one shared idempotent producer, one answer a command.
//!
//! `acks=all`: what was acknowledged here survives the loss of this process. What was not may or
//! may not be on the topic; callers repeat it under the same command id.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::admission::{LANE_HEADER, Permit, Way};
use super::problem::{KAFKA_UNAVAILABLE, Problem};
use crate::crash::is_sabotaged;
use crate::health::Told;
use crate::kafka::topics::TopicNames;
use crate::kafka::{KafkaError, Tended, client, headers, voice};
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

/// Kafka's client looks at what is overdue once a second. Past that, its silence is taken for a no.
const OVERDUE_LOOK: Duration = Duration::from_secs(2);
/// A producer that fails for good is replaced this often, at most.
const REPLACE_EVERY: Duration = Duration::from_secs(1);

/// The producer of one server.
pub struct Handover {
    producer: RwLock<Producer>,
    config: ClientConfig,
    names: TopicNames,
    wait: Duration,
    /// Said once, not once a request.
    told: Told,
}

struct Producer {
    client: Tended<ThreadedProducer<Deliveries>>,
    made_at: Instant,
}

/// A command with what its delivery concludes.
type Command<'a> = BaseRecord<'a, str, [u8], Box<Pending>>;

/// What a delivery report concludes.
struct Pending {
    permit: Permit,
    sent_at: Instant,
    answer: oneshot::Sender<Result<(), String>>,
}

struct Deliveries;

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        voice::log(level, facility, message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        voice::error(&error, reason);
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

impl Producer {
    fn new(config: &ClientConfig) -> Result<Self, KafkaError> {
        Ok(Self { client: Tended::producer(config, Deliveries)?, made_at: Instant::now() })
    }
}

impl Handover {
    /// Makes the producer. Commands that Kafka does not acknowledge within the wait are given up, so that
    /// nothing is sent after its caller was told.
    pub fn new(settings: &Settings, names: &TopicNames) -> Result<Self, KafkaError> {
        let http = &settings.http;
        let wait = http.produce_wait_ms.min(http.request_timeout_ms);
        let mut config = client::producer(&settings.kafka, http.produce_linger_ms);
        config.set("message.timeout.ms", wait.to_string());
        let producer = RwLock::new(Producer::new(&config)?);
        Ok(Self {
            producer,
            config,
            names: names.clone(),
            wait: Duration::from_millis(wait),
            told: Told::new("commands cannot be handed over"),
        })
    }

    /// Queues the command, at a new producer where the one at hand has failed for good.
    fn send(&self, command: Command<'_>) -> Result<(), ClientError> {
        let send = |command| self.producer.read().unwrap_or_else(PoisonError::into_inner).client.send(command);
        match send(command) {
            Ok(()) => Ok(()),
            Err((ClientError::MessageProduction(RDKafkaErrorCode::Fatal), command)) if self.replace() => {
                send(command).map_err(|(error, _)| error)
            }
            Err((error, _)) => Err(error),
        }
    }

    /// Replaces a producer that a fatal error has ended: it takes nothing ever again. Whether there is one
    /// that works.
    fn replace(&self) -> bool {
        let mut producer = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        // Another request may have been faster.
        let Some((code, reason)) = producer.client.client().fatal_error() else { return true };
        if producer.made_at.elapsed() < REPLACE_EVERY {
            return false;
        }
        match Producer::new(&self.config) {
            Ok(new) => {
                let old = std::mem::replace(&mut *producer, new);
                // It waits for its thread and its last reports.
                std::thread::spawn(move || drop(old));
                metrics::counter!("throughline_http_producers_replaced_total").increment(1);
                tracing::warn!(%code, reason, "the command producer failed for good and was replaced");
                true
            }
            Err(error) => {
                tracing::error!(%code, reason, %error, "the command producer failed for good and cannot be replaced");
                false
            }
        }
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
        if let Err(error) = self.send(message.headers(headers)) {
            return Err(self.unavailable(record.command_id, &error.to_string()));
        }
        if is_sabotaged("acknowledged_before_kafka") {
            return Ok(());
        }
        match tokio::time::timeout(self.wait + OVERDUE_LOOK, answered).await {
            Ok(Ok(Ok(()))) => drop(self.told.well()),
            Ok(Ok(Err(reason))) => return Err(self.unavailable(record.command_id, &reason)),
            Ok(Err(_)) => return Err(self.unavailable(record.command_id, "the producer was closed")),
            Err(_) => return Err(self.unavailable(record.command_id, "Kafka's client told nothing in time")),
        }
        let way = if matches!(way, Way::Lane { .. }) { "lane" } else { "overflow" };
        metrics::counter!("throughline_admission_accepted_total", "lane" => lane.name(), "way" => way).increment(1);
        Ok(())
    }

    fn unavailable(&self, command_id: Uuid, reason: &str) -> Problem {
        tracing::debug!(%command_id, reason, "a command was not handed over");
        self.told.failed(reason);
        let detail = "Kafka did not acknowledge the command: it may or may not be on its topic. The log tells why";
        Problem::new(KAFKA_UNAVAILABLE, detail).with_command(command_id).retry_after(1)
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

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::sync::Arc;

    use rdkafka::types::RDKafkaRespErr;

    use super::super::admission::Admission;
    use super::*;
    use crate::engine::destination_partition;
    use crate::kafka::Lane;

    const REASON: &CStr = c"made by a test";

    /// A handover to a broker within its own client.
    fn handover(produce_wait_ms: u64) -> (Handover, Arc<Admission>) {
        let mut settings = Settings::default();
        settings.kafka.librdkafka.insert("test.mock.num.brokers".into(), "1".into());
        settings.http.produce_wait_ms = produce_wait_ms;
        let handover = Handover::new(&settings, &TopicNames::new("bank", &settings.topics)).unwrap();
        (handover, Admission::measured(&settings))
    }

    async fn hand_over(handover: &Handover, admission: &Arc<Admission>) -> Result<(), Problem> {
        // Topics of the client's own broker have four partitions.
        let mut ids = std::iter::repeat_with(Uuid::now_v7);
        let id = ids.find(|id| destination_partition(*id, 6) < 4).unwrap();
        let permit = admission.admit(Lane::Normal, id, 2).await?;
        let (value, correlation_id) = (b"{}".as_slice(), "test");
        let (causation_id, traceparent, principal) = (None, None, None);
        let record = CommandRecord {
            stream_id: id,
            command_id: id,
            value,
            correlation_id,
            causation_id,
            traceparent,
            principal,
        };
        handover.hand_over(permit, record).await
    }

    fn lose_kafka(handover: &Handover, silent: bool) {
        let producer = handover.producer.read().unwrap();
        let cluster = producer.client.client().mock_cluster().unwrap();
        if silent {
            cluster.broker_round_trip_time(1, Duration::from_secs(60)).unwrap();
        } else {
            cluster.broker_down(1).unwrap();
        }
    }

    fn fail_for_good(handover: &Handover) {
        let producer = handover.producer.read().unwrap();
        let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the client is alive under the guard, and the text is constant.
        unsafe {
            rdkafka::bindings::rd_kafka_test_fatal_error(producer.client.client().native_ptr(), error, REASON.as_ptr())
        };
        assert!(producer.client.client().fatal_error().is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_producer_that_failed_for_good_is_replaced_and_no_caller_notices() {
        let (handover, admission) = handover(10_000);
        hand_over(&handover, &admission).await.unwrap();
        for _ in 0..2 {
            tokio::time::sleep(REPLACE_EVERY).await;
            fail_for_good(&handover);
            let first = hand_over(&handover, &admission);
            let together = std::iter::repeat_with(|| hand_over(&handover, &admission)).take(20);
            futures_util::future::try_join_all(together.chain([first])).await.unwrap();
            assert!(handover.producer.read().unwrap().client.client().fatal_error().is_none());
        }
        assert_eq!(admission.depths().in_flight_bytes, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_kafka_a_caller_hears_so_within_about_the_wait() {
        // Gone, and there without a word.
        for silent in [false, true] {
            let (handover, admission) = handover(1_500);
            hand_over(&handover, &admission).await.unwrap();
            lose_kafka(&handover, silent);
            let asked_at = Instant::now();
            let refused = hand_over(&handover, &admission).await.unwrap_err();
            assert_eq!((refused.code(), refused.status().as_u16()), ("KAFKA_UNAVAILABLE", 503));
            assert!(refused.detail().contains("may or may not"), "{}", refused.detail());
            let took = asked_at.elapsed();
            assert!((Duration::from_millis(1_400)..Duration::from_millis(4_000)).contains(&took), "{silent}: {took:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn producers_are_not_replaced_in_a_storm() {
        let (handover, admission) = handover(10_000);
        hand_over(&handover, &admission).await.unwrap();
        tokio::time::sleep(REPLACE_EVERY).await;
        fail_for_good(&handover);
        hand_over(&handover, &admission).await.unwrap();
        fail_for_good(&handover);
        // As young as can be, however long that took here.
        let made_at = Instant::now();
        handover.producer.write().unwrap().made_at = made_at;
        let refused = hand_over(&handover, &admission).await.unwrap_err();
        assert_eq!(refused.code(), "KAFKA_UNAVAILABLE");
        assert_eq!(handover.producer.read().unwrap().made_at, made_at, "the one at hand is too young");
        assert_eq!(admission.depths().in_flight_bytes, 0, "what was refused holds nothing");
    }
}
