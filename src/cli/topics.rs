//! `throughline topics apply|check`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{FOUND_FALSE, Output, Program};
use crate::app::install;
use crate::kafka::topics;

/// Arguments of `topics`.
#[derive(Debug, Args)]
pub struct TopicsArgs {
    #[command(subcommand)]
    verb: TopicsVerb,
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum TopicsVerb {
    /// Create what is missing, then check
    Apply,
    /// Hold partitions, replication and retention against the settings; exit code 3 on a mismatch. More
    /// partitions than wanted are told, and are none
    Check,
}

/// Applies or checks; prints one row a topic.
pub async fn run(args: TopicsArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let settings = program.settings;
    let mut specs = Vec::new();
    for context in program.all()? {
        // Before there is a store, the settings say what it will have.
        let stored = install::with_stored_partitions(context, settings).await;
        specs.extend(install::topic_specs(context, stored.as_ref().unwrap_or(settings)));
    }
    let created = match args.verb {
        TopicsVerb::Apply => topics::apply(&settings.kafka, &specs).await?,
        TopicsVerb::Check => Vec::new(),
    };
    let mismatches = topics::check(&settings.kafka, &specs).await?;
    let rows: Vec<_> = specs
        .iter()
        .map(|spec| {
            let problems: Vec<_> =
                mismatches.iter().filter(|m| m.topic == spec.name).map(|m| m.problem.as_str()).collect();
            let state = match (created.contains(&spec.name), problems.is_empty()) {
                (_, false) => problems.join("; "),
                (true, true) => "created".into(),
                (false, true) => "ok".into(),
            };
            serde_json::json!({"topic": spec.name, "partitions": spec.partitions, "replication": spec.replication, "state": state})
        })
        .collect();
    args.output.print(&["topic", "partitions", "replication", "state"], &rows);
    for mismatch in &mismatches {
        eprintln!("topic {} {}", mismatch.topic, mismatch.problem);
    }
    Ok(if mismatches.iter().all(|mismatch| mismatch.is_note) { ExitCode::SUCCESS } else { ExitCode::from(FOUND_FALSE) })
}
