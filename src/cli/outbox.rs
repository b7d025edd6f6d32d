//! `throughline outbox status`: what is committed and not yet published. PostgreSQL is authoritative.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use super::Output;
use crate::relay::status;
use crate::settings::Settings;
use crate::store::{DatabaseRole, connect};

/// Arguments of `outbox`.
#[derive(Debug, Args)]
pub struct OutboxArgs {
    #[command(subcommand)]
    verb: OutboxVerb,
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum OutboxVerb {
    /// One row a destination partition: depth, age of the oldest row, watermark, owner, and why it stopped
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Measure records published a second over this many milliseconds; 0 leaves it out
    #[arg(long, value_name = "MS", default_value_t = 500)]
    sample: u64,
    /// Only partitions with something to publish, or stopped
    #[arg(long)]
    pending: bool,
}

/// Prints the state. Why a partition stopped goes to stderr too, since a table cuts no text short.
pub async fn run(args: OutboxArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let OutboxVerb::Status(status_args) = args.verb;
    let client = connect::connect(&settings.database, &DatabaseRole::Relay).await?;
    let mut before = HashMap::new();
    let started = Instant::now();
    if status_args.sample > 0 {
        for partition in status::read(&client).await? {
            before.insert((partition.topic, partition.partition), partition.published);
        }
        tokio::time::sleep(Duration::from_millis(status_args.sample)).await;
    }
    let partitions = status::read(&client).await?;
    let seconds = started.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    for partition in partitions {
        if status_args.pending && partition.depth == 0 && partition.halted.is_none() {
            continue;
        }
        let earlier = before.get(&(partition.topic.clone(), partition.partition));
        let rate = earlier.map(|earlier| ((partition.published - earlier) as f64 / seconds).round());
        if let (Some(reason), Output::Table) = (&partition.halted, args.output) {
            eprintln!("{}/{} has stopped: {reason}", partition.topic, partition.partition);
        }
        let mut row = serde_json::to_value(&partition)?;
        row["oldestAgeSeconds"] = json!(partition.oldest_age_seconds.map(|age| (age * 1_000.0).round() / 1_000.0));
        row["ratePerSecond"] = json!(rate);
        row["state"] = json!(match (&partition.halted, &partition.owner) {
            (Some(_), _) => "halted",
            (None, Some(_)) => "publishing",
            (None, None) => "unowned",
        });
        rows.push(row);
    }
    let mut columns =
        vec!["topic", "partition", "depth", "oldestAgeSeconds", "published", "lastSeq", "state", "owner", "epoch"];
    if status_args.sample > 0 {
        columns.push("ratePerSecond");
    }
    args.output.print(&columns, &rows);
    Ok(ExitCode::SUCCESS)
}
