//! Defaults < file < environment < flags, with every mistake named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Config, File, FileFormat};

use super::{Settings, ranges};

/// The plain names of the everyday settings, and the keys they stand for.
const PLAIN_NAMES: [(&str, &str); 5] = [
    ("KAFKA_BROKERS", "kafka.brokers"),
    ("DATABASE_URL", "database.url"),
    ("HTTP_LISTEN", "http.listen"),
    ("ADMIN_LISTEN", "http.admin_listen"),
    ("SCHEMA_REGISTRY_URL", "http.schema_registry_url"),
];
const PREFIX: &str = "THROUGHLINE__";
const FILE: &str = "throughline.toml";

/// Settings with the origin of each key that is not a default.
#[derive(Debug, Clone)]
pub struct LoadedSettings {
    pub settings: Settings,
    /// Dotted key to where its value came from.
    pub origins: BTreeMap<String, String>,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file named, or found, cannot be read or parsed.
    #[error("settings file {path}: {reason}; `throughline config show` prints every key")]
    File { path: PathBuf, reason: String },
    /// A `…_FILE` variable names a file that cannot be read.
    #[error("{name} names {path}, which cannot be read: {source}")]
    SecretFile { name: String, path: PathBuf, source: std::io::Error },
    /// A flag is not `key=value`.
    #[error("--set takes section.key=value, not `{0}`")]
    Flag(String),
    /// A key is unknown or a value has the wrong type.
    #[error("settings: {0}; `throughline config show` prints every key with its value and origin")]
    Value(String),
    /// A number that would stop or break what it bounds.
    #[error(
        "settings: {key} = {value} cannot be used, it takes {least} to {most}; `throughline config show` prints every key \
         with its value and origin"
    )]
    Range { key: &'static str, value: String, least: i64, most: i64 },
}

impl LoadedSettings {
    /// Loads from `file` (or `throughline.toml` where there is one), this process's environment and
    /// `flags` of the form `section.key=value`.
    pub fn load(file: Option<&Path>, flags: &[String]) -> Result<Self, SettingsError> {
        Self::load_from(file, std::env::vars().collect(), flags, &[])
    }

    /// As [`LoadedSettings::load`], for a program with sections of its own.
    pub fn load_for(file: Option<&Path>, flags: &[String], own: &[String]) -> Result<Self, SettingsError> {
        Self::load_from(file, std::env::vars().collect(), flags, own)
    }

    /// As [`LoadedSettings::load`], with an explicit environment.
    pub fn load_from(
        file: Option<&Path>,
        environment: BTreeMap<String, String>,
        flags: &[String],
        own: &[String],
    ) -> Result<Self, SettingsError> {
        let mut overrides: Vec<(String, String, String)> = Vec::new();
        for (key, value, origin) in environment_overrides(&environment)? {
            overrides.push((key, value, origin));
        }
        for flag in flags {
            let (key, value) = flag.split_once('=').ok_or_else(|| SettingsError::Flag(flag.clone()))?;
            overrides.push((key.to_owned(), value.to_owned(), "flag".to_owned()));
        }

        let mut builder = Config::builder();
        let mut origins = BTreeMap::new();
        if let Some(path) = file.map(Path::to_owned).or_else(|| Some(PathBuf::from(FILE)).filter(|path| path.exists()))
        {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| SettingsError::File { path: path.clone(), reason: error.to_string() })?;
            // Built once alone, so that a mistake names the file and its keys can be listed.
            let from_file = Config::builder()
                .add_source(File::from_str(&text, FileFormat::Toml))
                .build()
                .map_err(|error| SettingsError::File { path: path.clone(), reason: error.to_string() })?;
            let table = from_file.cache.clone().into_table().unwrap_or_default();
            collect_keys("", table, &mut |key| {
                origins.insert(key, path.display().to_string());
            });
            builder = builder.add_source(from_file);
        }
        let mut librdkafka = Vec::new();
        for (key, value, origin) in overrides {
            origins.insert(key.clone(), origin);
            match key.strip_prefix("kafka.librdkafka.") {
                // Option names hold dots, which the builder would take for nesting.
                Some(option) => librdkafka.push((option.to_owned(), value)),
                None if ["lane_weights", "jwt_algorithms", "allowed_hosts"].iter().any(|list| key.ends_with(list)) => {
                    let list: Vec<String> = value.split(',').map(|item| item.trim().to_owned()).collect();
                    builder = builder.set_override(&key, list).map_err(invalid)?;
                }
                None => builder = builder.set_override(&key, value).map_err(invalid)?,
            }
        }
        let mut settings: Settings = builder.build().map_err(invalid)?.try_deserialize().map_err(invalid)?;
        settings.kafka.librdkafka.extend(librdkafka);
        if let Some(unknown) = settings.own.keys().find(|name| !own.contains(name)) {
            return Err(SettingsError::Value(format!("unknown section `{unknown}`")));
        }
        ranges::check(&settings)?;
        Ok(Self { settings, origins })
    }
}

/// The overrides that the environment holds: (dotted key, value, name of the variable).
fn environment_overrides(
    environment: &BTreeMap<String, String>,
) -> Result<Vec<(String, String, String)>, SettingsError> {
    let mut found = Vec::new();
    for (name, value) in environment {
        let (bare, from_file) = match name.strip_suffix("_FILE") {
            // Keys that end in `_file` themselves are paths, not secrets in files.
            Some(bare) if !is_path_key(name) => (bare, true),
            _ => (name.as_str(), false),
        };
        let key = match PLAIN_NAMES.iter().find(|(plain, _)| *plain == bare) {
            Some((_, key)) => (*key).to_owned(),
            None => match bare.strip_prefix(PREFIX) {
                Some(rest) => dotted_key(rest),
                None => continue,
            },
        };
        let value = if from_file {
            std::fs::read_to_string(value)
                .map_err(|source| SettingsError::SecretFile { name: name.clone(), path: value.into(), source })?
                .trim_end()
                .to_owned()
        } else {
            value.clone()
        };
        found.push((key, value, name.clone()));
    }
    Ok(found)
}

