//! Every family of metrics with its HELP. A family that is not here fails the check of the house rules.

use metrics::{describe_counter, describe_gauge, describe_histogram};

const COUNTERS: &[(&str, &str)] = &[
    ("throughline_admission_accepted_total", "Commands that Kafka acknowledged, by lane and way"),
    ("throughline_admission_overflow_drained_total", "Overflowed commands moved to their lanes"),
    ("throughline_admission_rejected_total", "Commands refused before Kafka, by lane and reason"),
    ("throughline_aggregate_cache_hits_total", "Aggregates found in the processor's cache"),
    ("throughline_aggregate_cache_misses_total", "Aggregates loaded from the store"),
    (
        "throughline_claim_retries_total",
        "Claims of a partition that were not granted and are tried again, by consumer group",
    ),
    ("throughline_commands_total", "Commands decided, by context and outcome code"),
    ("throughline_http_consistency_waits_total", "Reads that waited for their consistency token, by result"),
    ("throughline_http_problems_total", "Problems answered, by code"),
    ("throughline_http_rate_limited_total", "Requests beyond their caller's share"),
    ("throughline_http_requests_total", "Requests answered"),
    ("throughline_http_unauthenticated_total", "Requests of callers who are not known"),
    (
        "throughline_kafka_bootstraps_total",
        "Clients that had forgotten every broker and were given the bootstrap servers again",
    ),
    ("throughline_kafka_complaints_total", "Errors that Kafka's clients told, told in the log or not"),
    ("throughline_loop_restarts_total", "Loops that started over after an error or a panic, by loop"),
    ("throughline_maintenance_failures_total", "Turns of maintenance that failed"),
    ("throughline_offsets_lost_total", "Claims that accepted a loss of commands, by consumer group"),
    ("throughline_panics_total", "Panics that were contained, by thread"),
    (
        "throughline_partitions_stalled_total",
        "Partitions that the client fetched nothing of while Kafka had more, by consumer group",
    ),
    ("throughline_partitions_halted_total", "Partitions that came to stand, by consumer group"),
    ("throughline_process_commands_total", "Commands of process managers that Kafka acknowledged, by process"),
    ("throughline_process_deadlines_total", "Deadlines of process managers that fired"),
    ("throughline_process_inputs_total", "Inputs that process managers handled"),
    ("throughline_process_parked_total", "Inputs of process managers that were parked as dead letters"),
    ("throughline_processor_claims_lost_total", "Partitions of a batch that another claim had taken over"),
    ("throughline_processor_retries_total", "Batches of commands tried again"),
    ("throughline_projection_duplicates_total", "Events that came again and were dropped"),
    ("throughline_projection_events_total", "Events applied"),
    ("throughline_projection_fenced_total", "Batches of a projection that another owner's claim refused"),
    ("throughline_projection_parked_total", "Events parked as dead letters"),
    ("throughline_projection_resets_total", "Resets of projections carried out"),
    ("throughline_rebalances_total", "Rebalances, by consumer group"),
    ("throughline_relay_duplicates_avoided_total", "Records that Kafka had and that were not published again"),
    ("throughline_relay_lease_changes_total", "Relay leases acquired, lost and released"),
    ("throughline_relay_producer_resets_total", "Producers of the relay that were replaced"),
    ("throughline_relay_published_total", "Records published"),
    (
        "throughline_command_headers_amended_total",
        "Headers of commands that were cut or mended before they were stored",
    ),
    ("throughline_http_accept_errors_total", "Connections that could not be accepted"),
    ("throughline_http_connections_closed_total", "Connections closed by the server, by port and reason"),
    ("throughline_http_producers_replaced_total", "Producers of commands that failed for good and were replaced"),
];

const GAUGES: &[(&str, &str)] = &[
    (
        "throughline_admission_drained_commands_per_second",
        "Commands decided a second, as the API measures them, by lane",
    ),
    ("throughline_admission_in_flight_bytes", "Bytes of commands on their way to Kafka"),
    ("throughline_admission_overflow_commands", "Commands that wait in the overflow topic"),
    ("throughline_admission_queue_commands", "Commands accepted and not decided as the API counts them, by lane"),
    ("throughline_aggregate_cache_bytes", "Memory of a worker's aggregate cache"),
    ("throughline_build_info", "1, with the version of this program"),
    (
        "throughline_commands_waiting",
        "Commands accepted and not decided, all of the lane: over processes the largest counts",
    ),
    ("throughline_dead_letters", "Dead letters of the store by status: every process tells the same"),
    ("throughline_http_sync_waiters", "Calls that wait for their outcome"),
    ("throughline_loop_silence_seconds", "Age of each loop's last heartbeat"),
    ("throughline_outbox_depth", "Records committed and not published"),
    ("throughline_outbox_oldest_age_seconds", "Age of the oldest record committed and not published"),
    ("throughline_partitions", "Partitions of each loop of this process by state"),
    ("throughline_partitions_standing", "1 while a partition stands"),
    ("throughline_processor_waiting_commands", "Commands fetched and not decided"),
    ("throughline_projection_lag_events", "Events committed and not applied: over processes the largest counts"),
    (
        "throughline_projection_lag_seconds",
        "Age of the oldest event committed and not applied: over processes the largest counts",
    ),
    ("throughline_relay_halted", "1 while the relay has stopped publishing a partition"),
    ("throughline_relay_in_flight_bytes", "Bytes handed to the relay's producer and not acknowledged"),
    ("throughline_relay_in_flight_records", "Records handed to the relay's producer and not acknowledged"),
    ("throughline_http_connections", "Open connections, by port"),
    ("throughline_time_partitions_ahead_seconds", "How far ahead of now the time partitions of a table reach"),
    ("throughline_verified_seq", "Everything up to this sequence number of an events topic was proven by the audit"),
    ("throughline_verified_timestamp_seconds", "When a partition was last found to be as promised, seconds since 1970"),
];

const HISTOGRAMS: &[(&str, &str)] = &[
    ("throughline_command_decided_seconds", "From a command's record to the commit of its decision"),
    ("throughline_http_handover_seconds", "From a request's command to Kafka's acknowledgement"),
    ("throughline_http_request_seconds", "From a request to its answer"),
    ("throughline_http_sync_seconds", "Of calls that waited for their outcome"),
    ("throughline_processor_batch_commands", "Commands of one batch"),
    ("throughline_processor_batch_seconds", "Of one batch of commands, from its first round trip to its commit"),
    ("throughline_projection_batch_events", "Events of one batch of a projection"),
    ("throughline_projection_batch_seconds", "Of one batch of a projection"),
    ("throughline_projection_delay_seconds", "From an event's commit to its row"),
    ("throughline_relay_batch_rows", "Rows of one page of the outbox"),
    ("throughline_relay_publish_seconds", "From a record's commit to Kafka's acknowledgement"),
];

/// Tells the recorder what each family means, and sets the one that never changes.
pub(super) fn describe() {
    COUNTERS.iter().for_each(|(name, help)| describe_counter!(*name, *help));
    GAUGES.iter().for_each(|(name, help)| describe_gauge!(*name, *help));
    HISTOGRAMS.iter().for_each(|(name, help)| describe_histogram!(*name, *help));
    metrics::gauge!("throughline_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}
