//! `throughline dlq replay` of commands: the very record that came goes to its topic again, once.
//!
//! A permit is written before the record is produced; by it the processor knows the record and decides the
//! command anew. Killed anywhere, it is run again: a record that was produced under a permit is found on the
//! topic and not produced a second time.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio_postgres::Client;

use super::Program;
use crate::kafka::{Peek, Record, RecordHeaders, TopicPartition, client};
use crate::settings::Settings;
use crate::store::StoreError;
use crate::store::dead_letters::{self, Parked};

const DELIVERY_WAIT: Duration = Duration::from_secs(30);

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

/// Sends the commands among `found` again. Whether all could be.
pub(super) async fn commands(
    client: &Client,
    found: &[Parked],
    dry_run: bool,
    program: &Program<'_>,
) -> anyhow::Result<bool> {
    let settings = program.settings;
    let overflow: Vec<String> =
        program.all()?.iter().map(|context| context.names(&settings.topics).overflow_group()).collect();
    let commands: Vec<&Parked> = found.iter().filter(|one| one.letter.kind == "command").collect();
    if commands.is_empty() {
        return Ok(true);
    }
    let delivered: Arc<Mutex<Vec<i64>>> = Arc::default();
    let producer: ThreadedProducer<Deliveries> = client::producer(&settings.kafka, 5)
        .create_with_context(Deliveries { ids: delivered.clone() })
        .context("cannot make a producer")?;
    let partitions = partitions(&producer, settings)?;
    let (able, unable): (Vec<&Parked>, Vec<&Parked>) =
        commands.iter().copied().partition(|one: &&Parked| obstacle(one, &partitions).is_none());
    for one in &unable {
        eprintln!("dead letter {} cannot be replayed: {}", one.id, obstacle(one, &partitions).unwrap_or_default());
    }
    if dry_run {
        for one in &able {
            println!("would produce dead letter {} to {}", one.id, one.letter.source_topic);
        }
        return Ok(unable.is_empty());
    }
    one_at_a_time(client).await?;
    let mut done: Vec<i64> = Vec::new();
    let mut sent = HashSet::new();
    for one in &able {
        // Whether a record is there is asked by what it holds, from the end that its permit found: one of another
        // letter that holds the same must be in front of that end.
        if !sent.insert((&one.letter.source_topic, one.letter.source_partition, &one.letter.key, &one.letter.value)) {
            producer.flush(DELIVERY_WAIT).context("Kafka did not take a command in time; run it again")?;
        }
        // From overflow it goes on to a lane, and was never decided: it needs no permit.
        if !overflow.contains(&one.letter.consumer) && is_there_already(client, one, settings).await? {
            done.push(one.id);
        } else {
            produce(&producer, one)?;
        }
    }
    let flushed = producer.flush(DELIVERY_WAIT);
    done.append(&mut delivered.lock().unwrap_or_else(PoisonError::into_inner));
    dead_letters::close(client, &done, "replayed").await?;
    eprintln!("{} of {} command(s) produced again", done.len(), commands.len());
    flushed.context("Kafka did not take every command in time; those that it did not take stay open")?;
    Ok(done.len() == commands.len())
}

/// Partitions of each topic.
fn partitions(producer: &ThreadedProducer<Deliveries>, settings: &Settings) -> anyhow::Result<HashMap<String, i32>> {
    let wait = Duration::from_millis(u64::from(settings.kafka.request_timeout_ms));
    let metadata = producer.client().fetch_metadata(None, wait).context("cannot read which topics there are")?;
    Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect())
}

/// Why a letter cannot be replayed.
fn obstacle(one: &Parked, partitions: &HashMap<String, i32>) -> Option<String> {
    let letter = &one.letter;
    if letter.headers.is_none() {
        return Some("its headers could not be read when it came, so the record cannot be made again".into());
    }
    match partitions.get(&letter.source_topic) {
        Some(count) if letter.source_partition < *count => None,
        Some(count) => Some(format!(
            "it came from partition {}, and topic {} has {count} now",
            letter.source_partition, letter.source_topic
        )),
        None => Some(format!("there is no topic {} any more", letter.source_topic)),
    }
}

/// Two runs could each find the other's record missing.
async fn one_at_a_time(client: &Client) -> anyhow::Result<()> {
    let statement = "select pg_try_advisory_lock(hashtextextended('throughline dlq replay', 0))";
    let row = client.query_one(statement, &[]).await.map_err(StoreError::at("take the lock of replays"))?;
    if !row.get::<_, bool>(0) {
        bail!("another replay is running; wait for it to end");
    }
    Ok(())
}

/// Writes the permit of a letter; whether an earlier run that had one has produced the record.
async fn is_there_already(client: &Client, one: &Parked, settings: &Settings) -> anyhow::Result<bool> {
    let letter = &one.letter;
    let source = TopicPartition { topic: letter.source_topic.as_str().into(), partition: letter.source_partition };
    let (kafka, place) = (settings.kafka.clone(), source.clone());
    let (first, end) = tokio::task::spawn_blocking(move || Peek::new(&kafka)?.watermarks(&place)).await??;
    let permit = "insert into throughline.replays (letter, from_offset) values ($1, $2) on conflict do nothing";
    let written = client.execute(permit, &[&one.id, &end]).await.map_err(StoreError::at("permit a replay"))?;
    crate::crash_point!("dlq.after_permit");
    if written == 1 {
        return Ok(false);
    }
    let from = "select from_offset from throughline.replays where letter = $1";
    let Some(row) = client.query_opt(from, &[&one.id]).await.map_err(StoreError::at("look for a permit"))? else {
        // Used up this moment: it is decided.
        return Ok(true);
    };
    let (kafka, from, wanted) = (settings.kafka.clone(), row.get::<_, i64>(0).max(first), record_of(one));
    Ok(tokio::task::spawn_blocking(move || is_on_the_topic(&kafka, &wanted, from)).await??)
}

fn is_on_the_topic(
    settings: &crate::settings::KafkaSettings,
    wanted: &Record,
    from: i64,
) -> Result<bool, crate::kafka::KafkaError> {
    let mut found = false;
    Peek::new(settings)?.visit(&wanted.source, from, |record| {
        found = record.key == wanted.key && record.value == wanted.value && record.headers() == wanted.headers();
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

/// The record that the letter keeps.
fn record_of(one: &Parked) -> Record {
    let letter = &one.letter;
    let source = TopicPartition { topic: letter.source_topic.as_str().into(), partition: letter.source_partition };
    let headers = letter.headers.as_ref().map(|kept| {
        let mut headers = RecordHeaders::default();
        kept.iter().for_each(|(name, value)| headers.push(name, value));
        headers
    });
    Record::new(source, letter.source_offset.unwrap_or_default(), letter.key.clone(), letter.value.clone())
        .with_headers(headers)
}

fn produce(producer: &ThreadedProducer<Deliveries>, one: &Parked) -> anyhow::Result<()> {
    let kept = record_of(one);
    let headers = kept.headers().map(RecordHeaders::to_native).unwrap_or_default();
    let mut record: BaseRecord<'_, [u8], [u8], Box<i64>> =
        BaseRecord::with_opaque_to(&kept.source.topic, Box::new(one.id))
            .partition(kept.source.partition)
            .headers(headers);
    record.key = kept.key.as_deref();
    record.payload = kept.value.as_deref();
    producer
        .send(record)
        .map_err(|(error, _)| error)
        .with_context(|| format!("cannot produce dead letter {}", one.id))?;
    crate::crash_point!("dlq.after_produce");
    Ok(())
}
