//! Moves overflowed commands to their lanes, in order, as fast as the lanes have room.
//!
//! Kafka's committed offset of the overflow group is the truth of what was moved; it follows the
//! acknowledgements. A crash in between moves some commands again: their ids make that harmless,
//! and their order is kept, since every mover goes through a partition from the committed offset on.
//! A command whose lane has no leader for it stays, and holds up those behind it in its partition only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::super::lane::Lane;
use super::Admission;
use crate::health::Heartbeat;
use crate::kafka::client::Inquirer;
use crate::kafka::topics::TopicNames;
use crate::kafka::{KafkaError, client, voice};
use crate::settings::Settings;

/// Header of an overflowed record: the lane it is bound for.
pub const LANE_HEADER: &str = "lane";

/// The drainer gave up; it is started again by whoever runs it.
#[derive(Debug, thiserror::Error)]
pub enum OverflowError {
    #[error("drain the overflow topic: {0}")]
    Kafka(#[from] KafkaError),
    #[error("{failed} overflowed commands were not acknowledged; they stay in overflow and are moved again")]
    NotAcknowledged { failed: u64 },
}

const POLL_WAIT: Duration = Duration::from_millis(100);
/// A step back within what was fetched.
const SEEK_WAIT: Duration = Duration::from_secs(5);

/// Counts the delivery reports of one batch.
#[derive(Default)]
struct Acknowledgements {
    delivered: AtomicU64,
    failed: AtomicU64,
}

#[derive(Clone)]
struct Counting(Arc<Acknowledgements>);

impl ClientContext for Counting {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        voice::log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        voice::error(&error, reason);
    }
}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.delivered } else { &self.0.failed };
        counter.fetch_add(1, Ordering::Release);
    }
}

struct Drainer {
    admission: Arc<Admission>,
    topic: String,
    lanes: [String; 3],
    consumer: Inquirer,
    producer: ThreadedProducer<Counting>,
    acknowledgements: Arc<Acknowledgements>,
    batch_max: usize,
    acknowledged_within: Duration,
    heartbeat: Heartbeat,
    shutdown: CancellationToken,
    /// Partitions of overflow that stay, by the lanes that their next command is bound for.
    staying: HashMap<i32, Lane>,
}

/// A command read from overflow and not yet moved.
struct Overflowed {
    partition: i32,
    offset: i64,
    lane: Lane,
    key: Vec<u8>,
    value: Vec<u8>,
    headers: OwnedHeaders,
}

/// Drains until cancelled. Blocks its thread, and beats at every turn. A producer that failed for good ends
/// with the drainer: the next one has its own.
pub fn drain(
    settings: &Settings,
    names: &TopicNames,
    admission: Arc<Admission>,
    heartbeat: Heartbeat,
    shutdown: CancellationToken,
) -> Result<(), OverflowError> {
    Drainer::open(settings, names, admission, heartbeat, shutdown)?.run()
}

impl Drainer {
    fn open(
        settings: &Settings,
        names: &TopicNames,
        admission: Arc<Admission>,
        heartbeat: Heartbeat,
        shutdown: CancellationToken,
    ) -> Result<Self, OverflowError> {
        let mut config = client::consumer(&settings.kafka, &names.overflow_group(), "");
        // A group that never committed starts at the first command there is.
        config.set("auto.offset.reset", "earliest");
        let consumer = client::inquirer_of(&config)?;
        consumer.subscribe(&[&names.overflow()]).map_err(KafkaError::at("subscribe to overflow"))?;
        let acknowledgements = Arc::new(Acknowledgements::default());
        let producer = client::producer(&settings.kafka, settings.http.produce_linger_ms)
            .create_with_context(Counting(acknowledgements.clone()))
            .map_err(|error| KafkaError::Settings(error.to_string()))?;
        Ok(Self {
            admission,
            topic: names.overflow(),
            lanes: names.lanes(),
            consumer,
            producer,
            acknowledgements,
            batch_max: settings.http.admission.overflow_batch_max.max(1),
            acknowledged_within: Duration::from_millis(u64::from(settings.kafka.request_timeout_ms) * 3),
            heartbeat,
            shutdown,
            staying: HashMap::new(),
        })
    }

