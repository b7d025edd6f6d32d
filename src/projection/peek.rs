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

pub(super) fn describe(topic: &str, first: i64, end: i64) -> String {
    format!("{topic} (offsets {first} to {end})")
}

impl Numbers {
    pub(super) fn new(settings: &KafkaSettings, topic: &str, partition: i32) -> Result<Self, KafkaError> {
        Ok(Self { peek: Peek::new(settings)?, source: TopicPartition { topic: topic.into(), partition } })
    }

    /// The number of the first record at `offset` or after it; none at the end.
    pub(super) fn first_from(&self, offset: i64) -> Result<Option<i64>, KafkaError> {
        let mut found = None;
        self.peek.visit(&self.source, offset, |record| {
            found = headers::seq_of(&record);
            if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// The number of the last record before `end`; none when there is none.
    pub(super) fn last(&self, first: i64, end: i64) -> Result<Option<i64>, KafkaError> {
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
