//! The last sequence number that a Kafka partition holds.
//!
//! Read before the first record is produced under a lease, or by a new producer: what Kafka has is
//! not produced again. Blocking; knows no PostgreSQL and no lease. Kafka is authoritative here for
//! what was published, never for what exists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::kafka::client::Inquirer;
use crate::kafka::watermarks::{self, BrokerId, Leaders};
use crate::kafka::{KafkaError, Record, TopicPartition, client, headers};
use crate::settings::KafkaSettings;

/// What the end of a partition says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing was ever written to this partition.
    Untouched,
    /// Everything that was written has been removed by retention: it says nothing. The next record
    /// goes to the offset `next`.
    Expired { next: i64 },
    /// The highest sequence number near the end, and where it stands. Without holes the offset of
    /// `seq` is at least `seq - 1`; each repetition before it adds one.
    At { seq: i64, offset: i64 },
    /// The last `records` records carry no sequence number of ours: somebody else writes here.
    Foreign { records: i64 },
}

/// One partition to look at.
#[derive(Debug, Clone)]
pub struct TailRequest {
    pub target: TopicPartition,
    /// What the caller knows to be published. A last record below it is looked behind: requests of
    /// an earlier producer may have landed late, after newer records.
    pub published: i64,
    /// Records to look back through, at most, when the last one does not settle it.
    pub look_back: i64,
}

const POLL_WAIT: Duration = Duration::from_millis(20);

/// A client for looking at ends.
///
/// # Errors
/// Kafka's settings do not fit.
pub fn client_of(settings: &KafkaSettings) -> Result<Inquirer, KafkaError> {
    let mut config = client::base(settings);
    config
        // The client insists on a group; with a manual assignment nothing joins it.
        .set("group.id", "throughline-relay-tail")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "20");
    let config = client::pass_through(config, settings, |name| name != "group.id");
    client::inquirer_of(&config)
}

fn wait(settings: &KafkaSettings) -> Duration {
    Duration::from_millis(u64::from(settings.request_timeout_ms))
}

/// Who leads the partitions of `targets`, each or why nobody does; with the client that asked.
///
/// # Errors
/// The client cannot be made. Where no broker answers, that is the reason in each place.
pub fn leaders(
    settings: &KafkaSettings,
    targets: &[TopicPartition],
) -> Result<(Inquirer, Vec<Result<BrokerId, KafkaError>>), KafkaError> {
    let consumer = client_of(settings)?;
    let topics: BTreeSet<&str> = targets.iter().map(|target| &*target.topic).collect();
    let topics: Vec<&str> = topics.into_iter().collect();
    let found = match Leaders::look_up(&consumer, &topics, wait(settings)) {
        Ok(leaders) => targets.iter().map(|target| leaders.of(target)).collect(),
        Err(error) => targets.iter().map(|_| Err(KafkaError::Fatal(error.to_string()))).collect(),
    };
    Ok((consumer, found))
}

/// The tails of `requests`, in their order, whoever leads them.
///
/// # Errors
/// The client cannot be made; a single partition's failure is in its own place.
pub fn read(settings: &KafkaSettings, requests: &[TailRequest]) -> Result<Vec<Result<Tail, KafkaError>>, KafkaError> {
    let targets: Vec<_> = requests.iter().map(|request| request.target.clone()).collect();
    let (consumer, found) = leaders(settings, &targets)?;
    let mut groups: BTreeMap<BrokerId, Vec<usize>> = BTreeMap::new();
    let mut tails: Vec<_> = Vec::with_capacity(requests.len());
    for (index, leader) in found.into_iter().enumerate() {
        tails.push(leader.map(|leader| {
            groups.entry(leader).or_default().push(index);
            Tail::Untouched
        }));
    }
    for group in groups.into_values() {
        let asked: Vec<_> = group.iter().map(|index| requests[*index].clone()).collect();
        for (index, tail) in group.into_iter().zip(read_of_leader(&consumer, settings, &asked)) {
            tails[index] = tail;
        }
    }
    Ok(tails)
}