    fn run(&mut self) -> Result<(), OverflowError> {
        while !self.shutdown.is_cancelled() {
            self.heartbeat.ready();
            self.resume_led()?;
            let batch = self.read()?;
            let batch = self.leave_leaderless(batch)?;
            if !batch.is_empty() {
                self.relocate(&batch)?;
            }
        }
        Ok(())
    }

    /// What overflow holds next, at most a batch.
    fn read(&self) -> Result<Vec<Overflowed>, OverflowError> {
        let mut batch = Vec::new();
        let mut wait = POLL_WAIT;
        while batch.len() < self.batch_max {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => batch.push(detach(&message)),
                Some(Err(error @ ClientError::MessageConsumption(_))) => {
                    tracing::debug!(%error, "reading overflow");
                    break;
                }
                Some(Err(error)) => return Err(KafkaError::at("read overflow")(error).into()),
            }
            wait = Duration::ZERO;
        }
        Ok(batch)
    }

    /// Takes out what cannot be moved now: its partition is paused at the first such command.
    fn leave_leaderless(&mut self, batch: Vec<Overflowed>) -> Result<Vec<Overflowed>, OverflowError> {
        let mut left = HashSet::new();
        let mut rest = Vec::with_capacity(batch.len());
        for command in batch {
            if left.contains(&command.partition) {
                continue;
            }
            if self.admission.is_led(command.lane, command.partition) {
                rest.push(command);
                continue;
            }
            left.insert(command.partition);
            let topic = self.topic.as_str();
            self.pause([command.partition])?;
            self.consumer
                .seek(topic, command.partition, Offset::Offset(command.offset), SEEK_WAIT)
                .map_err(KafkaError::at("rewind overflow"))?;
            self.staying.insert(command.partition, command.lane);
            tracing::warn!(partition = command.partition, "overflow stays where its lane has no leader; others go on");
        }
        Ok(rest)
    }

    /// Goes on with what has a leader again.
    fn resume_led(&mut self) -> Result<(), OverflowError> {
        let led: Vec<i32> = self
            .staying
            .extract_if(|partition, lane| self.admission.is_led(*lane, *partition))
            .map(|(p, _)| p)
            .collect();
        if led.is_empty() {
            return Ok(());
        }
        let list = self.list(led);
        // Another drainer's by now, maybe: it is not ours to resume then.
        if let Err(error) = self.consumer.resume(&list) {
            tracing::debug!(%error, "overflow is not resumed");
        }
        Ok(())
    }

    fn pause(&self, partitions: impl IntoIterator<Item = i32>) -> Result<(), OverflowError> {
        Ok(self.consumer.pause(&self.list(partitions)).map_err(KafkaError::at("pause overflow"))?)
    }

    fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        list
    }

    /// Moves a batch, piece by piece, as the lanes get room; commits after each piece.
    fn relocate(&mut self, batch: &[Overflowed]) -> Result<(), OverflowError> {
        let mut rest = batch;
        while let Some(first) = rest.first() {
            // Runs of one lane keep the order within every partition.
            let run = rest.iter().take_while(|command| command.lane == first.lane).count();
            let granted = self.wait_for_room(first.lane, run)?;
            if granted == 0 {
                return Ok(());
            }
            let (piece, later) = rest.split_at(granted);
            let moved = self.produce(piece);
            let delivered = if moved.is_ok() { granted as u64 } else { 0 };
            self.admission.release_drained(first.lane, granted as u64, delivered);
            moved?;
            self.commit(piece)?;
            rest = later;
        }
        Ok(())
    }

    /// Room for up to `most` commands; 0 when shutting down. Keeps the group membership meanwhile.
    fn wait_for_room(&self, lane: Lane, most: usize) -> Result<usize, OverflowError> {
        let mut paused = false;
        let granted = loop {
            self.heartbeat.beat();
            let granted = self.admission.reserve_drained(lane, most);
            if granted > 0 || self.shutdown.is_cancelled() {
                break granted;
            }
            let assigned = self.consumer.assignment().map_err(KafkaError::at("read the assignment"))?;
            self.consumer.pause(&assigned).map_err(KafkaError::at("pause overflow"))?;
            paused = true;
            // Serves rebalances; everything is paused, so that no record can come.
            if let Some(Ok(message)) = self.consumer.poll(POLL_WAIT) {
                self.rewind(&message)?;
            }
        };
        if paused {
            let assigned = self.consumer.assignment().map_err(KafkaError::at("read the assignment"))?;
            let going = assigned.elements().iter().map(|element| element.partition()).collect::<Vec<_>>();
            let going = self.list(going.into_iter().filter(|partition| !self.staying.contains_key(partition)));
            self.consumer.resume(&going).map_err(KafkaError::at("resume overflow"))?;
        }
        Ok(granted)
    }

    /// A partition assigned during a pause may hand out a record: it is read again later.
    fn rewind(&self, message: &BorrowedMessage<'_>) -> Result<(), OverflowError> {
        let place = (message.topic(), message.partition(), Offset::Offset(message.offset()));
        self.consumer.seek(place.0, place.1, place.2, POLL_WAIT).map_err(KafkaError::at("rewind overflow"))?;
        Ok(())
    }

    fn produce(&self, piece: &[Overflowed]) -> Result<(), OverflowError> {
        self.acknowledgements.delivered.store(0, Ordering::Relaxed);
        self.acknowledgements.failed.store(0, Ordering::Relaxed);
        let mut sent = 0;
        for command in piece {
            let record = BaseRecord::to(&self.lanes[command.lane.index()])
                .key(&command.key)
                .payload(&command.value)
                .headers(command.headers.clone());
            if let Err((error, _)) = self.producer.send(record) {
                tracing::warn!(%error, "an overflowed command could not be queued");
                break;
            }
            sent += 1;
        }
        let deadline = Instant::now() + self.acknowledged_within;
        let delivered = || self.acknowledgements.delivered.load(Ordering::Acquire);
        let failed = || self.acknowledgements.failed.load(Ordering::Acquire);
        while delivered() + failed() < sent && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        match piece.len() as u64 - delivered() {
            0 => Ok(()),
            failed => Err(OverflowError::NotAcknowledged { failed }),
        }
    }

    fn commit(&self, piece: &[Overflowed]) -> Result<(), OverflowError> {
        let mut ends = BTreeMap::new();
        for command in piece {
            ends.insert(command.partition, command.offset + 1);
        }
        let mut list = TopicPartitionList::new();
        for (partition, end) in &ends {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*end))
                .map_err(KafkaError::at("list offsets"))?;
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(KafkaError::at("commit overflow"))?;
        self.admission.drained(&ends);
        metrics::counter!("throughline_admission_overflow_drained_total").increment(piece.len() as u64);
        Ok(())
    }
}

