//! What each number may be. A bound of nothing would stop a loop without a word, and a time of centuries
//! overflows where it is added to a clock; both are refused when settings are loaded.

use serde_json::Value;

use super::{Settings, SettingsError};

/// A day, milliseconds: longer than anything here should wait.
const MS: i64 = 86_400_000;
/// A tebibyte: more than the memory of a process.
const BYTES: i64 = 1 << 40;
const COUNT: i64 = 1_000_000_000;
/// Kafka counts the bytes of a record in 32 bits.
const RECORD: i64 = i32::MAX as i64 - 1_000_000;

/// Key, least and most. Lists are held to it item by item.
const RANGES: &[(&str, i64, i64)] = &[
    ("kafka.session_timeout_ms", 100, 3_600_000),
    ("kafka.prefetch_kbytes_max", 1, 2_097_151),
    ("kafka.request_timeout_ms", 100, 3_600_000),
    ("kafka.halt_retry_ms", 10, MS),
    ("database.pool_connections_max", 1, 10_000),
    ("database.pool_wait_ms", 10, MS),
    ("database.connect_wait_ms", 10, MS),
    ("database.connect_timeout_ms", 10, MS),
    // To PostgreSQL 0 is no bound at all; heartbeats and the fencing of zombies rely on one.
    ("database.statement_timeout_ms", 100, MS),
    ("database.round_trip_timeout_ms", 100, MS),
    ("database.idle_in_transaction_timeout_ms", 100, MS),
    ("database.command_retention_days", 1, 36_500),
    ("database.command_partition_days", 1, 366),
    ("database.outbox_partition_minutes", 1, 44_640),
    ("topics.event_partitions", 1, 10_000),
    ("topics.command_partitions", 1, 10_000),
    ("topics.replication", 1, 100),
    ("topics.command_retention_hours", 1, 876_000),
    ("topics.command_record_bytes_max", 1_000, RECORD),
    ("topics.event_bytes_max", 100, RECORD),
    ("processor.workers", 1, 1_024),
    ("processor.batch_commands_max", 1, COUNT),
    ("processor.batch_bytes_max", 1, BYTES),
    ("processor.queue_commands_max", 1, COUNT),
    ("processor.command_bytes_max", 1, RECORD),
    ("processor.cache_bytes_max", 0, BYTES),
    ("processor.snapshot_every_events", 1, i64::MAX),
    ("processor.lane_weights", 0, 1_000_000),
    ("processor.retry_wait_ms", 0, MS),
    ("processor.retry_wait_max_ms", 0, MS),
    // A renewal, a third of it, has to have the time for a statement.
    ("relay.lease_ms", 500, MS),
    ("relay.batch_rows_max", 1, COUNT),
    ("relay.in_flight_max", 1, COUNT),
    ("relay.in_flight_bytes_max", 1_000, BYTES),
    ("relay.poll_min_ms", 0, 60_000),
    ("relay.poll_max_ms", 0, 60_000),
    ("relay.linger_ms", 0, 60_000),
    ("relay.halt_retry_ms", 10, MS),
    ("relay.silence_ms", 100, MS),
    ("projection.batch_events_max", 1, COUNT),
    ("projection.batch_bytes_max", 1, BYTES),
    ("projection.linger_ms", 0, 60_000),
    ("projection.queue_events_max", 1, COUNT),
    ("projection.queue_bytes_max", 1, BYTES),
    ("projection.retries_max", 0, COUNT),
    ("projection.retry_wait_ms", 0, MS),
    ("projection.retry_wait_max_ms", 0, MS),
    ("projection.apply_timeout_ms", 100, MS),
    ("projection.state_poll_ms", 0, 60_000),
    ("projection.rebuild_chunk_events", 1, COUNT),
    ("projection.rebuild_chunk_bytes", 1, BYTES),
    ("projection.rebuild_workers", 1, 1_024),
    ("projection.keep_previous_hours", 0, 876_000),
    ("process.batch_records_max", 1, COUNT),
    ("process.batch_bytes_max", 1, BYTES),
    ("process.queue_records_max", 1, COUNT),
    ("process.queue_bytes_max", 1, BYTES),
    ("process.retry_wait_ms", 0, MS),
    ("process.retry_wait_max_ms", 0, MS),
    ("process.poll_ms", 10, 60_000),
    ("process.deadlines_max", 1, 100_000),
    ("process.in_flight_max", 1, 100_000),
    ("audit.events_per_second", 1, COUNT),
    ("audit.poll_ms", 10, 3_600_000),
    ("http.body_bytes_max", 1, RECORD),
    ("http.connections_max", 1, COUNT),
    // A prober, a scraper and a person, each with a connection to spare.
    ("http.admin_connections_max", 4, COUNT),
    ("http.descriptors_reserved", 0, COUNT),
    ("http.head_timeout_ms", 100, MS),
    ("http.idle_timeout_ms", 100, MS),
    ("http.body_timeout_ms", 100, MS),
    ("http.concurrent_requests_max", 1, COUNT),
    // Half a second of it is kept for the answer; 0 would be no limit to Kafka's client.
    ("http.request_timeout_ms", 600, MS),
    ("http.sync_wait_ms", 0, MS),
    ("http.consistency_wait_ms", 0, MS),
    ("http.sync_waiters_max", 0, COUNT),
    ("http.poll_min_ms", 0, 60_000),
    ("http.poll_max_ms", 0, 60_000),
    // Kafka's client looks at what is overdue once a second.
    ("http.produce_wait_ms", 1_000, MS),
    ("http.produce_linger_ms", 0, 60_000),
    ("http.event_streams_max", 0, COUNT),
    ("http.event_stream_poll_ms", 0, MS),
    ("http.event_stream_seconds_max", 1, 86_400),
    ("http.heartbeat_silence_max_ms", 1_000, MS),
    ("http.unready_after_ms", 0, MS),
    ("http.claim_pending_max_ms", 0, MS),
    ("http.shutdown_notice_ms", 0, MS),
    ("http.shutdown_wait_ms", 0, MS),
    ("http.admission.queue_commands_max", 1, i64::MAX),
    ("http.admission.priority.queue_commands_max", 1, i64::MAX),
    ("http.admission.bulk.queue_commands_max", 1, i64::MAX),
    ("http.admission.in_flight_bytes_max", 1, BYTES),
    ("http.admission.wait_ms", 0, MS),
    ("http.admission.caller_commands_per_second_max", 0, COUNT),
    ("http.admission.callers_max", 0, COUNT),
    ("http.admission.overflow_commands_max", 0, i64::MAX),
    ("http.admission.overflow_batch_max", 1, COUNT),
    ("http.admission.sample_ms", 0, 60_000),
    ("http.admission.retry_after_max_s", 0, 86_400),
    ("dev.kafka_brokers", 1, 9),
    ("dev.kafka_heap_mib", 64, 1 << 20),
    ("dev.start_timeout_ms", 1, MS),
    ("dev.stop_timeout_ms", 0, MS),
    ("dev.fetch_timeout_ms", 1, MS),
];

