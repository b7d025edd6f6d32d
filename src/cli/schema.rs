//! `throughline schema list|show|check|diff|asyncapi`: the event schemas that this program carries,
//! and those that the database knows. The files are authoritative on shapes, the database on ids.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{FOUND_FALSE, Output, Program, WrongUsage};
use crate::app::asyncapi;
use crate::avro::registry::{self, RegisteredSchema};
use crate::avro::{Catalogue, CataloguedSchema, Schemas, fields, lock};
use crate::settings::Settings;
use crate::store::{DatabaseRole, connect};

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    #[command(subcommand)]
    verb: SchemaVerb,
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum SchemaVerb {
    /// Every type and version, with its id where the database gave one
    List,
    /// Print one definition; the newest version when none is named
    Show {
        /// As `schema list` names it
        #[arg(value_name = "TYPE")]
        event_type: String,
        /// Such as 2; the newest when none is named
        // Not `version`: clap keeps that name for its flag.
        #[arg(value_name = "VERSION", value_parser = clap::value_parser!(i16).range(1..))]
        wanted: Option<i16>,
    },
    /// Lock file, compatibility of every version with every older one, upcasters; exit code 3 when one fails
    Check,
    /// Fields that changed between two versions; with --database, this program's schemas against the
    /// database's (exit code 3 when they differ)
    Diff {
        /// A type; all types when none is named
        #[arg(value_name = "TYPE")]
        event_type: Option<String>,
        /// Older version; the one before TO when none is named
        #[arg(value_name = "FROM", value_parser = clap::value_parser!(i16).range(1..), conflicts_with = "database")]
        from: Option<i16>,
        /// Newer version; the newest when none is named
        #[arg(value_name = "TO", value_parser = clap::value_parser!(i16).range(1..), conflicts_with = "database")]
        to: Option<i16>,
        /// Compare this program with the database instead of two versions
        #[arg(long)]
        database: bool,
    },
    /// Print the AsyncAPI 3 document of all topics
    Asyncapi,
}

/// Lists, shows, checks or compares.
pub async fn run(args: SchemaArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let (context, settings) = (program.one()?, program.settings);
    let catalogue = context.catalogue(&settings.topics)?;
    match args.verb {
        SchemaVerb::List => list(&catalogue, args.output, settings).await,
        SchemaVerb::Show { event_type, wanted } => show(&catalogue, &event_type, wanted, args.output),
        SchemaVerb::Check => Ok(check(&catalogue, context.schemas(), args.output)),
        SchemaVerb::Diff { event_type, database: true, .. } => {
            diff_database(&catalogue, event_type.as_deref(), args.output, settings).await
        }
        SchemaVerb::Diff { event_type, from, to, .. } => {
            diff_versions(&catalogue, event_type.as_deref(), from, to, args.output)
        }
        SchemaVerb::Asyncapi => {
            print(&format!("{:#}\n", asyncapi::document(program.app.name(), context, settings)?));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print(text: &str) {
    // A reader that went away is no failure.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

type Registered = BTreeMap<(String, i32), RegisteredSchema>;

async fn registered(catalogue: &Catalogue, settings: &Settings) -> anyhow::Result<Registered> {
    let client = connect::connect(&settings.database, &DatabaseRole::Reader).await?;
    let rows = registry::of_context(&client, catalogue).await.context("cannot read throughline.schemas")?;
    Ok(rows.into_iter().map(|one| ((one.event_type.clone(), one.version), one)).collect())
}

async fn list(catalogue: &Catalogue, output: Output, settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut registered = registered(catalogue, settings).await.unwrap_or_else(|error| {
        eprintln!("without ids: {}", super::told(&error));
        Registered::new()
    });
    let mut rows = Vec::new();
    for one in catalogue.schemas() {
        let known = registered.remove(&(one.event_type.clone(), i32::from(one.version)));
        let newest = catalogue.newest(&one.event_type).is_some_and(|newest| newest.version == one.version);
        rows.push(json!({
            "type": one.event_type, "version": one.version, "id": known.map(|known| known.id),
            "state": if newest { "written" } else { "read" },
            "subject": catalogue.subject(&one.event_type), "fingerprint": one.fingerprint,
        }));
    }
    for one in registered.into_values() {
        rows.push(json!({
            "type": one.event_type, "version": one.version, "id": one.id, "state": "unknown to this program",
            "subject": catalogue.subject(&one.event_type), "fingerprint": one.fingerprint,
        }));
    }
    output.print(&["type", "version", "id", "state", "subject"], &rows);
    Ok(ExitCode::SUCCESS)
}

fn one<'a>(catalogue: &'a Catalogue, event_type: &str, version: Option<i16>) -> anyhow::Result<&'a CataloguedSchema> {
    let Some(newest) = catalogue.newest(event_type) else {
        let types: Vec<_> = catalogue.newest_of_each().map(|one| one.event_type.as_str()).collect();
        bail!("no event type is named `{event_type}`: choose one of {}", types.join(", "));
    };
    let version = version.unwrap_or(newest.version);
    catalogue
        .schema(event_type, version)
        .with_context(|| format!("{event_type} has versions 1 to {}; there is no {version}", newest.version))
}

fn show(catalogue: &Catalogue, event_type: &str, version: Option<i16>, output: Output) -> anyhow::Result<ExitCode> {
    let schema = one(catalogue, event_type, version)?;
    let definition: Value = serde_json::from_str(&schema.definition)?;
    print(&match output {
        Output::Table => format!("{}\n", schema.definition.trim_end()),
        Output::Json => format!("{definition:#}\n"),
        Output::Ndjson => format!("{definition}\n"),
    });
    Ok(ExitCode::SUCCESS)
}

fn check(catalogue: &Catalogue, ours: &Schemas, output: Output) -> ExitCode {
    let problems = lock::check(catalogue, &(ours.upcasters)(), ours.lock);
    let rows: Vec<_> = problems.iter().map(|problem| json!({"problem": problem.to_string()})).collect();
    match (rows.is_empty(), output) {
        (true, Output::Table) => print(&format!(
            "{} schemas of {} types: locked, compatible, and every version has a path to the newest\n",
            catalogue.schemas().len(),
            catalogue.newest_of_each().count()
        )),
        _ => output.print(&["problem"], &rows),
    }
    if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_FALSE) }
}

