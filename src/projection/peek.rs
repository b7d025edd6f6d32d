//! Reads single records of the events topic, outside of any group, to learn their sequence numbers.
//!
//! Needed where an operator names an offset: only the record there tells which event that is.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::client::Inquirer;
use crate::kafka::{KafkaError, client, headers, topic_id};
use crate::settings::KafkaSettings;

/// How far before the end the last record is looked for, offsets.
const BACK: [i64; 4] = [1, 16, 256, 4_096];

/// A reader of one partition.
pub(super) struct Peek {
    consumer: Inquirer,
    topic: String,
    partition: i32,
    wait: Duration,
}

impl Peek {
    pub(super) fn new(settings: &KafkaSettings, topic: &str, partition: i32) -> Result<Self, KafkaError> {
        let mut config = client::consumer(settings, "throughline-peek", "");
        config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        let consumer = client::inquirer_of(&config)?;
        let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
        Ok(Self { consumer, topic: topic.to_owned(), partition, wait })
    }

    /// Kafka's id of the topic.
    pub(super) fn topic_id(&self) -> Result<Option<String>, KafkaError> {
        topic_id::topic_id(self.consumer.client(), &self.topic, self.wait)
    }

    /// The number of the last event before `target`, of a partition that keeps the offsets from `first` to
    /// `end`; none where no record tells.
    pub(super) fn seq_before(&self, target: i64, (first, end): (i64, i64)) -> Result<Option<i64>, KafkaError> {
        if target < end
            && let Some(seq) = self.first_seq_from(target)?
        {
            return Ok(Some(seq - 1));
        }
        self.last_seq(first, end)
    }

    /// The number of the first record at `offset` or after it; none at the end.
    fn first_seq_from(&self, offset: i64) -> Result<Option<i64>, KafkaError> {
        self.read_from(offset, true)
    }

    /// The number of the last record before `end`; none when there is none.
    fn last_seq(&self, first: i64, end: i64) -> Result<Option<i64>, KafkaError> {
        for back in BACK {
            let from = (end - back).max(first);
            if from >= end {
                return Ok(None);
            }
            if let Some(seq) = self.read_from(from, false)? {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    fn read_from(&self, offset: i64, first_only: bool) -> Result<Option<i64>, KafkaError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, self.partition, Offset::Offset(offset))
            .and_then(|()| self.consumer.assign(&list))
            .map_err(KafkaError::at("look at a record of the events topic"))?;
        let deadline = Instant::now() + self.wait;
        let mut found = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(KafkaError::Fatal(format!(
                    "no record of {}/{} from offset {offset} on arrived within {} ms",
                    self.topic,
                    self.partition,
                    self.wait.as_millis()
                )));
            }
            match self.consumer.poll(left) {
                None => {}
                Some(Err(ClientError::PartitionEOF(_))) => return Ok(found),
                // Connection trouble heals by itself within the wait.
                Some(Err(error)) => tracing::debug!(%error, "look at a record"),
                Some(Ok(message)) => {
                    let seq = message.headers().and_then(|all| {
                        let header = all.iter().filter(|header| header.key == headers::SEQ).last()?;
                        std::str::from_utf8(header.value?).ok()?.parse::<i64>().ok()
                    });
                    if let Some(seq) = seq {
                        found = Some(seq);
                        if first_only {
                            return Ok(found);
                        }
                    }
                }
            }
        }
    }
}
