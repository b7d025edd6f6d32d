//! How to reach Kafka.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Addresses and pass-through options of every Kafka client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSettings {
    /// Bootstrap brokers, `host:port`, comma separated. Environment: `KAFKA_BROKERS`.
    pub brokers: String,
    /// Broker silence after which a member's partitions are given to others, milliseconds.
    pub session_timeout_ms: u32,
    /// Prefetch of one consumer, kilobytes.
    pub prefetch_kbytes_max: u32,
    /// How long an admin or metadata request may take, milliseconds.
    pub request_timeout_ms: u32,
    /// A partition that stands is claimed and tried anew after this long, at most, milliseconds.
    pub halt_retry_ms: u64,
    /// Any librdkafka option, by its own name; wins over everything above. In the environment
    /// write dots as underscores: `THROUGHLINE__KAFKA__LIBRDKAFKA__SECURITY_PROTOCOL`.
    #[serde(serialize_with = "redact_secrets")]
    pub librdkafka: BTreeMap<String, String>,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            session_timeout_ms: 6_000,
            prefetch_kbytes_max: 16 * 1024,
            request_timeout_ms: 10_000,
            halt_retry_ms: 10_000,
            librdkafka: BTreeMap::new(),
        }
    }
}

fn redact_secrets<S: serde::Serializer>(options: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    let secret = |name: &str| {
        ["password", "secret", "key.pem", "jaas", "sasl.oauthbearer.config"].iter().any(|part| name.contains(part))
    };
    serializer.collect_map(
        options.iter().map(|(name, value)| (name, if secret(name) { "[redacted]" } else { value.as_str() })),
    )
}
