//! `throughline process list|show|pause|resume|reset|retry`.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use super::projection::Consent;
use super::{Output, Program};
use crate::app::install;
use crate::process::{OpenProcess, state};
use crate::store::{DatabaseRole, connect};

/// Arguments of `process`.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    #[command(subcommand)]
    verb: ProcessVerb,
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum ProcessVerb {
    /// State and lag of every process manager, what it waits for, and what is stuck
    List,
    /// One process manager, its partitions and stuck instances; or one instance, whole
    Show {
        name: String,
        /// The instance
        instance: Option<Uuid>,
    },
    /// Handle nothing, fire nothing, send nothing
    Pause { name: String },
    /// Go on; deadlines that were reached meanwhile fire late
    Resume { name: String },
    /// Make the state of each instance anew from its inputs, and read the topics again for what was never handled;
    /// nothing is sent twice
    Reset {
        name: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Handle again what is parked, in order, and deadlines that were put aside
    Retry { name: String },
}

/// Runs one verb.
pub async fn run(args: ProcessArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let output = args.output;
    match args.verb {
        ProcessVerb::List => list(output, program).await,
        ProcessVerb::Show { name, instance } => show(output, &name, instance, program).await,
        ProcessVerb::Pause { name } => pause(&name, true, program).await,
        ProcessVerb::Resume { name } => pause(&name, false, program).await,
        ProcessVerb::Reset { name, consent } => reset(output, &name, &consent, program).await,
        ProcessVerb::Retry { name } => retry(output, &name, program).await,
    }
}

async fn find(name: &str, program: &Program<'_>) -> anyhow::Result<Box<dyn OpenProcess>> {
    let mut processes = install::processes(program.app, program.settings).await?;
    match processes.iter().position(|one| one.name() == name) {
        Some(index) => Ok(processes.swap_remove(index)),
        None if processes.is_empty() => bail!("this program has no process manager"),
        None => {
            let names: Vec<_> = processes.iter().map(|one| one.name()).collect();
            bail!("no process is named `{name}`: choose one of {}", names.join(", "))
        }
    }
}

const COLUMNS: [&str; 8] = ["name", "state", "lagEvents", "instances", "deadlines", "unsent", "parked", "stuck"];

async fn list(output: Output, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    let mut rows = Vec::new();
    for process in install::processes(program.app, program.settings).await? {
        let status = process.status(&client).await?;
        rows.push(json!({
            "name": status.name, "state": status.state, "lagEvents": status.lag_events, "instances": status.instances,
            "deadlines": status.deadlines, "unsent": status.unsent, "parked": status.parked,
            "stuck": status.stuck.len(), "group": status.group,
        }));
    }
    output.print(&COLUMNS, &rows);
    Ok(ExitCode::SUCCESS)
}

async fn show(output: Output, name: &str, instance: Option<Uuid>, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    let process = find(name, program).await?;
    if let Some(id) = instance {
        let Some(view) = process.instance(&client, id).await? else { bail!("process {name} has no instance {id}") };
        println!("{}", serde_json::to_string_pretty(&view)?);
        return Ok(ExitCode::SUCCESS);
    }
    let status = process.status(&client).await?;
    for stuck in &status.stuck {
        eprintln!(
            "stuck: {stuck} (`throughline dlq list --consumer {}`; `throughline process retry {name}`)",
            status.group
        );
    }
    let rows: Vec<Value> = status.partitions.iter().map(|one| json!(one)).collect();
    output.print(&["topic", "partition", "nextOffset", "seq", "lagEvents"], &rows);
    Ok(ExitCode::SUCCESS)
}

async fn pause(name: &str, paused: bool, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let process = find(name, program).await?;
    let client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    let changed = state::set_paused(&client, process.name(), paused).await?;
    let word = if paused { "paused" } else { "running" };
    eprintln!("process {name} {} {word}", if changed { "is now" } else { "was already" });
    Ok(ExitCode::SUCCESS)
}

async fn reset(output: Output, name: &str, consent: &Consent, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let process = find(name, program).await?;
    let client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    let status = process.status(&client).await?;
    let what = format!(
        "this makes {} instance(s) of {name} anew from their inputs and reads {} partition(s) again",
        status.instances,
        status.partitions.len()
    );
    if consent.dry_run {
        eprintln!("{what}");
        return Ok(ExitCode::SUCCESS);
    }
    if !consent.given(&what)? {
        return Ok(ExitCode::FAILURE);
    }
    let report = process.reset().await?;
    output.print(&["instances", "partitions", "parked"], &[json!(report)]);
    for (instance, reason) in &report.failed {
        eprintln!("left as it was: {instance}: {reason}");
    }
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn retry(output: Output, name: &str, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let report = find(name, program).await?.retry().await?;
    output.print(&["handled", "failed", "behind", "deadlines"], &[json!(report)]);
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