fn diff_versions(
    catalogue: &Catalogue,
    event_type: Option<&str>,
    from: Option<i16>,
    to: Option<i16>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    let mut compare = |from: &CataloguedSchema, to: &CataloguedSchema| {
        for change in fields::changes(&from.definition, &to.definition) {
            rows.push(json!({
                "type": to.event_type, "versions": format!("{} -> {}", from.version, to.version),
                "field": change.field, "change": change.change, "from": change.from, "to": change.to,
            }));
        }
    };
    match event_type {
        Some(event_type) => {
            let to = one(catalogue, event_type, to)?;
            let from = match from {
                Some(same) if same == to.version => {
                    return Err(WrongUsage(format!("version {same} of {event_type} is compared with itself")).into());
                }
                None if to.version == 1 => bail!("{event_type} has version 1 only: there is none to compare it with"),
                from => one(catalogue, event_type, from.or(Some(to.version - 1)))?,
            };
            compare(from, to);
        }
        None => {
            for newest in catalogue.newest_of_each().filter(|newest| newest.version > 1) {
                compare(one(catalogue, &newest.event_type, Some(newest.version - 1))?, newest);
            }
        }
    }
    output.print(&["type", "versions", "field", "change", "from", "to"], &rows);
    Ok(ExitCode::SUCCESS)
}

async fn diff_database(
    catalogue: &Catalogue,
    event_type: Option<&str>,
    output: Output,
    settings: &Settings,
) -> anyhow::Result<ExitCode> {
    let mut registered = registered(catalogue, settings).await?;
    let wanted = |name: &str| event_type.is_none_or(|event_type| event_type == name);
    if let Some(event_type) = event_type {
        one(catalogue, event_type, None)?;
    }
    let mut rows = Vec::new();
    let mut row = |event_type: &str, version: i32, state: &str| {
        rows.push(json!({"type": event_type, "version": version, "state": state}));
    };
    for one in catalogue.schemas().iter().filter(|one| wanted(&one.event_type)) {
        let version = i32::from(one.version);
        match registered.remove(&(one.event_type.clone(), version)) {
            None => row(&one.event_type, version, "not registered: run `throughline db apply`"),
            Some(known) if known.fingerprint != one.fingerprint => {
                let changed = fields::changes(&known.definition, &one.definition);
                let names: Vec<_> = changed.iter().map(|change| change.field.as_str()).collect();
                row(&one.event_type, version, &format!("differs in {}", names.join(", ")));
            }
            Some(_) => {}
        }
    }
    for known in registered.into_values().filter(|known| wanted(&known.event_type)) {
        row(&known.event_type, known.version, "unknown to this program: run a newer one");
    }
    match (rows.is_empty(), output) {
        (true, Output::Table) => print("the database knows the same schemas\n"),
        _ => output.print(&["type", "version", "state"], &rows),
    }
    Ok(if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_FALSE) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::avro::Published;

    #[test]
    fn a_version_is_not_compared_with_itself() {
        let definition = r#"{"type":"record","name":"Happened","namespace":"test","fields":[]}"#;
        let first = Published { event_type: "Happened", version: 1, definition };
        let catalogue = Catalogue::new("test-events", "test", &[first]).unwrap();
        let diff = |from| diff_versions(&catalogue, Some("Happened"), from, None, Output::Json).unwrap_err();
        assert!(diff(None).to_string().contains("has version 1 only") && !diff(None).is::<WrongUsage>());
        assert!(diff(Some(1)).is::<WrongUsage>());
    }
}
