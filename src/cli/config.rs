//! `throughline config show`: every setting, its value (secrets redacted) and its origin.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Output;
use crate::settings::LoadedSettings;

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print every setting with its origin
    Show {
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Prints one row a setting.
pub fn run(args: ConfigArgs, loaded: &LoadedSettings) -> anyhow::Result<ExitCode> {
    let ConfigVerb::Show { output } = args.verb;
    let mut rows = Vec::new();
    flatten("", &serde_json::to_value(&loaded.settings)?, &mut |key, value| {
        let origin = loaded.origins.get(key).map_or("default", String::as_str);
        rows.push(json!({"key": key, "value": value, "origin": origin}));
    });
    output.print(&["key", "value", "origin"], &rows);
    Ok(ExitCode::SUCCESS)
}

fn flatten(prefix: &str, value: &Value, each: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, value, each);
            }
        }
        other => each(prefix, other),
    }
}
