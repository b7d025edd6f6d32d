//! What is on a topic, read by nothing but Kafka's client.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use rdkafka::{Message as _, Offset, TopicPartitionList};

/// One record.
#[derive(Debug, Clone)]
pub struct Seen {
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: BTreeMap<String, String>,
}

/// Every record of a topic, by partition, in order.
pub fn read(brokers: &str, topic: &str, partitions: i32, with_headers: bool) -> BTreeMap<i32, Vec<Seen>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "checker")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut all = BTreeMap::new();
    for partition in 0..partitions {
        let wait = Duration::from_secs(10);
        let (low, high) = consumer.fetch_watermarks(topic, partition, wait).expect("watermarks");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(low)).expect("an offset");
        consumer.assign(&list).expect("assign");
        let (mut next, mut seen, deadline) = (low, Vec::new(), Instant::now() + Duration::from_secs(60));
        while next < high {
            assert!(Instant::now() < deadline, "{topic}/{partition} is not read to its end");
            match consumer.poll(Duration::from_secs(1)) {
                Some(Ok(message)) => {
                    next = message.offset() + 1;
                    // A name that is no text makes the client's accessor panic: commands are read without.
                    let headers = message.headers().filter(|_| with_headers).map_or_else(BTreeMap::new, |headers| {
                        let text =
                            |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
                        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
                    });
                    seen.push(Seen {
                        offset: message.offset(),
                        key: message.key().map(<[u8]>::to_vec),
                        value: message.payload().map(<[u8]>::to_vec),
                        headers,
                    });
                }
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => next = high,
                _ => {}
            }
        }
        all.insert(partition, seen);
    }
    all
}
