//! `throughline dlq skip`: parks the one record that a partition stands at, and lets the partition go on.

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::Program;
use super::projection::{Consent, projectors};
use crate::kafka::{Peek, Record, TopicPartition, client, headers, topic_id};
use crate::projection::checkpoint::{self, Checkpoint};
use crate::store::{DatabaseRole, DeadLetter, connect};
use crate::{processor, projection};

/// Arguments of `dlq skip`.
#[derive(Debug, Args)]
pub(super) struct SkipArgs {
    /// The consumer group that stands: of a lane of the processor, or of a projection
    #[arg(long, value_name = "GROUP")]
    group: String,
    /// The record that it stands at
    #[arg(value_name = "TOPIC:PARTITION:OFFSET")]
    record: Place,
    /// Why; kept with the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Clone)]
struct Place {
    topic: String,
    partition: i32,
    offset: i64,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.rsplitn(3, ':');
            let offset = parts.next()?.parse().ok().filter(|offset| *offset >= 0)?;
            let partition = parts.next()?.parse().ok().filter(|partition| *partition >= 0)?;
            Some(Self { topic: parts.next().filter(|topic| !topic.is_empty())?.to_owned(), partition, offset })
        };
        parse().ok_or_else(|| "expected TOPIC:PARTITION:OFFSET, such as bank-commands:3:1200".to_owned())
    }
}

/// Who reads a topic in that group, and where it stands.
enum Reader {
    Processor { next_offset: i64, epoch: i64 },
    Projection { name: &'static str, held: Checkpoint },
}

impl Reader {
    fn next_offset(&self) -> i64 {
        match self {
            Self::Processor { next_offset, .. } => *next_offset,
            Self::Projection { held, .. } => held.next_offset,
        }
    }
}

pub(super) async fn run(args: SkipArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let SkipArgs { group, record: place, reason, consent } = args;
    if reason.trim().is_empty() {
        bail!("--reason says nothing; it is what people will read when they find the record");
    }
    let mut client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    let reader = reader(&client, program, &group, &place).await?;
    let (kafka, stands_at, wanted) = (program.settings.kafka.clone(), reader.next_offset(), place.clone());
    let (record, topic_id) = tokio::task::spawn_blocking(move || look(&kafka, &wanted, stands_at)).await??;
    if let Reader::Projection { held, .. } = &reader
        && let Some(seq) = headers::seq_of(&record).filter(|seq| *seq > held.seq + 1)
    {
        bail!(
            "its seq is {seq} and {} were applied: events before it are missing, and skipping it would miss them too. \
               `throughline projection reset` takes them from the store",
            held.seq
        );
    }
    let what = format!("this parks offset {} of {} and moves {group} behind it", place.offset, record.source);
    if !consent.given(&what)? {
        return Ok(ExitCode::FAILURE);
    }
    if consent.dry_run {
        println!("would park offset {} of {} and move {group} behind it", place.offset, record.source);
        return Ok(ExitCode::SUCCESS);
    }
    let letter = letter(&reader, &record, topic_id, group.clone(), format!("skipped by {}: {reason}", operator()));
    let skipped = match &reader {
        Reader::Processor { next_offset, epoch } => {
            processor::skip(&mut client, &record, (*next_offset, *epoch), letter).await?
        }
        Reader::Projection { name, held } => projection::skip(&mut client, name, &record, *held, letter).await?,
    };
    if !skipped {
        bail!(
            "{group} has moved meanwhile and does not stand at offset {} any more; nothing was changed",
            place.offset
        );
    }
    eprintln!("skipped; `throughline dlq list --consumer {group}` shows the record, and {group} goes on by itself");
    Ok(ExitCode::SUCCESS)
}

async fn reader(
    client: &tokio_postgres::Client,
    program: &Program<'_>,
    group: &str,
    place: &Place,
) -> anyhow::Result<Reader> {
    let Place { topic, partition, .. } = place;
    let never = || format!("{group} has never held partition {partition} of {topic}");
    let names: Vec<_> = program.all()?.iter().map(|context| context.names(&program.settings.topics)).collect();
    let mut lanes = names.iter().flat_map(|names| (0..names.lanes().len()).map(move |lane| (names, lane)));
    if let Some((names, lane)) = lanes.find(|(names, lane)| names.processor_group(*lane) == group) {
        if names.lanes()[lane] != *topic {
            bail!("{group} reads {}, not {topic}", names.lanes()[lane]);
        }
        let position = processor::position(client, group, topic, *partition).await?;
        let (next_offset, epoch) = position.with_context(never)?;
        return Ok(Reader::Processor { next_offset, epoch });
    }
    for projector in projectors(program).await? {
        if projector.group() == group {
            if projector.topic() != *topic {
                bail!("{group} reads {}, not {topic}", projector.topic());
            }
            let rows = checkpoint::load(client, projector.name(), projection::LIVE).await?;
            let held = rows.into_iter().find(|row| row.partition == *partition).with_context(never)?;
            return Ok(Reader::Projection { name: projector.name(), held });
        }
    }
    let known: Vec<String> = names.iter().map(|names| names.processor_group(1)).collect();
    bail!("no consumer group {group} is known: it is {} or that of another lane or projection", known.join(", "))
}

/// The record, if it is the one that a reader at `stands_at` meets next, and its topic's id.
fn look(
    settings: &crate::settings::KafkaSettings,
    place: &Place,
    stands_at: i64,
) -> anyhow::Result<(Record, Option<String>)> {
    let source = TopicPartition { topic: place.topic.as_str().into(), partition: place.partition };
    let peek = Peek::new(settings)?;
    let (first, _) = peek.watermarks(&source)?;
    if stands_at < first {
        bail!("{source} begins at {first} and the group stands at {stands_at}: it is no record that is in the way");
    }
    match peek.first_from(&source, stands_at)? {
        Some(record) if record.offset == place.offset => {
            let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
            let admin: rdkafka::consumer::BaseConsumer =
                client::pass_through(client::base(settings), settings, |_| true).create()?;
            let id = topic_id::topic_id(rdkafka::consumer::Consumer::client(&admin), &place.topic, wait)?;
            Ok((record, id))
        }
        Some(record) => bail!(
            "only the record that is in the way can be skipped: the group stands at {stands_at}, and the next record of \
             {source} is at offset {}, not {}",
            record.offset,
            place.offset
        ),
        None => bail!("the group stands at {stands_at}, and no record of {source} stands there or behind it"),
    }
}

fn letter(reader: &Reader, record: &Record, topic_id: Option<String>, consumer: String, reason: String) -> DeadLetter {
    DeadLetter {
        kind: if matches!(reader, Reader::Projection { .. }) { "event" } else { "command" },
        consumer,
        source_topic: record.source.topic.to_string(),
        topic_id,
        source_partition: record.source.partition,
        source_offset: Some(record.offset),
        seq: None,
        key: record.key.clone(),
        headers: record.headers().map(|headers| headers.iter().collect()),
        value: record.value.clone(),
        reason_code: "SKIPPED".to_owned(),
        reason,
        command: None,
        instance: None,
    }
}

/// Who asks, for the record.
fn operator() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    let user = user.unwrap_or_else(|_| nix::unistd::getuid().to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_from_its_end() {
        let place: Place = "staging.bank-commands:3:1200".parse().expect("a place");
        assert_eq!((place.topic.as_str(), place.partition, place.offset), ("staging.bank-commands", 3, 1_200));
        for wrong in ["", "t:1", ":1:2", "t:x:2", "t:1:-2", "t:-1:2"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
