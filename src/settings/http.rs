//! The HTTP server's addresses, admission and callers.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Secret;

/// What a full queue answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdmissionPolicy {
    /// 503 with `Retry-After` from the measured drain rate.
    #[default]
    Reject,
    /// Wait for room up to `wait_ms`, then 503.
    Wait,
    /// Accept into the overflow topic, drained when load falls.
    Overflow,
}

/// Bounds of the queue between HTTP and Kafka.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionSettings {
    /// What happens at the limit.
    pub policy: AdmissionPolicy,
    /// Commands accepted and not yet decided (group lag included), at most.
    pub queue_commands_max: u64,
    /// Bytes of commands not yet acknowledged by Kafka, at most.
    pub in_flight_bytes_max: usize,
    /// Longest wait for room with policy `wait`, milliseconds.
    pub wait_ms: u64,
    /// Commands a second of one caller, at most; 0 = no limit.
    pub caller_commands_per_second_max: u32,
    /// Callers remembered by the rate limit, at most; those beyond share one allowance.
    pub callers_max: usize,
    /// Commands that wait in the overflow topic, at most; beyond, `overflow` turns into `reject`.
    pub overflow_commands_max: u64,
    /// Commands moved out of the overflow topic at once, at most.
    pub overflow_batch_max: usize,
    /// The queue is measured this often, milliseconds.
    pub sample_ms: u64,
    /// Longest `Retry-After`, seconds; also the answer while nothing drains.
    pub retry_after_max_s: u64,
    /// What the priority lane does otherwise.
    pub priority: LaneAdmission,
    /// What the bulk lane does otherwise.
    pub bulk: LaneAdmission,
}

/// One lane's departure from the section's `policy` and `queue_commands_max`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LaneAdmission {
    /// What happens at the lane's limit.
    pub policy: Option<AdmissionPolicy>,
    /// Commands accepted on this lane and not yet decided, at most.
    pub queue_commands_max: Option<u64>,
}

impl Default for AdmissionSettings {
    fn default() -> Self {
        Self {
            policy: AdmissionPolicy::Reject,
            queue_commands_max: 100_000,
            in_flight_bytes_max: 64 * 1024 * 1024,
            wait_ms: 2_000,
            caller_commands_per_second_max: 0,
            callers_max: 10_000,
            overflow_commands_max: 10_000_000,
            overflow_batch_max: 500,
            sample_ms: 200,
            retry_after_max_s: 60,
            priority: LaneAdmission::default(),
            bulk: LaneAdmission::default(),
        }
    }
}

/// Who may call. Empty = nobody is asked, and only loopback is listened on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthSettings {
    /// File with one API key a line: `id sha256-hex scope,scope`.
    pub api_keys_file: Option<PathBuf>,
    /// JWKS document on disk; tokens signed by its keys are accepted.
    pub jwks_file: Option<PathBuf>,
    /// Required `iss` of a token.
    pub jwt_issuer: String,
    /// Required `aud` of a token.
    pub jwt_audience: String,
    /// Signature algorithms accepted.
    pub jwt_algorithms: Vec<String>,
}

