//! What Kafka knows: which brokers answer, which topics are whole, and what waits on the commands topics.
//!
//! Each question has a bound; what is not answered within it is told as such.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::Subject;
use super::store::Place;
use crate::kafka::client;
use crate::kafka::client::Inquirer;
use crate::kafka::ends;
use crate::settings::KafkaSettings;

/// The first question: does anybody answer.
const METADATA_WAIT: Duration = Duration::from_millis(2_500);
/// Each broker has this long to answer by itself.
const BROKER_WAIT: Duration = Duration::from_millis(2_000);
/// The ends of the commands topics have this long.
const ENDS_WAIT: Duration = Duration::from_millis(1_500);
/// What is moved out of overflow is known within this, or it is not told what waits there.
const MOVED_WAIT: Duration = Duration::from_millis(1_000);
/// The oldest waiting records are read for this long.
const OLDEST_WAIT: Duration = Duration::from_millis(1_500);
/// Brokers asked one by one, at most.
const BROKERS_MAX: usize = 64;

/// Kafka's part of the answer.
#[derive(Debug, Clone, Default)]
pub struct KafkaView {
    /// Why nobody answers.
    pub away: Option<String>,
    /// Brokers that do not answer, by address, with the reason.
    pub silent: BTreeMap<String, String>,
    pub missing_topics: Vec<String>,
    /// Partitions without a leader.
    pub leaderless: Vec<Place>,
    /// Why it is not known what waits.
    pub unknown: Option<String>,
    /// Records that wait, by partition of the commands topics and of overflow.
    pub waiting: HashMap<Place, WaitingRecords>,
}

/// Records of one partition behind the processor's offset, or behind the drainer's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WaitingRecords {
    pub records: i64,
    pub oldest_seconds: Option<f64>,
}

/// Asks the cluster, and then each broker.
pub(super) async fn look(subject: &Subject) -> KafkaView {
    let (settings, topics) = (subject.settings.kafka.clone(), topics(subject));
    let (view, brokers) = blocking(move || cluster(&settings, &topics))
        .await
        .unwrap_or_else(|reason| (KafkaView { away: Some(reason), ..KafkaView::default() }, BTreeSet::new()));
    if view.away.is_some() {
        return view;
    }
    let asked = brokers.into_iter().take(BROKERS_MAX).map(|broker| {
        let (settings, events) = (subject.settings.kafka.clone(), subject.contexts.first().map(|names| names.events()));
        async move {
            let address = broker.clone();
            let answer = blocking(move || ask_broker(&settings, &address, events.as_deref())).await;
            (broker, answer.and_then(|answer| answer).err())
        }
    });
    let answers = futures_util::future::join_all(asked).await;
    let silent = answers.into_iter().filter_map(|(broker, reason)| Some((broker, reason?))).collect();
    KafkaView { silent, ..view }
}

/// What waits behind `next`, the processors' offsets, and in overflow; unknown without them.
pub(super) async fn count_waiting(
    subject: &Subject,
    mut view: KafkaView,
    next: Option<HashMap<Place, i64>>,
) -> KafkaView {
    let Some(next) = next.filter(|_| view.away.is_none()) else { return view };
    let (settings, partitions) = (subject.settings.kafka.clone(), subject.settings.topics.command_partitions);
    let known = |topic: &String| !view.missing_topics.contains(topic);
    let mut topics: Vec<String> = subject.contexts.iter().flat_map(|names| names.lanes()).filter(known).collect();
    let overflow = subject.contexts.iter().map(|names| (names.overflow(), names.overflow_group()));
    let overflow: Vec<(String, String)> = overflow.filter(|(topic, _)| known(topic)).collect();
    let count = move || {
        let mut next = next;
        for (topic, group) in overflow {
            match moved(&settings, &topic, &group, partitions) {
                Ok(moved) => next.extend(moved),
                Err(error) => {
                    tracing::debug!(%error, topic, "it is not known what was moved out of overflow");
                    continue;
                }
            }
            topics.push(topic);
        }
        waiting(&settings, &topics, partitions, &next)
    };
    match blocking(count).await.and_then(|found| found) {
        Ok(waiting) => view.waiting = waiting,
        Err(reason) => view.unknown = Some(reason),
    }
    view
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let late = |_| Err("no answer in time".to_owned());
    let bound = METADATA_WAIT.max(MOVED_WAIT + ENDS_WAIT + OLDEST_WAIT) + Duration::from_millis(500);
    let done = tokio::time::timeout(bound, tokio::task::spawn_blocking(work)).await;
    done.map_or_else(late, |done| done.map_err(|error| error.to_string()))
}

fn topics(subject: &Subject) -> BTreeSet<String> {
    let of = |names: &crate::kafka::topics::TopicNames| {
        names.lanes().into_iter().chain([names.overflow(), names.events(), names.results()])
    };
    subject.contexts.iter().flat_map(of).collect()
}

