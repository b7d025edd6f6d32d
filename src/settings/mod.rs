//! Every setting, its default and its unit; one file a section. Read once, at start.
//!
//! Defaults < `throughline.toml` < environment < flags. Unknown keys are errors. Knows no other room.

mod audit;
mod database;
mod dev;
mod http;
mod kafka;
mod load;
mod log;
mod process;
mod processor;
mod projection;
mod ranges;
mod relay;
mod secret;
mod topics;

pub use audit::AuditSettings;
pub use database::DatabaseSettings;
pub use dev::{DevRunner, DevSettings};
pub use http::{AdmissionPolicy, AdmissionSettings, AuthSettings, HttpSettings, LaneAdmission};
pub use kafka::KafkaSettings;
pub use load::{LoadedSettings, SettingsError};
pub use log::{LogFormat, LogSettings};
pub use process::ProcessSettings;
pub use processor::{LostOffsets, ProcessorSettings};
pub use projection::{FailurePolicy, ProjectionSettings};
pub use relay::RelaySettings;
pub use secret::Secret;
pub use topics::TopicSettings;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// All settings. Section names are the `SECTION` of `THROUGHLINE__SECTION__KEY`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    pub kafka: KafkaSettings,
    pub database: DatabaseSettings,
    pub topics: TopicSettings,
    pub processor: ProcessorSettings,
    pub relay: RelaySettings,
    pub projection: ProjectionSettings,
    pub process: ProcessSettings,
    pub audit: AuditSettings,
    pub http: HttpSettings,
    pub dev: DevSettings,
    pub log: LogSettings,
    /// Sections of the program's own, of a context or a process manager, by name.
    #[serde(flatten)]
    pub own: BTreeMap<String, BTreeMap<String, String>>,
}

impl Settings {
    /// The program's own section `name`, with the defaults of `T` for what it leaves out.
    ///
    /// # Errors
    /// A key that `T` does not know, or a value of another type.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<T, SettingsError> {
        let invalid = |error: config::ConfigError| SettingsError::Value(format!("section {name}: {error}"));
        let mut builder = config::Config::builder();
        for (key, value) in self.own.get(name).into_iter().flatten() {
            builder = builder.set_override(key, value.as_str()).map_err(invalid)?;
        }
        builder.build().and_then(config::Config::try_deserialize).map_err(invalid)
    }
}
