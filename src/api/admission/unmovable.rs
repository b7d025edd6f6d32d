//! Overflowed records that no lane takes: too large for it, or of a form that the client cannot copy.
//!
//! Rare, so each takes a connection of its own. Blocking: called on the drainer's thread.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use tokio::runtime::Handle;

use super::overflow::OverflowError;
use crate::kafka::{Record, topic_id};
use crate::settings::Settings;
use crate::store::{DatabaseRole, DeadLetter, connect, dead_letters};

/// Keeps `record` whole among the dead letters of `group`.
pub(super) fn keep<C: ClientContext>(
    settings: &Settings,
    group: &str,
    kafka: &Client<C>,
    record: &Record,
) -> Result<(), OverflowError> {
    let wait = Duration::from_millis(u64::from(settings.kafka.request_timeout_ms));
    let reason = match record.headers() {
        None => "it has more headers than the Kafka client takes apart, so it cannot be moved to its lane as it is",
        Some(_) => "its lane's topic does not take a record of this size or form",
    };
    let letter = DeadLetter {
        kind: "command",
        consumer: group.to_owned(),
        source_topic: record.source.topic.to_string(),
        topic_id: topic_id::topic_id(kafka, &record.source.topic, wait)?,
        source_partition: record.source.partition,
        source_offset: Some(record.offset),
        seq: None,
        key: record.key.clone(),
        headers: record.headers().map(|headers| headers.iter().collect()),
        value: record.value.clone(),
        reason_code: "UNMOVABLE".to_owned(),
        reason: reason.to_owned(),
        command: None,
        instance: None,
    };
    tracing::error!(partition = %record.source, offset = record.offset, reason, "overflowed record parked");
    Handle::current().block_on(async {
        let client = connect::connect(&settings.database, &DatabaseRole::Writer).await?;
        dead_letters::park(&client, &[letter]).await
    })?;
    Ok(())
}
