//! Which broker leads a partition, and what it keeps: asked so that who does not answer holds up no other.
//!
//! Kafka's client waits for a leader that is not there for as long as it is let. So leaders are looked up
//! first, which any broker answers; a partition without one is never asked for; and one request goes to each
//! leader. Blocking. Kafka is authoritative; an answer is as old as the request for it.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Inquirer;
use super::{KafkaError, TopicPartition};

/// A broker's id, as Kafka names leaders.
pub type BrokerId = i32;

/// The partitions of some topics, each with its leader where it has one.
#[derive(Debug, Clone, Default)]
pub struct Leaders {
    topics: BTreeMap<String, Result<Vec<Option<BrokerId>>, RDKafkaErrorCode>>,
}

impl Leaders {
    /// Looks them up; any broker answers.
    pub fn look_up(consumer: &Inquirer, topics: &[&str], wait: Duration) -> Result<Self, KafkaError> {
        let mut found = Self::default();
        for name in topics {
            let metadata = consumer.fetch_metadata(Some(name), wait).map_err(KafkaError::at("look up leaders"))?;
            let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == *name) else { continue };
            let mut leaders = vec![None; topic.partitions().len()];
            for partition in topic.partitions() {
                let place = usize::try_from(partition.id()).ok().and_then(|at| leaders.get_mut(at));
                if let Some(leader) = place {
                    *leader = Some(partition.leader()).filter(|leader| *leader >= 0);
                }
            }
            // An error of a topic that shows partitions is that of one of them.
            let told = match topic.error() {
                Some(error) if leaders.is_empty() => Err(error.into()),
                _ => Ok(leaders),
            };
            found.topics.insert((*name).to_owned(), told);
        }
        Ok(found)
    }

    /// Partitions of a topic; none when it does not exist, or is not shown to us.
    pub fn count(&self, topic: &str) -> usize {
        self.topics.get(topic).and_then(|told| told.as_ref().ok()).map_or(0, Vec::len)
    }

    /// The leader of a partition.
    ///
    /// # Errors
    /// It has none now; or there is no such partition.
    pub fn of(&self, place: &TopicPartition) -> Result<BrokerId, KafkaError> {
        let code = match self.topics.get(&*place.topic) {
            None => RDKafkaErrorCode::UnknownTopicOrPartition,
            Some(Err(code)) => *code,
            Some(Ok(leaders)) => match usize::try_from(place.partition).ok().and_then(|at| leaders.get(at)) {
                None => RDKafkaErrorCode::UnknownTopicOrPartition,
                Some(None) => RDKafkaErrorCode::LeaderNotAvailable,
                Some(Some(leader)) => return Ok(*leader),
            },
        };
        Err(KafkaError::Request { step: "find a partition's leader", source: ClientError::MetadataFetch(code) })
    }

    /// All partitions that have a leader, by leader.
    pub fn by_leader(&self) -> BTreeMap<BrokerId, Vec<TopicPartition>> {
        let mut grouped: BTreeMap<BrokerId, Vec<TopicPartition>> = BTreeMap::new();
        for (topic, told) in &self.topics {
            for (partition, leader) in told.iter().flatten().enumerate() {
                let Some(leader) = leader else { continue };
                let place = TopicPartition { topic: topic.as_str().into(), partition: partition as i32 };
                grouped.entry(*leader).or_default().push(place);
            }
        }
        grouped
    }
}

/// The first offset kept and the next to be written of partitions of one leader, in their order.
///
/// # Errors
/// The leader does not answer; what it says of a single partition is in that one's place.
pub fn of_one_leader(
    consumer: &Inquirer,
    places: &[TopicPartition],
    wait: Duration,
) -> Result<Vec<Result<(i64, i64), KafkaError>>, KafkaError> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    // Kafka's ListOffsets takes the ends for special times. The first before the last: a window that is read
    // while records expire is too large and never too small.
    let ask = |which: Offset| -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for TopicPartition { topic, partition } in places {
            list.add_partition_offset(topic, *partition, which).map_err(KafkaError::at("list offsets"))?;
        }
        consumer.offsets_for_times(list, wait).map_err(KafkaError::at("read the ends of partitions"))
    };
    let (first, next) = (ask(Offset::Beginning)?, ask(Offset::End)?);
    let offset = |list: &TopicPartitionList, place: &TopicPartition| -> Result<i64, KafkaError> {
        let TopicPartition { topic, partition } = place;
        let Some(element) = list.find_partition(topic, *partition) else {
            return Err(KafkaError::Fatal(format!("no answer for {place}")));
        };
        element.error().map_err(KafkaError::at("read a partition's end"))?;
        match element.offset() {
            Offset::Offset(offset) => Ok(offset),
            other => Err(KafkaError::Fatal(format!("the end of {place} is told as {other:?}"))),
        }
    };
    Ok(places.iter().map(|place| Ok((offset(&first, place)?, offset(&next, place)?))).collect())
}
