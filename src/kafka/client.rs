//! Options of every Kafka client: ours first, then whatever the operator passes through.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::KafkaError;
use super::Tended;
use super::voice::Quiet;
use crate::settings::KafkaSettings;

/// What every client shares.
pub fn base(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", "throughline")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        // Partitions that are added to a topic, and brokers that took over, are noticed within seconds.
        .set("topic.metadata.refresh.interval.ms", "5000");
    config
}

/// Lets the operator's options win over ours.
pub fn pass_through(
    mut config: ClientConfig,
    settings: &KafkaSettings,
    applies: impl Fn(&str) -> bool,
) -> ClientConfig {
    for (name, value) in settings.librdkafka.iter().filter(|(name, _)| applies(name)) {
        config.set(name, value);
    }
    config
}

/// A group consumer that starts from offsets we hand it and commits nothing by itself.
///
/// Classic protocol with cooperative rebalancing: librdkafka 2.12's KIP-848 client fences the
/// newcomer after a crash, where classic fences the dead one.
pub fn consumer(settings: &KafkaSettings, group: &str, instance_id: &str) -> ClientConfig {
    let mut config = base(settings);
    config
        .set("group.id", group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", settings.session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", (settings.session_timeout_ms / 4).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("queued.max.messages.kbytes", settings.prefetch_kbytes_max.to_string())
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.message.max.bytes", (2 * 1024 * 1024).to_string());
    if !instance_id.is_empty() {
        config.set("group.instance.id", instance_id);
    }
    pass_through(config, settings, |name| !PRODUCER_ONLY.contains(&name))
}

/// An idempotent producer with `acks=all`: order is kept per partition through retries.
pub fn producer(settings: &KafkaSettings, linger_ms: u32) -> ClientConfig {
    let mut config = base(settings);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", linger_ms.to_string())
        .set("batch.size", (1024 * 1024).to_string())
        .set("compression.type", "lz4")
        .set("message.max.bytes", (8 * 1024 * 1024).to_string())
        .set("queue.buffering.max.messages", "500000")
        // Java's default partitioner, so that every client of ours agrees with every other.
        .set("partitioner", "murmur2_random");
    pass_through(config, settings, |name| !CONSUMER_ONLY.contains(&name))
}

const PRODUCER_ONLY: [&str; 7] = [
    "linger.ms",
    "batch.size",
    "compression.type",
    "acks",
    "enable.idempotence",
    "message.timeout.ms",
    "delivery.timeout.ms",
];
const CONSUMER_ONLY: [&str; 7] = [
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "group.instance.id",
    "partition.assignment.strategy",
    "queued.max.messages.kbytes",
    "fetch.wait.max.ms",
];

/// A client for questions only: it joins no group.
pub type Inquirer = Tended<BaseConsumer<Quiet>>;

/// A client that asks for offsets, metadata and single records.
pub fn inquirer(settings: &KafkaSettings) -> Result<Inquirer, KafkaError> {
    inquirer_of(&pass_through(base(settings), settings, |_| true))
}

/// As [`inquirer`], with options of its own.
pub fn inquirer_of(config: &ClientConfig) -> Result<Inquirer, KafkaError> {
    Tended::consumer(config, Quiet)
}

/// Asks for metadata: whether a broker answers at all.
pub fn check(settings: &KafkaSettings) -> Result<(), KafkaError> {
    let consumer = inquirer(settings)?;
    let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
    consumer
        .fetch_metadata(None, wait)
        .map(|_| ())
        .map_err(|error| KafkaError::Connect { brokers: settings.brokers.clone(), reason: error.to_string() })
}
