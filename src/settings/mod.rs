//! Every setting, its default and its unit; one file a section. Read once, at start.
//!
//! Defaults < `throughline.toml` < environment < flags. Unknown keys are errors. Knows no other room.

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

use serde::{Deserialize, Serialize};

/// All settings. Section names are the `SECTION` of `THROUGHLINE__SECTION__KEY`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub kafka: KafkaSettings,
    pub database: DatabaseSettings,
    pub topics: TopicSettings,
    pub processor: ProcessorSettings,
    pub relay: RelaySettings,
    pub projection: ProjectionSettings,
    pub process: ProcessSettings,
    pub http: HttpSettings,
    pub dev: DevSettings,
    pub log: LogSettings,
}