fn detach(message: &BorrowedMessage<'_>) -> Overflowed {
    let mut lane = Lane::Normal;
    let mut headers = OwnedHeaders::new();
    for header in message.headers().into_iter().flat_map(Headers::iter) {
        if header.key == LANE_HEADER {
            let name = header.value.and_then(|value| std::str::from_utf8(value).ok());
            lane = name.and_then(Lane::from_name).unwrap_or_default();
        } else {
            headers = headers.insert(Header { key: header.key, value: header.value });
        }
    }
    Overflowed {
        partition: message.partition(),
        offset: message.offset(),
        lane,
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().unwrap_or_default().to_vec(),
        headers,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::Producer as _;
    use rdkafka::types::RDKafkaRespErr;

    use super::*;
    use crate::health::Health;

    #[test]
    fn a_producer_that_failed_for_good_ends_the_drainer_and_the_next_one_moves_what_it_could_not() {
        let mut settings = Settings::default();
        settings.kafka.librdkafka.insert("test.mock.num.brokers".into(), "1".into());
        let names = TopicNames::new("orders", &settings.topics);
        let open = || {
            let heartbeat = Health::new(Duration::from_secs(60)).register("drainer");
            Drainer::open(&settings, &names, Admission::measured(&settings), heartbeat, CancellationToken::new())
        };
        let lane = Lane::Normal;
        let (key, value, headers) = (b"k".to_vec(), b"v".to_vec(), OwnedHeaders::new());
        let piece = [Overflowed { partition: 0, offset: 0, lane, key, value, headers }];
        let drainer = open().unwrap();
        drainer.produce(&piece).unwrap();
        let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the client outlives the call, and the text is constant.
        unsafe {
            let client = drainer.producer.client().native_ptr();
            rdkafka::bindings::rd_kafka_test_fatal_error(client, error, c"made by a test".as_ptr())
        };
        let refused = drainer.produce(&piece).unwrap_err();
        assert!(matches!(refused, OverflowError::NotAcknowledged { failed: 1 }), "{refused}");
        open().unwrap().produce(&piece).unwrap();
    }
}
