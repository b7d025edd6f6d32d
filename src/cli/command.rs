//! `throughline command send|status`: commands onto Kafka from a file, and what became of one.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{FOUND_FALSE, Output, Program};
use crate::app::Hosted;
use crate::engine::destination_partition;
use crate::engine::ids::parse_id;
use crate::kafka::client;
use crate::kafka::voice::Quiet;
use crate::settings::Settings;
use crate::store::{DatabaseRole, commands, connect, destinations};

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
    ///
    /// An id counts in one stream: used for several, it has an outcome in each.
    Status {
        #[arg(value_name = "COMMAND_ID", value_parser = parse_id)]
        id: Uuid,
        /// The outcome in this stream only, which its commands name
        #[arg(long, value_name = "STREAM_ID", value_parser = parse_id)]
        stream: Option<Uuid>,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Sends or asks.
pub async fn run(args: CommandArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let (context, settings) = (program.one()?, program.settings);
    match args.verb {
        CommandVerb::Send { file, lane } => send(&file, &lane, context, settings).await,
        CommandVerb::Status { id, stream, output } => status((id, stream), output, context, settings).await,
    }
}

async fn send(file: &str, lane: &str, context: &dyn Hosted, settings: &Settings) -> anyhow::Result<ExitCode> {
    let names = context.names(&settings.topics);
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
    // All of them first: a line that is none leaves nothing half sent behind.
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let commands: Vec<Addressed> = lines
        .map(|(number, line)| {
            addressed(line, context.stream_id_field()).with_context(|| format!("line {}; nothing was sent", number + 1))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut sent = Vec::new();
    for Addressed { stream, id, value } in commands {
        let record = FutureRecord::to(topic).key(&stream).payload(&value);
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

/// A command as it is sent.
struct Addressed {
    /// The key: the stream's id as the store writes it, however the line does, since the partition follows from its text.
    stream: String,
    id: String,
    value: String,
}

fn addressed(line: &str, stream_id_field: &str) -> anyhow::Result<Addressed> {
    let mut command: Value = serde_json::from_str(line).context("it is not JSON")?;
    if !command.is_object() {
        bail!("it is no JSON object");
    }
    if command["commandId"].is_null() {
        command["commandId"] = json!(Uuid::now_v7());
    }
    let id = |name: &str| {
        let text = command[name].as_str().with_context(|| format!("it has no {name} that is a text"))?;
        Ok::<_, anyhow::Error>(parse_id(text).with_context(|| format!("{name} is {text:?}"))?.to_string())
    };
    Ok(Addressed { stream: id(stream_id_field)?, id: id("commandId")?, value: command.to_string() })
}

async fn status(
    (id, stream): (Uuid, Option<Uuid>),
    output: Output,
    context: &dyn Hosted,
    settings: &Settings,
) -> anyhow::Result<ExitCode> {
    let client = connect::connect(&settings.database, &DatabaseRole::Reader).await?;
    let (events, stream_id) = (context.names(&settings.topics).events(), context.stream_id_field());
    let outcomes = match stream {
        Some(stream) => {
            let partition = destination_partition(stream, destinations::find(&client, &events).await?.partitions);
            commands::of_stream(&client, &events, partition, stream, id).await?.into_iter().collect()
        }
        None => commands::outcomes(&client, &events, &[id]).await?,
    };
    if outcomes.is_empty() {
        output.print(&["commandId", "status"], &[json!({"commandId": id, "status": "pending"})]);
        return Ok(ExitCode::from(FOUND_FALSE));
    }
    let rows: Vec<Value> = outcomes.iter().map(|outcome| outcome.to_json(stream_id)).collect();
    output.print(&["commandId", stream_id, "status", "code", "reason", "version", "decidedAt"], &rows);
    Ok(ExitCode::SUCCESS)
}
