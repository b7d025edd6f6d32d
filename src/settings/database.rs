//! How to reach PostgreSQL.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Secret;

/// The one database: store and read tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseSettings {
    /// `postgres://user:password@host:port/name?sslmode=…`. Environment: `DATABASE_URL`.
    pub url: Secret,
    /// PEM file with the authorities trusted for TLS; needed for `sslmode=require`.
    pub ca_file: Option<PathBuf>,
    /// Take the loop's own role with `SET ROLE` on each connection.
    pub set_role: bool,
    /// Let `run` create what is missing (schema, roles, topics, read tables) at start, as the login
    /// role. Switch off where that role may not; `run` then only checks.
    pub apply_at_start: bool,
    /// Connections of one pool, at most.
    pub pool_connections_max: usize,
    /// A wait for a pooled connection, milliseconds, at most.
    pub pool_wait_ms: u64,
    /// A start or a command waits this long for its connection, milliseconds, at most; loops, which try
    /// again for ever, wait `pool_wait_ms`.
    pub connect_wait_ms: u64,
    /// One address of a server has this long to take a session where others are left to try, milliseconds, at
    /// most; `connect_timeout` of the URL wins.
    pub connect_timeout_ms: u64,
    /// A statement of the loops, milliseconds, at most.
    pub statement_timeout_ms: u64,
    /// A round trip of the loops: without an answer for this long the network or the server has gone silent, and
    /// the connection is given up, milliseconds. Never less than a second above `statement_timeout_ms`.
    pub round_trip_timeout_ms: u64,
    /// An idle open transaction (a paused process) is ended by the server after this, milliseconds.
    pub idle_in_transaction_timeout_ms: u64,
    /// Command outcomes are kept, and ids deduplicated, for this long, days.
    pub command_retention_days: u32,
    /// Width of one time partition of `commands`, days.
    pub command_partition_days: u32,
    /// Width of one time partition of `outbox`, minutes.
    pub outbox_partition_minutes: u32,
}

/// What a statement that the server gives up needs to be told of.
const GRACE_MS: u64 = 1_000;

impl DatabaseSettings {
    /// How long a loop waits for the answer to one round trip.
    pub fn round_trip(&self) -> Duration {
        Duration::from_millis(self.round_trip_timeout_ms.max(self.statement_timeout_ms.saturating_add(GRACE_MS)))
    }
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            ca_file: None,
            set_role: true,
            apply_at_start: true,
            pool_connections_max: 8,
            pool_wait_ms: 5_000,
            connect_wait_ms: 20_000,
            connect_timeout_ms: 3_000,
            statement_timeout_ms: 8_000,
            round_trip_timeout_ms: 10_000,
            idle_in_transaction_timeout_ms: 5_000,
            command_retention_days: 30,
            command_partition_days: 10,
            outbox_partition_minutes: 30,
        }
    }
}
