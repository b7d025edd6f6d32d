//! Development services: where they live and how long they may take.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What runs Kafka and PostgreSQL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DevRunner {
    /// Docker Compose where an engine answers, else local processes.
    #[default]
    Auto,
    /// Processes of this machine: Java and PostgreSQL installed here.
    Local,
    /// Containers.
    Compose,
}

/// The launcher of local Kafka and PostgreSQL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevSettings {
    /// Data, logs and process ids live here; one set of services a directory. A relative path begins at the nearest
    /// folder above with a `Cargo.lock`, where there is one.
    pub directory: PathBuf,
    /// Fetched Kafka artifacts live here, shared by every set of services.
    pub kafka_cache: PathBuf,
    /// What runs the services.
    pub runner: DevRunner,
    /// Brokers of the local Kafka; the first is also the controller. Containers have one.
    pub kafka_brokers: u16,
    /// Heap of each of them, mebibytes.
    pub kafka_heap_mib: u32,
    /// Both services answer within this, milliseconds; fetching Kafka the first time is not counted.
    pub start_timeout_ms: u64,
    /// A service ends by itself within this after being asked to, milliseconds; then it is killed.
    pub stop_timeout_ms: u64,
    /// Fetching and preparing Kafka, or another launcher doing so, takes at most this, milliseconds.
    pub fetch_timeout_ms: u64,
}

impl Default for DevSettings {
    fn default() -> Self {
        Self {
            directory: "target/dev".into(),
            kafka_cache: "target/kafka".into(),
            runner: DevRunner::Auto,
            kafka_brokers: 1,
            kafka_heap_mib: 512,
            start_timeout_ms: 60_000,
            stop_timeout_ms: 15_000,
            fetch_timeout_ms: 600_000,
        }
    }
}
