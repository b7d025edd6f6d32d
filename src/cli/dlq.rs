//! `throughline dlq list|show|replay|skip|discard`: what could not be handled, events and commands alike.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::projection::{Consent, projectors};
use super::skip::{self, SkipArgs};
use super::{Output, Program, replay};
use crate::store::dead_letters::{self, Filter, Parked};
use crate::store::{DatabaseRole, connect};

/// Arguments of `dlq`.
#[derive(Debug, Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    verb: DlqVerb,
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum DlqVerb {
    /// Open dead letters, oldest first
    List {
        #[command(flatten)]
        which: Which,
        /// Closed ones too
        #[arg(long)]
        all: bool,
    },
    /// One dead letter, whole
    Show { id: i64 },
    /// Events: apply in order per key, through the projection. Commands: produce to their topic again
    Replay {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        consent: Consent,
    },
    /// Park the record that a partition stands at, with a reason, and let the partition go on
    Skip(SkipArgs),
    /// Close without handling them
    Discard {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// Of this consumer group only
    #[arg(long)]
    consumer: Option<String>,
    /// Of this key (a stream's id) only
    #[arg(long)]
    key: Option<String>,
    /// This one only; may be given several times. An event takes its whole key along when replayed
    #[arg(long)]
    id: Vec<i64>,
}

impl Which {
    fn filter(&self, all: bool) -> Filter {
        Filter {
            consumer: self.consumer.clone(),
            key: self.key.clone().map(String::into_bytes),
            ids: (!self.id.is_empty()).then(|| self.id.clone()),
            open_only: !all,
        }
    }
}

const COLUMNS: [&str; 9] = ["id", "kind", "consumer", "partition", "offset", "seq", "key", "status", "reason"];
/// Dead letters that one command looks at, at most.
const ROWS_MAX: i64 = 10_000;

/// Runs one verb.
pub async fn run(args: DlqArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    match args.verb {
        DlqVerb::List { which, all } => {
            let found = dead_letters::find(&client, &which.filter(all), ROWS_MAX).await?;
            args.output.print(&COLUMNS, &found.iter().map(brief).collect::<Vec<_>>());
            Ok(ExitCode::SUCCESS)
        }
        DlqVerb::Show { id } => {
            let filter = Filter { ids: Some(vec![id]), ..Filter::default() };
            let found = dead_letters::find(&client, &filter, 1).await?;
            let Some(one) = found.first() else { bail!("there is no dead letter {id}") };
            println!("{}", serde_json::to_string_pretty(&whole(one))?);
            Ok(ExitCode::SUCCESS)
        }
        DlqVerb::Replay { which, consent } => {
            let found = dead_letters::find(&client, &which.filter(false), ROWS_MAX).await?;
            if !consent.given(&format!("this replays {} dead letter(s)", found.len()))? {
                return Ok(ExitCode::FAILURE);
            }
            let open = all_open(&client, &which, &found).await?;
            let events = replay_events(args.output, &found, &consent, program).await?;
            let commands = replay::commands(&client, &found, consent.dry_run, program).await?;
            Ok(if open && events && commands { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        DlqVerb::Skip(skip_args) => skip::run(skip_args, program).await,
        DlqVerb::Discard { which, consent } => {
            let found = dead_letters::find(&client, &which.filter(false), ROWS_MAX).await?;
            args.output.print(&COLUMNS, &found.iter().map(brief).collect::<Vec<_>>());
            if consent.dry_run {
                return Ok(ExitCode::SUCCESS);
            }
            if !consent.given(&format!("this discards {} dead letter(s); they are never handled then", found.len()))? {
                return Ok(ExitCode::FAILURE);
            }
            let ids: Vec<i64> = found.iter().map(|one| one.id).collect();
            let closed = dead_letters::close(&client, &ids, "discarded").await?;
            eprintln!("{closed} discarded");
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn brief(one: &Parked) -> Value {
    json!({
        "id": one.id, "kind": one.letter.kind, "consumer": one.letter.consumer,
        "partition": one.letter.source_partition, "offset": one.letter.source_offset, "seq": one.letter.seq,
        "key": one.letter.key.as_deref().map(in_brief), "status": one.status,
        "reason": format!("{}: {}", one.letter.reason_code, one.letter.reason),
    })
}

/// A key for a table: a line of text, whatever it is.
fn in_brief(bytes: &[u8]) -> String {
    const CHARS_MAX: usize = 64;
    let shown = text(bytes).map_or_else(|| bytes.escape_ascii().to_string(), str::to_owned);
    match shown.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &shown[..end], bytes.len()),
        None => shown,
    }
}

/// Bytes that a terminal shows as they are.
fn text(bytes: &[u8]) -> Option<&str> {
    let is_plain = |char: char| !char.is_control() || ['\n', '\t'].contains(&char);
    std::str::from_utf8(bytes).ok().filter(|text| text.chars().all(is_plain))
}

/// Puts bytes into `json`: as text, or else in hex under another name.
fn put(json: &mut Value, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (text(bytes), bytes)) {
        None => json[name] = Value::Null,
        Some((Some(text), _)) => json[name] = text.into(),
        Some((None, bytes)) => {
            json[format!("{name}Hex")] = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        }
    }
}

fn whole(one: &Parked) -> Value {
    let mut json = brief(one);
    json["topic"] = one.letter.source_topic.as_str().into();
    json["topicId"] = one.letter.topic_id.clone().into();
    if let Some(fields) = json.as_object_mut() {
        fields.remove("key");
    }
    put(&mut json, "key", one.letter.key.as_deref());
    json["headers"] = one.letter.headers.as_ref().map_or(Value::Null, |headers| {
        let shown = headers.iter().map(|(name, value)| {
            let mut header = json!({});
            put(&mut header, "name", Some(name));
            put(&mut header, "value", value);
            header
        });
        shown.collect()
    });
    put(&mut json, "value", one.letter.value.as_deref());
    json["parkedAt"] = one.parked_at.to_string().into();
    json["closedAt"] = one.closed_at.map(|at| at.to_string()).into();
    json
}

/// Tells which letters were asked for by id and are not open. Whether all were.
async fn all_open(client: &tokio_postgres::Client, which: &Which, found: &[Parked]) -> anyhow::Result<bool> {
    let missing: Vec<i64> = which.id.iter().copied().filter(|id| found.iter().all(|one| one.id != *id)).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let asked = Filter { ids: Some(missing.clone()), ..Filter::default() };
    let closed = dead_letters::find(client, &asked, ROWS_MAX).await?;
    for id in missing {
        let reason = match closed.iter().find(|one| one.id == id) {
            None => "there is no such letter".to_owned(),
            Some(one) if one.status == "parked" => "it is not of the consumer or key asked for".to_owned(),
            Some(one) => format!("it is {} already", one.status),
        };
        eprintln!("dead letter {id} cannot be replayed: {reason}");
    }
    Ok(false)
}

/// Tells which of the events can never be replayed. Whether none is such.
fn all_events_of_the_relay(found: &[Parked], groups: &[String]) -> bool {
    let mut all = true;
    for one in found.iter().filter(|one| one.letter.kind == "event") {
        let reason = match &one.letter {
            letter if letter.instance.is_some() => {
                "it is a process manager's: `throughline process retry` handles it again"
            }
            letter if !groups.contains(&letter.consumer) => "no projection of this program has that consumer group",
            letter if letter.seq.is_none() => "the relay did not write it, so it is no event. Discard it",
            letter if letter.key.is_none() => "it has no key, so no event of a stream. Discard it",
            _ => continue,
        };
        eprintln!("dead letter {} cannot be replayed: {reason}", one.id);
        all = false;
    }
    all
}

/// Replays the parked events among `found`, with every open event of their keys. Whether all went well.
async fn replay_events(
    output: Output,
    found: &[Parked],
    consent: &Consent,
    program: &Program<'_>,
) -> anyhow::Result<bool> {
    let mut rows = Vec::new();
    let mut changes = Vec::new();
    let projectors = projectors(program).await?;
    let groups: Vec<String> = projectors.iter().map(|projector| projector.group().to_owned()).collect();
    let all_able = all_events_of_the_relay(found, &groups);
    for projector in projectors {
        let mut keys: Vec<Vec<u8>> = found
            .iter()
            .filter(|one| one.letter.kind == "event" && one.letter.consumer == projector.group())
            .filter(|one| one.letter.seq.is_some())
            .filter_map(|one| one.letter.key.clone())
            .collect();
        keys.sort();
        keys.dedup();
        if keys.is_empty() {
            continue;
        }
        for one in projector.replay(Some(&keys), consent.dry_run).await? {
            rows.push(json!({
                "projection": projector.name(), "key": one.key, "partition": one.partition, "events": one.seqs.len(),
                "result": match (&one.failure, consent.dry_run) {
                    (Some(reason), _) => format!("failed: {reason}"),
                    (None, true) => "would be applied".to_owned(),
                    (None, false) => "applied".to_owned(),
                },
                "failed": one.failure.is_some(),
            }));
            changes.extend(one.changes);
        }
    }
    if !rows.is_empty() {
        output.print(&["projection", "key", "partition", "events", "result"], &rows);
    }
    for change in changes {
        for (sign, row) in [("-", change.before), ("+", change.after)] {
            if let Some(row) = row {
                println!("{sign} {} {row}", change.table);
            }
        }
    }
    Ok(all_able && rows.iter().all(|row| row["failed"] == json!(false)))
}