/// The two listeners and their limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// API listener. Environment: `HTTP_LISTEN`.
    pub listen: SocketAddr,
    /// Health and metrics listener. Environment: `ADMIN_LISTEN`.
    pub admin_listen: SocketAddr,
    /// PEM certificate chain; with `tls_key_file` the API speaks TLS.
    pub tls_certificate_file: Option<PathBuf>,
    /// PEM private key.
    pub tls_key_file: Option<PathBuf>,
    /// Largest request body, bytes.
    pub body_bytes_max: usize,
    /// Connections to the API open at once, at most; fewer where the limit of open files is low. At the
    /// limit the one that has been quiet for longest makes room for a newcomer.
    pub connections_max: usize,
    /// Connections to the admin port open at once, at most; these are kept back for it.
    pub admin_connections_max: usize,
    /// Open files that neither port takes: they stay with Kafka, PostgreSQL and the program itself.
    pub descriptors_reserved: usize,
    /// A new connection has sent a whole request head within this, a TLS handshake included, and one in
    /// use that has begun the next, milliseconds.
    pub head_timeout_ms: u64,
    /// A connection without a request is closed after this, milliseconds. Longer than a balancer in front
    /// keeps idle connections.
    pub idle_timeout_ms: u64,
    /// A request's body has come whole within this, milliseconds.
    pub body_timeout_ms: u64,
    /// Names of this server that a request may be addressed to while nobody is asked who they are, beside
    /// `localhost` and loopback addresses.
    pub allowed_hosts: Vec<String>,
    /// Requests handled at once, at most.
    pub concurrent_requests_max: usize,
    /// A request is answered within this, milliseconds.
    pub request_timeout_ms: u64,
    /// Wait of a sync call that names none, milliseconds.
    pub sync_wait_ms: u64,
    /// Wait of a read for its consistency token, milliseconds, at most.
    pub consistency_wait_ms: u64,
    /// Calls that wait for their outcome at once, at most; those beyond are answered 202.
    pub sync_waiters_max: usize,
    /// Shortest wait between two looks for outcomes or checkpoints, milliseconds.
    pub poll_min_ms: u64,
    /// Longest wait between two looks, while somebody waits, milliseconds.
    pub poll_max_ms: u64,
    /// A command that Kafka has not acknowledged within this is answered 503, milliseconds.
    pub produce_wait_ms: u64,
    /// Wait of the command producer for a batch to fill, milliseconds.
    pub produce_linger_ms: u32,
    /// Open event streams, at most.
    pub event_streams_max: usize,
    /// An open event stream looks for changes this often, milliseconds.
    pub event_stream_poll_ms: u64,
    /// An event stream is ended after this, seconds; clients reconnect and go on.
    pub event_stream_seconds_max: u64,
    /// A loop (of any role) that does not beat for this long is hung, and `/livez` says so, milliseconds.
    /// Longer than any single wait of a loop: `database.statement_timeout_ms` and its like.
    pub heartbeat_silence_max_ms: u64,
    /// A loop that was ready stays so until it has failed for this long without a break, milliseconds: one
    /// failed try takes nobody out.
    pub unready_after_ms: u64,
    /// A partition whose claim is not granted for longer than this makes its process unready, milliseconds.
    pub claim_pending_max_ms: u64,
    /// From the signal on `/readyz` says no, and requests are answered for this long all the same, before
    /// connections are refused, milliseconds. Longer than what sends requests here takes to notice.
    pub shutdown_notice_ms: u64,
    /// Open requests get this long to finish then, milliseconds.
    pub shutdown_wait_ms: u64,
    /// An external Confluent-compatible registry; a password may stand in it. Environment: `SCHEMA_REGISTRY_URL`. Empty = our own.
    pub schema_registry_url: Secret,
    pub admission: AdmissionSettings,
    pub auth: AuthSettings,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            tls_certificate_file: None,
            tls_key_file: None,
            body_bytes_max: 256 * 1024,
            connections_max: 10_000,
            admin_connections_max: 256,
            descriptors_reserved: 768,
            head_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            body_timeout_ms: 10_000,
            allowed_hosts: Vec::new(),
            concurrent_requests_max: 1_024,
            request_timeout_ms: 30_000,
            sync_wait_ms: 5_000,
            consistency_wait_ms: 2_000,
            sync_waiters_max: 10_000,
            poll_min_ms: 2,
            poll_max_ms: 20,
            produce_wait_ms: 5_000,
            produce_linger_ms: 1,
            event_streams_max: 256,
            event_stream_poll_ms: 250,
            event_stream_seconds_max: 3_600,
            heartbeat_silence_max_ms: 60_000,
            unready_after_ms: 5_000,
            claim_pending_max_ms: 10_000,
            shutdown_notice_ms: 2_000,
            shutdown_wait_ms: 10_000,
            schema_registry_url: Secret::default(),
            admission: AdmissionSettings::default(),
            auth: AuthSettings::default(),
        }
    }
}
