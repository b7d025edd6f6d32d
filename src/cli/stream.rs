//! `throughline stream show`: every event of one stream and the state then, from the event store.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Output, Program, event_json, json_diff};
use crate::app::{Opened, install};
use crate::engine::destination_partition;
use crate::engine::ids::parse_id;
use crate::store::events::{self, StoredEvent};
use crate::store::{DatabaseRole, connect, destinations};

/// Arguments of `stream`.
#[derive(Debug, Args)]
pub struct StreamArgs {
    #[command(subcommand)]
    verb: StreamVerb,
}

#[derive(Debug, Subcommand)]
enum StreamVerb {
    /// Print every event of a stream, who caused it, and the state that they come to
    Show(ShowArgs),
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|error: jiff::Error| format!("{error}; a time is written as in 2026-03-31T14:05:00Z"))
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The id of the stream
    #[arg(value_name = "STREAM_ID", value_parser = parse_id)]
    id: Uuid,
    /// The state as of this version
    #[arg(long, value_name = "N", conflicts_with = "at_time")]
    at_version: Option<i64>,
    /// The state as of this time, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    at_time: Option<Timestamp>,
    /// What each event changed in the state
    #[arg(long)]
    diff: bool,
    /// table and json show the whole stream; ndjson one event a line, with the state after it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Shows one stream.
pub async fn run(args: StreamArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let StreamVerb::Show(args) = args.verb;
    let (context, settings) = (program.one()?, program.settings);
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let opened = context.open(&install::schema_ids(context, settings, &client).await?)?;
    let destination = destinations::find(&client, &context.names(&settings.topics).events()).await?;
    let partition = destination_partition(args.id, destination.partitions);
    let all = events::of_stream(&client, &destination, partition, args.id).await?;
    let shown = until(&all, &args)?;
    let steps = fold(opened.as_ref(), context.stream_id_field(), shown)?;
    let text = match args.output {
        Output::Table => text(&steps, args.diff),
        Output::Json => format!("{:#}\n", whole(&steps, context.stream_id_field(), &args)),
        Output::Ndjson => steps.iter().map(|step| format!("{}\n", step.line(args.diff))).collect(),
    };
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// The events up to the version or time asked for.
fn until<'a>(all: &'a [StoredEvent], args: &ShowArgs) -> anyhow::Result<&'a [StoredEvent]> {
    let Some(last) = all.last() else {
        bail!("no stream {}: the event store holds no event of it", args.id);
    };
    let kept = match (args.at_version, args.at_time) {
        (Some(version), _) if !(1..=last.version).contains(&version) => {
            bail!("stream {} has versions 1 to {}; there is no {version}", args.id, last.version);
        }
        (Some(version), _) => all.partition_point(|event| event.version <= version),
        (None, Some(time)) => all.iter().take_while(|event| event.recorded_at <= time).count(),
        (None, None) => all.len(),
    };
    match &all[..kept] {
        [] => bail!("stream {} had no event yet then; its first is of {}", args.id, all[0].recorded_at),
        kept => Ok(kept),
    }
}

/// One event, the state after it, and what it changed.
struct Step {
    event: Value,
    state: Value,
    changes: Vec<Value>,
}

impl Step {
    fn line(&self, diff: bool) -> Value {
        let mut row = self.event.clone();
        row["state"] = self.state.clone();
        if diff {
            row["changes"] = json!(self.changes);
        }
        row
    }
}

fn fold(opened: &dyn Opened, stream_id_field: &str, events: &[StoredEvent]) -> anyhow::Result<Vec<Step>> {
    let mut stream = opened.fold();
    let mut before = stream.state();
    let mut steps = Vec::new();
    for stored in events {
        let event = stream.evolve(&stored.payload).with_context(|| {
            format!("version {} (partition {}, seq {}) cannot be read", stored.version, stored.partition, stored.seq)
        })?;
        let state = stream.state();
        let changes = json_diff::differences(&before, &state);
        steps.push(Step { event: event_json::row(stored, stream_id_field, event), state: state.clone(), changes });
        before = state;
    }
    Ok(steps)
}

fn whole(steps: &[Step], stream_id_field: &str, args: &ShowArgs) -> Value {
    let events: Vec<Value> = steps
        .iter()
        .map(|step| {
            let mut event = step.event.clone();
            if args.diff {
                event["changes"] = json!(step.changes);
            }
            event
        })
        .collect();
    let last = steps.last();
    let mut whole = json!({
        "version": last.map(|step| &step.event["version"]),
        "events": events,
        "state": last.map(|step| &step.state),
    });
    whole[stream_id_field] = json!(args.id);
    whole
}

fn text(steps: &[Step], diff: bool) -> String {
    let mut text = String::new();
    let word = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
    for Step { event, changes, .. } in steps {
        text.push_str(&format!("{} {}  {}\n", event["version"], word(&event["type"]), word(&event["recordedAt"])));
        for (name, key) in [
            ("command", "commandId"),
            ("cause", "causationId"),
            ("correlation", "correlationId"),
            ("principal", "principal"),
        ] {
            text.push_str(&format!("    {name:<12} {}\n", word(&event[key])));
        }
        text.push_str(&format!("    {:<12} {}\n", "payload", event["payload"]));
        for change in changes.iter().filter(|_| diff) {
            text.push_str(&format!("    ~ {}: {} -> {}\n", word(&change["path"]), change["from"], change["to"]));
        }
    }
    if let Some(last) = steps.last() {
        text.push_str(&format!("state at version {}\n{:#}\n", last.event["version"], last.state));
    }
    text
}
