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

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseRecord, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::overflowed::{Acknowledgements, Counting, Overflowed, detach, is_refusal};
use super::{Admission, unmovable};
use crate::health::Heartbeat;
use crate::kafka::Lane;
use crate::kafka::client::Inquirer;
use crate::kafka::topics::TopicNames;
use crate::kafka::{KafkaError, Peek, Tended, TopicPartition, client};
use crate::settings::Settings;
use crate::store::StoreError;

/// The drainer gave up; it is started again by whoever runs it.
#[derive(Debug, thiserror::Error)]
pub enum OverflowError {
    #[error("drain the overflow topic: {0}")]
    Kafka(#[from] KafkaError),
    #[error("keep an overflowed command that cannot be moved: {0}")]
    Store(#[from] StoreError),
    #[error("{failed} overflowed commands were not acknowledged; they stay in overflow and are moved again")]
    NotAcknowledged { failed: u64 },
}

const POLL_WAIT: Duration = Duration::from_millis(100);
/// A step back within what was fetched.
const SEEK_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at ends that hold no record, while nothing else is to do.
const ENDS_INTERVAL: Duration = Duration::from_secs(1);
/// Each question of such a look, at most.
const ENDS_WAIT: Duration = Duration::from_secs(2);

struct Drainer {
    peek: Peek,
    /// When the ends were looked at last.
    looked_at: Instant,
    settings: Settings,
    group: String,
    admission: Arc<Admission>,
    topic: String,
    lanes: [String; 3],
    consumer: Inquirer,
    producer: Tended<ThreadedProducer<Counting>>,
    acknowledgements: Arc<Acknowledgements>,
    batch_max: usize,
    acknowledged_within: Duration,
    heartbeat: Heartbeat,
    shutdown: CancellationToken,
    /// Partitions of overflow that stay, by the lanes that their next command is bound for.
    staying: HashMap<i32, Lane>,
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
        let moving = client::producer(&settings.kafka, settings.http.produce_linger_ms);
        Ok(Self {
            peek: Peek::with_wait(&settings.kafka, ENDS_WAIT)?,
            looked_at: Instant::now(),
            settings: settings.clone(),
            group: names.overflow_group(),
            admission,
            topic: names.overflow(),
            lanes: names.lanes(),
            consumer,
            producer: Tended::producer(&moving, Counting(acknowledgements.clone()))?,
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
            } else if self.looked_at.elapsed() > ENDS_INTERVAL {
                // Nothing waits for these; who needs Kafka tells that it is away.
                if let Err(error) = self.pass_bare_ends() {
                    tracing::debug!(%error, "the ends of overflow are not known now");
                }
            }
        }
        Ok(())
    }

    /// Commits past ends that hold no record, which would count as not drained for ever.
    fn pass_bare_ends(&mut self) -> Result<(), OverflowError> {
        self.looked_at = Instant::now();
        let assigned = self.consumer.assignment().map_err(KafkaError::at("read the assignment"))?;
        let committed = self
            .consumer
            .committed_offsets(assigned, ENDS_WAIT)
            .map_err(KafkaError::at("read what is drained of overflow"))?;
        let mut positions = Vec::new();
        for element in committed.elements() {
            let source = TopicPartition { topic: element.topic().into(), partition: element.partition() };
            let position = match element.offset() {
                Offset::Offset(offset) => offset,
                _ => self.peek.watermarks(&source)?.0,
            };
            positions.push((source, position));
        }
        let ends = self.peek.bare_ends(&positions)?;
        let ends = ends.into_iter().map(|(source, end)| (source.partition, end)).collect();
        self.commit_to(&ends)
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
            if left.contains(&command.record.source.partition) {
                continue;
            }
            if self.admission.is_led(command.lane, command.record.source.partition) {
                rest.push(command);
                continue;
            }
            left.insert(command.record.source.partition);
            let topic = self.topic.as_str();
            self.pause([command.record.source.partition])?;
            self.consumer
                .seek(topic, command.record.source.partition, Offset::Offset(command.record.offset), SEEK_WAIT)
                .map_err(KafkaError::at("rewind overflow"))?;
            self.staying.insert(command.record.source.partition, command.lane);
            tracing::warn!(
                partition = command.record.source.partition,
                "overflow stays where its lane has no leader; others go on"
            );
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
            let moved = self.relocate_piece(piece);
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

    /// Moves a piece. What no lane takes is kept as a dead letter: it must not hold up what stands behind it.
    fn relocate_piece(&self, piece: &[Overflowed]) -> Result<(), OverflowError> {
        if self.produce(piece)? {
            return Ok(());
        }
        // A batch is refused as a whole; alone each record answers for itself. Those that were taken come
        // again, as after a crash.
        for one in piece.chunks(1) {
            self.heartbeat.beat();
            if !self.produce(one)? {
                unmovable::keep(&self.settings, &self.group, self.consumer.client(), &one[0].record)?;
            }
        }
        Ok(())
    }

    /// False when something was refused for what it is.
    fn produce(&self, piece: &[Overflowed]) -> Result<bool, OverflowError> {
        let acknowledgements = &self.acknowledgements;
        for counter in [&acknowledgements.delivered, &acknowledgements.refused, &acknowledgements.failed] {
            counter.store(0, Ordering::Relaxed);
        }
        let (mut sent, mut refused) = (0, 0);
        for command in piece {
            let Some(headers) = &command.headers else {
                refused += 1;
                continue;
            };
            let mut record: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(&self.lanes[command.lane.index()]).headers(headers.to_native());
            record.key = command.record.key.as_deref();
            record.payload = command.record.value.as_deref();
            match self.producer.send(record) {
                Ok(()) => sent += 1,
                Err((error, _)) if is_refusal(&error) => refused += 1,
                Err((error, _)) => {
                    tracing::warn!(%error, "an overflowed command could not be queued");
                    break;
                }
            }
        }
        let deadline = Instant::now() + self.acknowledged_within;
        let answered = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let settled = || answered(&acknowledgements.delivered) + answered(&acknowledgements.refused);
        while settled() + answered(&acknowledgements.failed) < sent && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        refused += answered(&acknowledgements.refused);
        match piece.len() as u64 - answered(&acknowledgements.delivered) - refused {
            0 => Ok(refused == 0),
            failed => Err(OverflowError::NotAcknowledged { failed }),
        }
    }

    fn commit(&self, piece: &[Overflowed]) -> Result<(), OverflowError> {
        let mut ends = BTreeMap::new();
        for command in piece {
            ends.insert(command.record.source.partition, command.record.offset + 1);
        }
        self.commit_to(&ends)?;
        metrics::counter!("throughline_admission_overflow_drained_total").increment(piece.len() as u64);
        Ok(())
    }

    fn commit_to(&self, ends: &BTreeMap<i32, i64>) -> Result<(), OverflowError> {
        if ends.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (partition, end) in ends {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*end))
                .map_err(KafkaError::at("list offsets"))?;
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(KafkaError::at("commit overflow"))?;
        self.admission.drained(ends);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::Producer as _;
    use rdkafka::types::RDKafkaRespErr;

    use super::*;
    use crate::health::Health;
    use crate::kafka::{Record, RecordHeaders};

    #[test]
    fn a_producer_that_failed_for_good_ends_the_drainer_and_the_next_one_moves_what_it_could_not() {
        let mut settings = Settings::default();
        settings.kafka.librdkafka.insert("test.mock.num.brokers".into(), "1".into());
        let names = TopicNames::new("bank", &settings.topics);
        let open = || {
            let heartbeat = Health::new(Duration::from_secs(60)).register("drainer");
            Drainer::open(&settings, &names, Admission::measured(&settings), heartbeat, CancellationToken::new())
        };
        let lane = Lane::Normal;
        let source = TopicPartition { topic: names.overflow().as_str().into(), partition: 0 };
        let record = Record::new(source, 0, Some(b"k".to_vec()), Some(b"v".to_vec()));
        let piece = [Overflowed { record, lane, headers: Some(RecordHeaders::default()) }];
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