/// The tails of `requests`, in their order, all led by one broker: they wait for it together.
pub fn read_of_leader(
    consumer: &Inquirer,
    settings: &KafkaSettings,
    requests: &[TailRequest],
) -> Vec<Result<Tail, KafkaError>> {
    let wait = wait(settings);
    let targets: Vec<_> = requests.iter().map(|request| request.target.clone()).collect();
    let ends = match watermarks::of_one_leader(consumer, &targets, wait) {
        Ok(ends) => ends,
        Err(error) => return requests.iter().map(|_| Err(KafkaError::Fatal(error.to_string()))).collect(),
    };
    let mut tails: Vec<Result<Tail, KafkaError>> = Vec::with_capacity(requests.len());
    let mut windows: Vec<Option<(i64, i64)>> = Vec::with_capacity(requests.len());
    for end in ends {
        windows.push(end.as_ref().ok().copied().filter(|(low, high)| high > low));
        tails.push(end.map(|(_, high)| if high == 0 { Tail::Untouched } else { Tail::Expired { next: high } }));
    }

    let last: Vec<_> = windows.iter().map(|window| window.map(|(_, high)| (high - 1, high))).collect();
    read_windows(consumer, requests, &last, &mut tails, wait);
    let further: Vec<_> = windows
        .iter()
        .zip(requests)
        .zip(&tails)
        .map(|((window, request), tail)| {
            let (low, high) = (*window)?;
            let settled = !matches!(tail, Ok(Tail::Foreign { .. }))
                && !matches!(tail, Ok(Tail::At { seq, .. }) if *seq < request.published);
            (!settled).then(|| (low.max(high - request.look_back), high))
        })
        .collect();
    read_windows(consumer, requests, &further, &mut tails, wait);
    tails
}

/// Reads the offsets `[from, to)` of each partition that has a window, and puts the highest
/// sequence number found in its place.
fn read_windows(
    consumer: &Inquirer,
    requests: &[TailRequest],
    windows: &[Option<(i64, i64)>],
    tails: &mut [Result<Tail, KafkaError>],
    wait: Duration,
) {
    let mut open: HashMap<(&str, i32), usize> = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    for (index, (request, window)) in requests.iter().zip(windows).enumerate() {
        let Some((from, to)) = window else { continue };
        let TopicPartition { topic, partition } = &request.target;
        if let Err(source) = assignment.add_partition_offset(topic, *partition, Offset::Offset(*from)) {
            tails[index] = Err(KafkaError::Request { step: "assign a partition's end", source });
            continue;
        }
        tails[index] = Ok(Tail::Foreign { records: to - from });
        open.insert((topic.as_ref(), *partition), index);
    }
    if open.is_empty() {
        return;
    }
    if let Err(source) = consumer.assign(&assignment) {
        for index in open.into_values() {
            tails[index] = Err(KafkaError::Request { step: "assign a partition's end", source: source.clone() });
        }
        return;
    }
    let mut ends: HashMap<i32, usize> = HashMap::new();
    let deadline = Instant::now() + wait;
    while !open.is_empty() && Instant::now() < deadline {
        match consumer.poll(POLL_WAIT) {
            None => {}
            Some(Ok(message)) => {
                let place = (message.topic(), message.partition());
                let Some(&index) = open.get(&place) else { continue };
                let record = Record::detach(&message, requests[index].target.topic.clone());
                if let Some(seq) = headers::seq_of(&record) {
                    let higher = !matches!(tails[index], Ok(Tail::At { seq: highest, .. }) if highest >= seq);
                    if higher {
                        tails[index] = Ok(Tail::At { seq, offset: message.offset() });
                    }
                }
                if windows[index].is_some_and(|(_, to)| message.offset() + 1 >= to) {
                    open.retain(|_, open| *open != index);
                }
            }
            // What stands behind the last record is none, such as a transaction's marker. The event
            // names no topic, so all assigned partitions of that number must have come to their end.
            Some(Err(ClientError::PartitionEOF(partition))) => {
                let ended = ends.entry(partition).or_insert(0);
                *ended += 1;
                if *ended == assignment.elements().iter().filter(|element| element.partition() == partition).count() {
                    open.retain(|(_, open), _| *open != partition);
                }
            }
            Some(Err(error)) if error.rdkafka_error_code().is_some_and(is_lasting) => {
                for index in open.drain().map(|(_, index)| index) {
                    tails[index] = Err(KafkaError::Request { step: "read a partition's end", source: error.clone() });
                }
            }
            Some(Err(_)) => {} // The client reconnects by itself.
        }
    }
    for index in open.into_values() {
        tails[index] = Err(KafkaError::Fatal(format!("{}: its end was not read in time", requests[index].target)));
    }
}

fn is_lasting(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(code, Code::UnknownTopicOrPartition | Code::TopicAuthorizationFailed | Code::AutoOffsetReset)
}