fn cluster(settings: &KafkaSettings, topics: &BTreeSet<String>) -> (KafkaView, BTreeSet<String>) {
    let mut brokers: BTreeSet<String> = settings.brokers.split(',').map(|broker| broker.trim().to_owned()).collect();
    let asked = client::inquirer(settings).map_err(|error| error.to_string());
    // All topics: asking for one by name could create it.
    let asked = asked.and_then(|client| client.fetch_metadata(None, METADATA_WAIT).map_err(|error| error.to_string()));
    let metadata = match asked {
        Ok(metadata) => metadata,
        Err(reason) => return (KafkaView { away: Some(reason), ..KafkaView::default() }, brokers),
    };
    brokers.extend(metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())));
    let mut view = KafkaView::default();
    for topic in topics {
        match metadata.topics().iter().find(|found| found.name() == topic && !found.partitions().is_empty()) {
            None => view.missing_topics.push(topic.clone()),
            Some(found) => view
                .leaderless
                .extend(found.partitions().iter().filter(|one| one.leader() < 0).map(|one| (topic.clone(), one.id()))),
        }
    }
    (view, brokers)
}

/// A client that knows this broker only: its first answer must come from there.
fn ask_broker(settings: &KafkaSettings, broker: &str, topic: Option<&str>) -> Result<(), String> {
    let mut config = client::pass_through(client::base(settings), settings, |_| true);
    config.set("bootstrap.servers", broker);
    let client = client::inquirer_of(&config).map_err(|error| error.to_string())?;
    client.fetch_metadata(topic, BROKER_WAIT).map(drop).map_err(|error| error.to_string())
}

/// How far each partition of overflow is moved to the lanes; missing where nothing was so far. Joins no group.
fn moved(
    settings: &KafkaSettings,
    topic: &str,
    group: &str,
    partitions: i32,
) -> Result<HashMap<Place, i64>, ClientError> {
    let client = client::inquirer_of(&client::consumer(settings, group, ""))
        .map_err(|error| ClientError::ClientCreation(error.to_string()))?;
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let committed = client.committed_offsets(list, MOVED_WAIT)?;
    let known = committed.elements();
    let known = known.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some(((element.topic().to_owned(), element.partition()), offset)),
        _ => None,
    });
    Ok(known.collect())
}

fn waiting(
    settings: &KafkaSettings,
    lanes: &[String],
    partitions: i32,
    next: &HashMap<Place, i64>,
) -> Result<HashMap<Place, WaitingRecords>, String> {
    let mut config = client::consumer(settings, "throughline-status", "");
    config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
    let client = client::inquirer_of(&config).map_err(|error| error.to_string())?;
    let ends =
        |which| ends::offsets(&client, lanes, partitions, which, ENDS_WAIT / 2).map_err(|error| error.to_string());
    let first = ends(Offset::Beginning)?;
    let mut open = HashMap::new();
    let mut waiting = HashMap::new();
    for (place, end) in ends(Offset::End)? {
        let first = first.get(&place).copied().unwrap_or(0);
        let from = next.get(&place).copied().unwrap_or(first).max(first);
        waiting.insert(place.clone(), WaitingRecords { records: (end - from).max(0), oldest_seconds: None });
        if end > from {
            open.insert(place, (from, end));
        }
    }
    read_oldest(&client, lanes, open, &mut waiting)
        .map_err(|error| format!("read the oldest waiting commands: {error}"))?;
    Ok(waiting)
}

/// The first record of each open partition tells since when it waits. What stands before it is no record: a
/// transaction's marker, or what was aborted. One topic at a time, since the event at an end names none.
fn read_oldest(
    client: &Inquirer,
    lanes: &[String],
    mut open: HashMap<Place, (i64, i64)>,
    waiting: &mut HashMap<Place, WaitingRecords>,
) -> Result<(), ClientError> {
    let now = Timestamp::now().as_millisecond();
    let begun = Instant::now();
    for topic in lanes {
        let mut list = TopicPartitionList::new();
        for ((_, partition), (from, _)) in open.iter().filter(|((of, _), _)| of == topic) {
            list.add_partition_offset(topic, *partition, Offset::Offset(*from))?;
        }
        let mut left = list.count();
        if left == 0 {
            continue;
        }
        client.assign(&list)?;
        while left > 0 && begun.elapsed() < OLDEST_WAIT {
            let (partition, first) = match client.poll(Duration::from_millis(50)) {
                Some(Ok(record)) => (record.partition(), Some((record.offset(), record.timestamp().to_millis()))),
                Some(Err(ClientError::PartitionEOF(partition))) => (partition, None),
                Some(Err(error)) => {
                    tracing::debug!(%error, "reading what waits");
                    continue;
                }
                None => continue,
            };
            let place = (topic.clone(), partition);
            let Some((_, end)) = open.remove(&place) else { continue };
            left -= 1;
            let found = match first {
                Some((offset, at)) => WaitingRecords {
                    records: end - offset,
                    oldest_seconds: at.map(|at| (now - at).max(0) as f64 / 1_000.0),
                },
                None => WaitingRecords { records: 0, oldest_seconds: None },
            };
            waiting.insert(place, found);
        }
    }
    Ok(())
}