fn is_path_key(name: &str) -> bool {
    ["__CA_FILE", "__API_KEYS_FILE", "__JWKS_FILE", "__TLS_CERTIFICATE_FILE", "__TLS_KEY_FILE"]
        .iter()
        .any(|path| name.ends_with(path))
}

fn dotted_key(rest: &str) -> String {
    let key = rest.to_lowercase().replace("__", ".");
    match key.strip_prefix("kafka.librdkafka.") {
        Some(option) => format!("kafka.librdkafka.{}", option.replace('_', ".")),
        None => key,
    }
}

fn collect_keys(prefix: &str, table: config::Map<String, config::Value>, each: &mut impl FnMut(String)) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value.clone().into_table() {
            Ok(inner) => collect_keys(&key, inner, each),
            Err(_) => each(key),
        }
    }
}

fn invalid(error: config::ConfigError) -> SettingsError {
    SettingsError::Value(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(environment: &[(&str, &str)], flags: &[&str]) -> Result<LoadedSettings, SettingsError> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
        LoadedSettings::load_from(None, environment, &flags, &["bank".to_owned()])
    }

    #[test]
    fn defaults_hold_without_any_source() {
        assert_eq!(load(&[], &[]).unwrap().settings, Settings::default());
    }

    #[test]
    fn flags_win_over_the_environment_and_origins_are_kept() {
        let loaded = load(
            &[
                ("KAFKA_BROKERS", "a:1"),
                ("THROUGHLINE__PROCESSOR__WORKERS", "3"),
                ("THROUGHLINE__RELAY__LEASE_MS", "700"),
            ],
            &["kafka.brokers=b:2"],
        )
        .unwrap();
        assert_eq!(loaded.settings.kafka.brokers, "b:2");
        assert_eq!(loaded.settings.processor.workers, 3);
        assert_eq!(loaded.settings.relay.lease_ms, 700);
        assert_eq!(loaded.origins["kafka.brokers"], "flag");
        assert_eq!(loaded.origins["relay.lease_ms"], "THROUGHLINE__RELAY__LEASE_MS");
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_key() {
        let error = load(&[("THROUGHLINE__RELAY__LEESE_MS", "7")], &[]).unwrap_err().to_string();
        assert!(error.contains("leese_ms"), "{error}");
        let error = load(&[], &["no.such=1"]).unwrap_err().to_string();
        assert!(error.contains("unknown section `no`"), "{error}");
        assert!(load(&[], &["processor.workers=many"]).is_err());
    }

    #[test]
    fn a_program_has_sections_of_its_own() {
        #[derive(Debug, Default, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Bank {
            patience_ms: u64,
        }
        let settings = load(&[("THROUGHLINE__BANK__PATIENCE_MS", "7")], &[]).unwrap().settings;
        assert_eq!(settings.section::<Bank>("bank").unwrap(), Bank { patience_ms: 7 });
        assert_eq!(Settings::default().section::<Bank>("bank").unwrap(), Bank::default());
        for wrong in ["bank.patience_ms=long", "bank.patients_ms=7"] {
            let error = load(&[], &[wrong]).unwrap().settings.section::<Bank>("bank").unwrap_err().to_string();
            assert!(error.contains("section bank"), "{error}");
        }
    }

    #[test]
    fn numbers_that_would_stop_a_loop_are_refused_by_name() {
        for (flag, allowed) in [
            ("relay.batch_rows_max=0", "1 to 1000000000"),
            ("relay.batch_rows_max=-4", "1 to"),
            ("relay.in_flight_bytes_max=0", "1000 to"),
            ("relay.in_flight_max=0", "1 to"),
            ("relay.lease_ms=1", "500 to"),
            ("database.outbox_partition_minutes=0", "1 to"),
            ("topics.replication=-1", "1 to"),
            ("http.request_timeout_ms=18446744073709551615", "600 to"),
        ] {
            let error = load(&[], &[flag]).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, SettingsError::Range { .. }), "{said}");
            assert!(said.contains(&flag.replace('=', " = ")) && said.contains(allowed), "{said}");
        }
        load(&[], &["http.shutdown_notice_ms=0", "http.admission.sample_ms=0", "relay.lease_ms=1500"]).unwrap();
    }

    #[test]
    fn any_librdkafka_option_passes_through() {
        let loaded = load(&[("THROUGHLINE__KAFKA__LIBRDKAFKA__SECURITY_PROTOCOL", "ssl")], &[]).unwrap();
        assert_eq!(loaded.settings.kafka.librdkafka["security.protocol"], "ssl");
    }

    #[test]
    fn secrets_are_never_printed() {
        let loaded = load(
            &[
                ("DATABASE_URL", "postgres://u:canary@h/db"),
                ("THROUGHLINE__KAFKA__LIBRDKAFKA__SASL_PASSWORD", "canary"),
            ],
            &[],
        )
        .unwrap();
        assert!(loaded.settings.database.url.expose().contains("canary"));
        assert!(!format!("{:?}", loaded.settings.database).contains("canary"));
        assert!(!serde_json::to_string(&loaded.settings).unwrap().contains("canary"));
    }
}
