//! Looks at records of one partition outside of any group: what stands at an offset, or whether nothing does.
//!
//! Offsets without a record are usual: a transaction's marker takes one, and so does what was aborted.
//! Blocking; knows neither PostgreSQL nor what a record means.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::Inquirer;
use super::membership::lock;
use super::record::{Record, TopicPartition};
use super::{KafkaError, client, topic_id};
use crate::settings::KafkaSettings;

/// A reader of single records.
pub struct Peek {
    consumer: Inquirer,
    wait: Duration,
    /// One look at a time: each assigns its own partition.
    looking: Mutex<()>,
}

impl Peek {
    /// A reader whose looks take at most `kafka.request_timeout_ms` each.
    pub fn new(settings: &KafkaSettings) -> Result<Self, KafkaError> {
        Self::with_wait(settings, Duration::from_millis(u64::from(settings.request_timeout_ms)))
    }

    /// A reader whose looks take `wait` each, at most.
    pub fn with_wait(settings: &KafkaSettings, wait: Duration) -> Result<Self, KafkaError> {
        let mut config = client::consumer(settings, "throughline-peek", "");
        config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        let consumer = client::inquirer_of(&config)?;
        Ok(Self { consumer, wait, looking: Mutex::default() })
    }

    /// Kafka's id of a topic.
    pub fn topic_id(&self, topic: &str) -> Result<Option<String>, KafkaError> {
        topic_id::topic_id(self.consumer.client(), topic, self.wait)
    }

    /// First offset kept and the end of what is decided: behind it a transaction may still be open.
    pub fn watermarks(&self, source: &TopicPartition) -> Result<(i64, i64), KafkaError> {
        self.consumer
            .fetch_watermarks(&source.topic, source.partition, self.wait)
            .map_err(KafkaError::at("read the offsets kept"))
    }

    /// The ends of several partitions, as in [`Peek::watermarks`], by one request a broker.
    pub fn ends(&self, sources: &[TopicPartition]) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for source in sources {
            list.add_partition_offset(&source.topic, source.partition, Offset::End)
                .map_err(KafkaError::at("list partitions"))?;
        }
        let found =
            self.consumer.offsets_for_times(list, self.wait).map_err(KafkaError::at("read the ends of partitions"))?;
        let end = |source: &TopicPartition| {
            let element = found.find_partition(&source.topic, source.partition)?;
            let Offset::Offset(end) = element.offset() else { return None };
            element.error().is_ok().then(|| (source.clone(), end))
        };
        Ok(sources.iter().filter_map(end).collect())
    }

    /// Of partitions that are read up to an offset, those behind which offsets stand and no record, with the end
    /// of these: markers of transactions, and what was aborted. An offset that Kafka does not keep any more
    /// tells nothing.
    pub fn bare_ends(&self, positions: &[(TopicPartition, i64)]) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
        if positions.is_empty() {
            return Ok(HashMap::new());
        }
        let sources: Vec<TopicPartition> = positions.iter().map(|(source, _)| source.clone()).collect();
        // Taken before the look: what is appended later is not judged by it.
        let ends = self.ends(&sources)?;
        let mut bare = HashMap::new();
        for (source, position) in positions {
            let Some(end) = ends.get(source).filter(|end| *end > position) else { continue };
            let (first, _) = self.watermarks(source)?;
            if first <= *position && self.first_from(source, *position)?.is_none() {
                bare.insert(source.clone(), *end);
            }
        }
        Ok(bare)
    }

    /// The first record at `offset` or behind it; none up to the end.
    pub fn first_from(&self, source: &TopicPartition, offset: i64) -> Result<Option<Record>, KafkaError> {
        let mut found = None;
        self.visit(source, offset, |record| {
            found = Some(record);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Shows the records from `offset` on, up to the end or until `look` breaks off.
    ///
    /// # Errors
    /// The end was not reached in time.
    pub fn visit(
        &self,
        source: &TopicPartition,
        offset: i64,
        mut look: impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), KafkaError> {
        let _alone = lock(&self.looking);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&source.topic, source.partition, Offset::Offset(offset))
            .and_then(|()| self.consumer.assign(&list))
            .map_err(KafkaError::at("look at a record"))?;
        let seen = self.read(source, &mut look);
        // Nothing more is fetched for a look that is over.
        let ended = self.consumer.unassign().map_err(KafkaError::at("end a look at a record"));
        // The next look must not take an end of this one for its own.
        while self.consumer.poll(Duration::ZERO).is_some() {}
        seen.and(ended)
    }

    fn read(
        &self,
        source: &TopicPartition,
        look: &mut impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), KafkaError> {
        let deadline = Instant::now() + self.wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(KafkaError::Fatal(format!(
                    "what stands in {source} was not read within {} ms",
                    self.wait.as_millis()
                )));
            }
            match self.consumer.poll(left) {
                None => {}
                Some(Err(ClientError::PartitionEOF(partition))) if partition == source.partition => return Ok(()),
                // Connection trouble heals by itself within the wait.
                Some(Err(error)) => tracing::debug!(%error, "look at a record"),
                Some(Ok(message)) if look(Record::detach(&message, source.topic.clone())).is_break() => return Ok(()),
                Some(Ok(_)) => {}
            }
        }
    }
}
