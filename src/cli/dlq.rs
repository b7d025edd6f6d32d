//! `throughline dlq list|show|replay|discard`: what could not be handled, events and commands alike.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rdkafka::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use serde_json::{Value, json};

use super::projection::{Consent, projectors};
use super::{FOUND_FALSE, Output};
use crate::kafka::client;
use crate::projection;
use crate::settings::Settings;
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
    /// Of this key (an order id) only
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
const DELIVERY_WAIT: Duration = Duration::from_secs(30);

/// Runs one verb.
pub async fn run(args: DlqArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
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
            let events = replay_events(args.output, &found, &consent, settings).await?;
            let commands = replay_commands(&client, &found, &consent, settings).await?;
            Ok(if events && commands { ExitCode::SUCCESS } else { ExitCode::from(FOUND_FALSE) })
        }
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
        "key": one.letter.key.as_deref().map(String::from_utf8_lossy), "status": one.status,
        "reason": format!("{}: {}", one.letter.reason_code, one.letter.reason),
    })
}

fn whole(one: &Parked) -> Value {
    let mut json = brief(one);
    json["topic"] = one.letter.source_topic.as_str().into();
    json["headers"] = one.letter.headers.clone();
    json["parkedAt"] = one.parked_at.to_string().into();
    json["closedAt"] = one.closed_at.map(|at| at.to_string()).into();
    match one.letter.value.as_deref() {
        None => json["value"] = Value::Null,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => json["value"] = text.into(),
            _ => json["valueHex"] = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
        },
    }
    json
}

/// Replays the parked events among `found`, with every open event of their keys. Whether all went well.
async fn replay_events(
    output: Output,
    found: &[Parked],
    consent: &Consent,
    settings: &Settings,
) -> anyhow::Result<bool> {
    let mut rows = Vec::new();
    let mut changes = Vec::new();
    for projector in projectors(settings).await? {
        let mut keys: Vec<Vec<u8>> = found
            .iter()
            .filter(|one| one.letter.kind == "event" && one.letter.consumer == projector.group)
            .filter_map(|one| one.letter.key.clone())
            .collect();
        keys.sort();
        keys.dedup();
        if keys.is_empty() {
            continue;
        }
        for one in projection::replay(&projector, Some(&keys), consent.dry_run).await? {
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
    Ok(rows.iter().all(|row| row["failed"] == json!(false)))
}

/// Produces dead commands to their topic again; the processor meets them as any other.
async fn replay_commands(
    client: &tokio_postgres::Client,
    found: &[Parked],
    consent: &Consent,
    settings: &Settings,
) -> anyhow::Result<bool> {
    let commands: Vec<&Parked> = found.iter().filter(|one| one.letter.kind == "command").collect();
    if commands.is_empty() {
        return Ok(true);
    }
    if consent.dry_run {
        for one in &commands {
            println!("would produce dead letter {} to {}", one.id, one.letter.source_topic);
        }
        return Ok(true);
    }
    let delivered: Arc<Mutex<Vec<i64>>> = Arc::default();
    let producer: ThreadedProducer<Deliveries> = client::producer(&settings.kafka, 5)
        .create_with_context(Deliveries { ids: delivered.clone() })
        .context("cannot make a producer")?;
    for one in &commands {
        let mut record: BaseRecord<'_, [u8], [u8], Box<i64>> =
            BaseRecord::with_opaque_to(&one.letter.source_topic, Box::new(one.id));
        if let Some(key) = &one.letter.key {
            record = record.key(key);
        }
        if let Some(value) = &one.letter.value {
            record = record.payload(value);
        }
        let mut headers = OwnedHeaders::new();
        for (name, value) in one.letter.headers.as_object().into_iter().flatten() {
            headers = headers.insert(Header { key: name, value: value.as_str() });
        }
        producer
            .send(record.headers(headers))
            .map_err(|(error, _)| error)
            .with_context(|| format!("cannot produce dead letter {}", one.id))?;
    }
    let flushed = producer.flush(DELIVERY_WAIT);
    let ids = std::mem::take(&mut *delivered.lock().unwrap_or_else(PoisonError::into_inner));
    let closed = dead_letters::close(client, &ids, "replayed").await?;
    eprintln!("{closed} of {} command(s) produced again", commands.len());
    flushed.context("Kafka did not take every command in time; those that it did not take stay open")?;
    Ok(ids.len() == commands.len())
}

/// Collects the ids of the dead letters that Kafka acknowledged.
struct Deliveries {
    ids: Arc<Mutex<Vec<i64>>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<i64>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Box<i64>) {
        match result {
            Ok(_) => self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(*id),
            Err((error, _)) => eprintln!("dead letter {id} was not taken: {error}"),
        }
    }
}