/// The first number that is out of its range.
pub(super) fn check(settings: &Settings) -> Result<(), SettingsError> {
    let all = serde_json::to_value(settings).expect("settings are written as JSON");
    for &(key, least, most) in RANGES {
        let found = key.split('.').fold(&all, |value, name| &value[name]);
        let numbers = found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice);
        // One that is not set is no number; one beyond 63 bits is more than any range has.
        let outside =
            |number: &&Value| number.is_number() && !number.as_i64().is_some_and(|n| (least..=most).contains(&n));
        if let Some(number) = numbers.iter().find(outside) {
            return Err(SettingsError::Range { key, value: number.to_string(), least, most });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(prefix: &str, value: &Value, keys: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    numbers(&format!("{prefix}.{name}"), value, keys);
                }
            }
            Value::Array(items) => items.iter().take(1).for_each(|item| numbers(prefix, item, keys)),
            Value::Number(_) => keys.push(prefix.trim_start_matches('.').to_owned()),
            _ => {}
        }
    }

    #[test]
    fn the_defaults_pass_and_every_number_has_a_range() {
        let mut settings = Settings::default();
        check(&settings).unwrap();
        settings.http.admission.priority.queue_commands_max = Some(1);
        settings.http.admission.bulk.queue_commands_max = Some(1);
        let (mut found, mut ranged) = (Vec::new(), RANGES.iter().map(|(key, ..)| *key).collect::<Vec<_>>());
        numbers("", &serde_json::to_value(&settings).unwrap(), &mut found);
        found.sort_unstable();
        ranged.sort_unstable();
        assert_eq!(found, ranged);
    }

    #[test]
    fn lists_and_numbers_of_64_bits_are_held_to_their_range() {
        let mut settings = Settings::default();
        settings.processor.lane_weights = [70, usize::MAX, 5];
        let error = check(&settings).unwrap_err().to_string();
        assert!(error.contains("processor.lane_weights = 18446744073709551615"), "{error}");
        settings.processor.lane_weights = [70, 0, 0];
        check(&settings).unwrap();
        settings.http.admission.bulk.queue_commands_max = Some(0);
        assert!(check(&settings).unwrap_err().to_string().contains("http.admission.bulk.queue_commands_max"));
    }
}
