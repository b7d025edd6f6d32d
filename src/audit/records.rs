//! Reading a stretch of a topic's partition, as it is: nothing is committed and no group is joined.
//!
//! Blocking; callers put it on a thread that may block. Knows no PostgreSQL.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::AuditError;
use crate::kafka::client::{self, Inquirer};
use crate::kafka::{KafkaError, Record, TopicPartition};
use crate::settings::KafkaSettings;

const POLL_WAIT: Duration = Duration::from_millis(100);
/// Of one stretch, at most.
const RECORDS_MAX: usize = 2_000;
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// A client for reading topics.
pub(super) fn client_of(settings: &KafkaSettings) -> Result<Shared, KafkaError> {
    let mut config = client::base(settings);
    config
        // The client insists on a group; with a manual assignment nothing joins it.
        .set("group.id", "throughline-audit")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("queued.max.messages.kbytes", settings.prefetch_kbytes_max.to_string());
    let config = client::pass_through(config, settings, |name| name != "group.id");
    Ok(Arc::new(Mutex::new(client::inquirer_of(&config)?)))
}

/// The first offset that a partition holds, and the one behind its last.
fn ends(consumer: &Inquirer, settings: &KafkaSettings, place: &TopicPartition) -> Result<(i64, i64), KafkaError> {
    let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
    consumer
        .fetch_watermarks(&place.topic, place.partition, wait)
        .map_err(|source| KafkaError::Request { step: "ask for the ends of a partition", source })
}

/// The offset of the first record of `time` or later; none where there is none.
fn since(
    consumer: &Inquirer,
    settings: &KafkaSettings,
    place: &TopicPartition,
    time: Timestamp,
) -> Result<Option<i64>, KafkaError> {
    let wait = Duration::from_millis(u64::from(settings.request_timeout_ms));
    let mut asked = TopicPartitionList::new();
    let found = asked
        .add_partition_offset(&place.topic, place.partition, Offset::Offset(time.as_millisecond()))
        .and_then(|()| consumer.offsets_for_times(asked, wait))
        .map_err(|source| KafkaError::Request { step: "ask for the offset of a time", source })?;
    let offset = found.elements().first().map(|element| element.offset());
    Ok(offset.and_then(|offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None }))
}

/// Where to begin.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    /// At this offset; at the first one, where the partition has it not, as after retention or in a topic made anew.
    Offset(i64),
    /// So many records before the end.
    Newest(i64),
    /// The first record of this time or later.
    Since(Timestamp),
}

/// Records that follow each other.
#[derive(Debug)]
pub(super) struct Stretch {
    pub records: Vec<Record>,
    /// The offset behind them.
    pub next_offset: i64,
    /// The first offset that the partition holds: 0 where nothing was removed yet.
    pub first_offset: i64,
    /// Behind the last record as of the beginning.
    pub end: i64,
}

/// A client that one stretch has at a time: whoever is not listened to any more may still be reading.
pub(super) type Shared = Arc<Mutex<Inquirer>>;

/// Reads a partition to its end as of now, on a thread that may block, some records ahead of whoever takes them.
pub(super) fn stretches(
    consumer: Shared,
    settings: &KafkaSettings,
    place: TopicPartition,
    from: From,
) -> mpsc::Receiver<Result<Stretch, AuditError>> {
    let (into, stretches) = mpsc::channel(1);
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || {
        let consumer = consumer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = read_all(&consumer, &settings, &place, from, &into) {
            // Whoever does not listen any more has no use for it.
            let _ = into.blocking_send(Err(error));
        }
        let _ = consumer.unassign();
    });
    stretches
}

/// How many records there are from there on, about.
pub(super) fn remaining(
    consumer: &Inquirer,
    settings: &KafkaSettings,
    place: &TopicPartition,
    from: From,
) -> Result<u64, KafkaError> {
    let (first_offset, end) = ends(consumer, settings, place)?;
    Ok((end - begin(consumer, settings, place, from, (first_offset, end))?).unsigned_abs())
}

/// The offset to begin at.
fn begin(
    consumer: &Inquirer,
    settings: &KafkaSettings,
    place: &TopicPartition,
    from: From,
    (first_offset, end): (i64, i64),
) -> Result<i64, KafkaError> {
    Ok(match from {
        From::Offset(offset) if (first_offset..=end).contains(&offset) => offset,
        From::Offset(_) => first_offset,
        From::Newest(records) => first_offset.max(end - records),
        From::Since(time) => since(consumer, settings, place, time)?.unwrap_or(end).clamp(first_offset, end),
    })
}

fn read_all(
    consumer: &Inquirer,
    settings: &KafkaSettings,
    place: &TopicPartition,
    from: From,
    into: &mpsc::Sender<Result<Stretch, AuditError>>,
) -> Result<(), AuditError> {
    let (first_offset, end) = ends(consumer, settings, place)?;
    let mut next = begin(consumer, settings, place, from, (first_offset, end))?;
    // Told also where there is none: how far the partition goes is an answer.
    let stretch = |records, next_offset| Ok(Stretch { records, next_offset, first_offset, end });
    if next == end {
        let _ = into.blocking_send(stretch(Vec::new(), next));
        return Ok(());
    }
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(&place.topic, place.partition, Offset::Offset(next))
        .and_then(|()| consumer.assign(&assignment))
        .map_err(|source| KafkaError::Request { step: "assign a partition to be audited", source })?;
    while next < end {
        let records = read(consumer, settings, place, &mut next, end)?;
        if into.blocking_send(stretch(records, next)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The next records before `end`, as many as a stretch holds.
fn read(
    consumer: &Inquirer,
    settings: &KafkaSettings,
    place: &TopicPartition,
    next: &mut i64,
    end: i64,
) -> Result<Vec<Record>, AuditError> {
    let (mut records, mut bytes, from) = (Vec::new(), 0, *next);
    let patience = Duration::from_millis(u64::from(settings.request_timeout_ms));
    let mut deadline = Instant::now() + patience;
    while records.len() < RECORDS_MAX && bytes < BYTES_MAX && *next < end {
        match consumer.poll(POLL_WAIT) {
            Some(Ok(message)) => {
                if message.topic() != &*place.topic || message.partition() != place.partition {
                    continue;
                }
                *next = message.offset() + 1;
                if message.offset() < end {
                    bytes += message.payload_len();
                    records.push(Record::detach(&message, place.topic.clone()));
                }
                deadline = Instant::now() + patience;
            }
            // What stands behind the last record is none, such as a transaction's marker.
            Some(Err(ClientError::PartitionEOF(ended))) if ended == place.partition => *next = end.max(*next),
            Some(Err(error)) if error.rdkafka_error_code().is_some_and(is_lasting) => {
                return Err(KafkaError::Request { step: "read a partition to be audited", source: error }.into());
            }
            // The client reconnects by itself.
            None | Some(Err(_)) if Instant::now() < deadline => {}
            None | Some(Err(_)) => {
                let (reached, wanted) = (records.len(), (end - from).unsigned_abs() as usize);
                return Err(AuditError::Silent { place: place.to_string(), from, reached, wanted });
            }
        }
    }
    Ok(records)
}

fn is_lasting(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
            | Code::AutoOffsetReset
            | Code::OffsetOutOfRange
    )
}
