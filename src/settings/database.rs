//! How to reach PostgreSQL.

use std::path::PathBuf;

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
    /// A statement of the loops, milliseconds, at most.
    pub statement_timeout_ms: u64,
    /// An idle open transaction (a paused process) is ended by the server after this, milliseconds.
    pub idle_in_transaction_timeout_ms: u64,
    /// Command outcomes are kept, and ids deduplicated, for this long, days.
    pub command_retention_days: u32,
    /// Width of one time partition of `commands`, days.
    pub command_partition_days: u32,
    /// Width of one time partition of `outbox`, minutes.
    pub outbox_partition_minutes: u32,
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
            statement_timeout_ms: 30_000,
            idle_in_transaction_timeout_ms: 5_000,
            command_retention_days: 30,
            command_partition_days: 10,
            outbox_partition_minutes: 30,
        }
    }
}
