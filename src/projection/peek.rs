//! Sequence numbers at places of the events topic, where an operator or Kafka names an offset only.
//!
//! Kafka is authoritative for what stands at an offset; records that are not ours are looked past.

use std::ops::ControlFlow;

use crate::kafka::{KafkaError, Peek, TopicPartition, headers};
use crate::settings::KafkaSettings;

/// How far before the end the last record is looked for, offsets.
const BACK: [i64; 4] = [1, 16, 256, 4_096];

/// A reader of one partition's numbers.
pub(super) struct Numbers {
    peek: Peek,
    source: TopicPartition,
}

impl Numbers {
    pub(super) fn new(settings: &KafkaSettings, topic: &str, partition: i32) -> Result<Self, KafkaError> {
        Ok(Self { peek: Peek::new(settings)?, source: TopicPartition { topic: topic.into(), partition } })
    }

    /// Kafka's id of the topic.
    pub(super) fn topic_id(&self) -> Result<Option<String>, KafkaError> {
        self.peek.topic_id(&self.source.topic)
    }

    /// The number of the last event before `target`, of a partition that keeps the offsets from `first` to
    /// `end`; none where no record tells.
    pub(super) fn seq_before(&self, target: i64, (first, end): (i64, i64)) -> Result<Option<i64>, KafkaError> {
        if target < end
            && let Some(seq) = self.first_from(target)?
        {
            return Ok(Some(seq - 1));
        }
        self.last(first, end)
    }

    /// The number of the first record at `offset` or after it; none at the end.
    fn first_from(&self, offset: i64) -> Result<Option<i64>, KafkaError> {
        let mut found = None;
        self.peek.visit(&self.source, offset, |record| {
            found = headers::seq_of(&record);
            if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// The number of the last record before `end`; none when there is none.
    fn last(&self, first: i64, end: i64) -> Result<Option<i64>, KafkaError> {
        for back in BACK {
            let from = (end - back).max(first);
            if from >= end {
                return Ok(None);
            }
            let mut found = None;
            self.peek.visit(&self.source, from, |record| {
                found = headers::seq_of(&record).or(found);
                ControlFlow::Continue(())
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
