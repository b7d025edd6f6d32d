//! `throughline command send|status`: commands onto Kafka from a file, and what became of one.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{FOUND_FALSE, Output};
use crate::app::install;
use crate::kafka::client;
use crate::kafka::voice::Quiet;
use crate::settings::Settings;
use crate::store::{DatabaseRole, commands, connect};

/// Arguments of `command`.
#[derive(Debug, Args)]
pub struct CommandArgs {
    #[command(subcommand)]
    verb: CommandVerb,
}

#[derive(Debug, Subcommand)]
enum CommandVerb {
    /// Send commands, one JSON object a line; prints one command id a line
    Send {
        /// A file, or - for standard input
        #[arg(default_value = "-")]
        file: String,
        /// priority, normal or bulk
        #[arg(long, default_value = "normal")]
        lane: String,
    },
    /// What became of a command; exit code 3 when it is not decided (yet)
    Status {
        id: Uuid,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Sends or asks.
pub async fn run(args: CommandArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    match args.verb {
        CommandVerb::Send { file, lane } => send(&file, &lane, settings).await,
        CommandVerb::Status { id, output } => status(id, output, settings).await,
    }
}

async fn send(file: &str, lane: &str, settings: &Settings) -> anyhow::Result<ExitCode> {
    let names = install::orders_topics(settings);
    let lane = ["priority", "normal", "bulk"]
        .iter()
        .position(|name| *name == lane)
        .with_context(|| format!("no lane is named `{lane}`: choose priority, normal or bulk"))?;
    let topic = &names.lanes()[lane];
    let mut text = String::new();
    match file {
        "-" => std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?,
        path => std::fs::File::open(path)
            .and_then(|mut file| file.read_to_string(&mut text))
            .with_context(|| format!("cannot read {path}"))?,
    };
    let producer: FutureProducer<Quiet> = client::producer(&settings.kafka, 5).create_with_context(Quiet)?;
    let wait = Duration::from_millis(u64::from(settings.kafka.request_timeout_ms));
    let mut sent = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut command: Value =
            serde_json::from_str(line).with_context(|| format!("line {} is not JSON", number + 1))?;
        let Some(order) = command["orderId"].as_str().map(str::to_owned) else {
            bail!("line {} has no orderId; nothing after it was sent", number + 1);
        };
        if command["commandId"].is_null() {
            command["commandId"] = json!(Uuid::now_v7());
        }
        let id = command["commandId"].as_str().unwrap_or_default().to_owned();
        let value = command.to_string();
        let record = FutureRecord::to(topic).key(&order).payload(&value);
        sent.push((id, producer.send_result(record).map_err(|(error, _)| error).context("cannot send")?));
    }
    for (id, delivery) in sent {
        tokio::time::timeout(wait, delivery)
            .await
            .context("Kafka did not acknowledge in time")??
            .map_err(|(error, _)| error)
            .with_context(|| format!("command {id} was not acknowledged; send it again with the same id"))?;
        println!("{id}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(id: Uuid, output: Output, settings: &Settings) -> anyhow::Result<ExitCode> {
    let client = connect::connect(&settings.database, &DatabaseRole::Reader).await?;
    let outcomes = commands::outcomes(&client, &[id]).await?;
    let Some(outcome) = outcomes.first() else {
        output.print(&["commandId", "status"], &[json!({"commandId": id, "status": "pending"})]);
        return Ok(ExitCode::from(FOUND_FALSE));
    };
    let row = outcome.to_json();
    output.print(&["commandId", "orderId", "status", "code", "reason", "version", "decidedAt"], &[row]);
    Ok(ExitCode::SUCCESS)
}
