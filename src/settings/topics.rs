//! Shape of the topics that the program creates and checks.

use serde::{Deserialize, Serialize};

/// Partitions, replication and retention of a context's topics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicSettings {
    /// Put before every topic and group name; keeps several installations apart on one cluster.
    pub prefix: String,
    /// Partitions of the events and results topics when they are made. From then on the store's number
    /// counts, for ever.
    pub event_partitions: i32,
    /// Partitions of each commands topic (lane), at least. Added ones are read within seconds; while streams
    /// move to other partitions, commands of one stream that are under way then may change their order.
    pub command_partitions: i32,
    /// Copies of each partition. Three on a cluster that must survive a lost disk.
    pub replication: i32,
    /// Commands are kept this long, hours.
    pub command_retention_hours: u32,
    /// Largest record of a commands topic, bytes; larger than any valid command, so that an
    /// oversized one is refused with a reason instead of being lost at its producer.
    pub command_record_bytes_max: u32,
    /// Largest value of an event, bytes. A command whose event would be larger is refused and parked
    /// before anything is written; the relay stops before one that got into the outbox all the same.
    /// The topics' `max.message.bytes` leaves room for it. More than the default is for codecs of your
    /// own: `avro` neither writes nor reads events above 1,000,000 bytes, and our producer takes 8 MiB.
    pub event_bytes_max: u32,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            event_partitions: 6,
            command_partitions: 6,
            replication: 1,
            command_retention_hours: 7 * 24,
            command_record_bytes_max: 4 * 1024 * 1024,
            event_bytes_max: 1_000_000,
        }
    }
}
