//! Development services: where they live.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The launcher of local Kafka and PostgreSQL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevSettings {
    /// Data, logs and process ids live here; one set of services a directory.
    pub directory: PathBuf,
    /// Fetched Kafka artifacts live here, shared by every set of services.
    pub kafka_cache: PathBuf,
}

impl Default for DevSettings {
    fn default() -> Self {
        Self { directory: "target/dev".into(), kafka_cache: "target/kafka".into() }
    }
}
