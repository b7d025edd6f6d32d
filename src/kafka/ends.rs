//! First and end offsets of whole topics, asked for at once.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaError;
use super::client::Inquirer;

/// Offsets by topic and partition.
pub type Offsets = HashMap<(String, i32), i64>;

/// The first offset kept ([`Offset::Beginning`]) or the next one to be written ([`Offset::End`]) of each of
/// `partitions` of each topic. What Kafka does not tell of is missing.
pub fn offsets(
    client: &Inquirer,
    topics: &[String],
    partitions: i32,
    which: Offset,
    wait: Duration,
) -> Result<Offsets, KafkaError> {
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..partitions {
            // Special timestamps of Kafka's ListOffsets: -2 the first offset, -1 the end.
            list.add_partition_offset(topic, partition, which).map_err(KafkaError::at("list offsets"))?;
        }
    }
    if list.count() == 0 {
        return Ok(Offsets::new());
    }
    let found = client.offsets_for_times(list, wait).map_err(KafkaError::at("read end offsets"))?;
    let known = found.elements();
    let known = known.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some(((element.topic().to_owned(), element.partition()), offset)),
        _ => None,
    });
    Ok(known.collect())
}
