//! A group consumer on its own thread, started from offsets that PostgreSQL holds.
//!
//! States of a partition: assigned by Kafka -> claimed in PostgreSQL (epoch, offset) -> fetched ->
//! revoked or lost. PostgreSQL is authoritative for where to start and who may act; Kafka's
//! committed offset only follows. Back-pressure is a full mailbox: the thread stops polling, and
//! past a bound pauses its partitions and polls on, so that it never leaves the group.
//! A claim that fails because PostgreSQL is away is tried again for as long as the assignment lasts.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::KafkaError;
use super::mailbox::{Claim, Mailbox};
use super::record::{Record, TopicPartition};

/// What Kafka holds as committed for a partition: offset and metadata; none when nothing is.
pub type Committed = Option<(i64, String)>;

/// Decides where an assigned partition starts, and takes it over in PostgreSQL.
///
/// Called on the consumer's thread, where blocking is allowed.
pub trait PartitionOwner: Send + Sync + 'static {
    /// Claims `source`. `committed` is what Kafka holds; `watermarks` are the first offset kept and
    /// the next one to be written.
    fn claim(&self, source: &TopicPartition, committed: Committed, watermarks: (i64, i64))
    -> Result<Claim, ClaimError>;
}

/// A claim that was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Try again: the database is away.
    #[error("{0}")]
    Transient(String),
    /// This partition stops, loudly; the others go on.
    #[error("{0}")]
    Halt(String),
}

/// What a consumer is made of.
pub struct ConsumerOptions {
    /// From [`super::client::consumer`].
    pub config: ClientConfig,
    pub topics: Vec<String>,
    /// One mailbox a worker; partition `p` goes to mailbox `p mod workers`.
    pub workers: usize,
    /// Records in one mailbox, at most.
    pub queue_records_max: usize,
    /// Bytes in one mailbox, at most, roughly.
    pub queue_bytes_max: usize,
    /// Ask Kafka for committed offsets before a claim (projections look for operator resets).
    pub read_committed_offsets: bool,
}

/// Polls in a row before what was fetched is handed over.
const POLL_RECORDS_MAX: usize = 500;
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Kafka's committed offsets follow at least this often.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
/// A mailbox that stays full for longer pauses its partitions, so that the group keeps its member.
const PAUSE_AFTER: Duration = Duration::from_secs(30);
const REQUEST_WAIT: Duration = Duration::from_secs(10);
const CLAIM_RETRY_WAIT: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Requests {
    commits: HashMap<TopicPartition, (i64, String)>,
    reclaims: HashSet<TopicPartition>,
    pauses: HashSet<TopicPartition>,
}

struct Shared {
    group: String,
    owner: Box<dyn PartitionOwner>,
    mailboxes: Vec<Arc<Mailbox>>,
    read_committed_offsets: bool,
    requests: Mutex<Requests>,
    halted: Mutex<HashMap<TopicPartition, String>>,
    stopping: AtomicBool,
}

/// The handle of a running consumer thread.
pub struct Consumer {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<Result<(), KafkaError>>>>,
}

impl Consumer {
    /// Subscribes and starts the thread.
    pub fn start(options: ConsumerOptions, owner: impl PartitionOwner) -> Result<Self, KafkaError> {
        let group = options.config.get("group.id").unwrap_or_default().to_owned();
        let mailbox = || Arc::new(Mailbox::new(options.queue_records_max, options.queue_bytes_max));
        let shared = Arc::new(Shared {
            group: group.clone(),
            owner: Box::new(owner),
            mailboxes: std::iter::repeat_with(mailbox).take(options.workers.max(1)).collect(),
            read_committed_offsets: options.read_committed_offsets,
            requests: Mutex::default(),
            halted: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let context = Rebalancer { shared: shared.clone() };
        let consumer: BaseConsumer<Rebalancer> =
            options.config.create_with_context(context).map_err(|error| KafkaError::Settings(error.to_string()))?;
        let topics: Vec<&str> = options.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(KafkaError::at("subscribe"))?;
        let poller = Poller { consumer, shared: shared.clone(), topics: HashMap::new(), last_commit: Instant::now() };
        let thread = std::thread::Builder::new()
            .name(format!("consumer {group}"))
            .spawn(move || poller.run())
            .map_err(|error| KafkaError::Fatal(format!("cannot start the consumer thread: {error}")))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// One mailbox a worker.
    pub fn mailboxes(&self) -> &[Arc<Mailbox>] {
        &self.shared.mailboxes
    }

    /// Lets Kafka's committed offset follow; the latest call for a partition wins.
    pub fn commit(&self, source: &TopicPartition, next_offset: i64, metadata: String) {
        lock(&self.shared.requests).commits.insert(source.clone(), (next_offset, metadata));
    }

    /// Claims a partition anew, after a compare-and-set was lost while Kafka still assigns it to us.
    pub fn reclaim(&self, source: &TopicPartition) {
        lock(&self.shared.requests).reclaims.insert(source.clone());
    }

    /// Stops one partition and keeps the reason; the others go on. It stays assigned, so that no
    /// other member runs into the same trouble.
    pub fn halt(&self, source: &TopicPartition, reason: String) {
        self.shared.halt(source, reason);
    }

    /// Partitions that stopped, with their reasons.
    pub fn halted(&self) -> HashMap<TopicPartition, String> {
        lock(&self.shared.halted).clone()
    }

    /// Whether the thread has ended (by itself: a fatal client error).
    pub fn is_finished(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Stops polling and closes the mailboxes, so that workers finish what they hold. Does not wait.
    pub fn begin_stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        for mailbox in &self.shared.mailboxes {
            mailbox.close();
        }
    }

    /// Commits what is left, leaves the group and ends the thread. Call after the workers ended.
    pub async fn stop(&self) -> Result<(), KafkaError> {
        self.begin_stop();
        let Some(thread) = lock(&self.thread).take() else { return Ok(()) };
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .map_err(|error| KafkaError::Fatal(error.to_string()))?
            .unwrap_or_else(|_| Err(KafkaError::Fatal("the consumer thread panicked".into())))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

impl Shared {
    fn mailbox(&self, source: &TopicPartition) -> &Arc<Mailbox> {
        let index = source.partition.unsigned_abs() as usize % self.mailboxes.len();
        &self.mailboxes[index]
    }

    fn halt(&self, source: &TopicPartition, reason: String) {
        tracing::error!(group = self.group, partition = %source, reason, "partition halted; others go on");
        metrics::counter!("throughline_partitions_halted_total", "group" => self.group.clone()).increment(1);
        self.mailbox(source).revoke(source);
        lock(&self.halted).insert(source.clone(), reason);
        lock(&self.requests).pauses.insert(source.clone());
    }

    /// Claims until granted, halted, or no longer ours to claim.
    fn claim(
        &self,
        consumer: &BaseConsumer<Rebalancer>,
        source: &TopicPartition,
        committed: &Committed,
    ) -> Option<Claim> {
        loop {
            if self.stopping.load(Ordering::Acquire) || consumer.assignment_lost() {
                return None;
            }
            let outcome = consumer
                .fetch_watermarks(&source.topic, source.partition, REQUEST_WAIT)
                .map_err(|error| ClaimError::Transient(format!("cannot read the offsets kept: {error}")))
                .and_then(|watermarks| self.owner.claim(source, committed.clone(), watermarks));
            match outcome {
                Ok(claim) => return Some(claim),
                Err(ClaimError::Halt(reason)) => {
                    self.halt(source, reason);
                    return None;
                }
                Err(ClaimError::Transient(reason)) => {
                    tracing::warn!(group = self.group, partition = %source, reason, "claim failed; trying again");
                    std::thread::sleep(CLAIM_RETRY_WAIT);
                }
            }
        }
    }
}

/// The rebalance callbacks. They run inside `poll`, on the consumer's thread.
struct Rebalancer {
    shared: Arc<Shared>,
}

impl ClientContext for Rebalancer {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        use rdkafka::config::RDKafkaLogLevel as Level;
        match level {
            Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
                tracing::warn!(group = self.shared.group, facility, message, "kafka client");
            }
            _ => tracing::debug!(group = self.shared.group, facility, message, "kafka client"),
        }
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::warn!(group = self.shared.group, %error, reason, "kafka client");
    }
}

impl ConsumerContext for Rebalancer {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        metrics::counter!("throughline_rebalances_total", "group" => self.shared.group.clone()).increment(1);
        let result = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, list),
            _ => self.revoke(consumer, list),
        };
        if let Err(error) = result {
            // Left unassigned, the group would wait for ever: the poll loop sees it and ends.
            tracing::error!(group = self.shared.group, %error, "rebalance failed");
        }
    }
}

impl Rebalancer {
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Result<(), ClientError> {
        let committed = if self.shared.read_committed_offsets && list.count() > 0 {
            self.committed_offsets(consumer, list)
        } else {
            HashMap::new()
        };
        let mut idle = TopicPartitionList::new();
        for source in sources(list) {
            let held = committed.get(&source).cloned().flatten();
            let offset = match self.shared.claim(consumer, &source, &held) {
                Some(claim) => {
                    tracing::info!(group = self.shared.group, partition = %source, offset = claim.next_offset,
                        epoch = claim.epoch, "partition claimed");
                    let offset = Offset::Offset(claim.next_offset);
                    lock(&self.shared.halted).remove(&source);
                    self.shared.mailbox(&source).grant(source.clone(), claim);
                    offset
                }
                None => {
                    idle.add_partition(&source.topic, source.partition);
                    Offset::End
                }
            };
            list.set_partition_offset(&source.topic, source.partition, offset)?;
        }
        consumer.incremental_assign(list)?;
        if idle.count() > 0 {
            consumer.pause(&idle)?;
        }
        Ok(())
    }

    fn committed_offsets(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> HashMap<TopicPartition, Committed> {
        loop {
            match consumer.committed_offsets(list.clone(), REQUEST_WAIT) {
                Ok(committed) => {
                    return committed
                        .elements()
                        .iter()
                        .map(|element| {
                            let offset = match element.offset() {
                                Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
                                _ => None,
                            };
                            (TopicPartition { topic: element.topic().into(), partition: element.partition() }, offset)
                        })
                        .collect();
                }
                // Guessing here could overlook an operator's reset.
                Err(error) => {
                    tracing::warn!(group = self.shared.group, %error, "cannot read committed offsets; trying again");
                    if self.shared.stopping.load(Ordering::Acquire) || consumer.assignment_lost() {
                        return HashMap::new();
                    }
                    std::thread::sleep(CLAIM_RETRY_WAIT);
                }
            }
        }
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), ClientError> {
        let lost = consumer.assignment_lost();
        let revoked = sources(list);
        for source in &revoked {
            self.shared.mailbox(source).revoke(source);
            lock(&self.shared.halted).remove(source);
        }
        tracing::info!(group = self.shared.group, partitions = revoked.len(), lost, "partitions revoked");
        let commits = take_commits(&self.shared, |source| revoked.contains(source));
        if !lost && commits.count() > 0 {
            // Best effort: PostgreSQL holds the truth, the next owner starts from there.
            if let Err(error) = consumer.commit(&commits, CommitMode::Sync) {
                tracing::debug!(group = self.shared.group, %error, "commit before revocation");
            }
        }
        consumer.incremental_unassign(list)
    }
}

/// The thread's loop.
struct Poller {
    consumer: BaseConsumer<Rebalancer>,
    shared: Arc<Shared>,
    topics: HashMap<String, Arc<str>>,
    last_commit: Instant,
}

impl Poller {
    fn run(mut self) -> Result<(), KafkaError> {
        let outcome = loop {
            if self.shared.stopping.load(Ordering::Acquire) {
                break Ok(());
            }
            if let Err(error) = self.turn() {
                tracing::error!(group = self.shared.group, %error, "consumer ends");
                break Err(error);
            }
        };
        for mailbox in &self.shared.mailboxes {
            mailbox.close();
        }
        self.commit(CommitMode::Sync);
        // Dropping the consumer leaves the group; the revocation callback runs in there.
        drop(self.consumer);
        outcome
    }

    fn turn(&mut self) -> Result<(), KafkaError> {
        self.pause_halted();
        self.reclaim();
        if self.last_commit.elapsed() >= COMMIT_INTERVAL {
            self.commit(CommitMode::Async);
        }
        self.wait_for_room();
        let mut fetched: Vec<Vec<Record>> = vec![Vec::new(); self.shared.mailboxes.len()];
        let mut wait = POLL_WAIT;
        for _ in 0..POLL_RECORDS_MAX {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    let topic = match self.topics.get(message.topic()) {
                        Some(topic) => topic.clone(),
                        None => {
                            let topic: Arc<str> = message.topic().into();
                            self.topics.insert(message.topic().to_owned(), topic.clone());
                            topic
                        }
                    };
                    let record = Record::detach(&message, topic);
                    let worker = record.source.partition.unsigned_abs() as usize % fetched.len();
                    fetched[worker].push(record);
                }
                Some(Err(error)) => self.on_error(&error)?,
            }
            wait = Duration::ZERO;
        }
        for (mailbox, records) in self.shared.mailboxes.iter().zip(fetched) {
            if !records.is_empty() {
                mailbox.push(records);
            }
        }
        Ok(())
    }

    fn wait_for_room(&self) {
        let full_since = Instant::now();
        let mut paused: Option<TopicPartitionList> = None;
        for mailbox in &self.shared.mailboxes {
            while !mailbox.wait_for_room(POLL_WAIT) && !self.shared.stopping.load(Ordering::Acquire) {
                if paused.is_none() && full_since.elapsed() > PAUSE_AFTER {
                    tracing::warn!(group = self.shared.group, "worker is stuck; partitions paused, membership kept");
                    paused = self.consumer.assignment().ok().filter(|all| self.consumer.pause(all).is_ok());
                }
                if paused.is_some()
                    && let Some(Ok(message)) = self.consumer.poll(Duration::ZERO)
                {
                    // Assigned while we waited: fetched too early, so it is fetched again on resume.
                    let offset = Offset::Offset(message.offset());
                    let (topic, partition) = (message.topic().to_owned(), message.partition());
                    drop(message);
                    let _ = self.consumer.seek(&topic, partition, offset, REQUEST_WAIT);
                    paused = self.consumer.assignment().ok().filter(|all| self.consumer.pause(all).is_ok());
                }
            }
        }
        if paused.is_some()
            && let Ok(all) = self.consumer.assignment()
        {
            let halted = lock(&self.shared.halted);
            let mut resumed = TopicPartitionList::new();
            for source in sources(&all).iter().filter(|source| !halted.contains_key(source)) {
                resumed.add_partition(&source.topic, source.partition);
            }
            if let Err(error) = self.consumer.resume(&resumed) {
                tracing::warn!(group = self.shared.group, %error, "cannot resume after a pause");
            }
        }
    }

    fn pause_halted(&self) {
        let pauses = std::mem::take(&mut lock(&self.shared.requests).pauses);
        if pauses.is_empty() {
            return;
        }
        let assigned = self.consumer.assignment().map(|list| sources(&list)).unwrap_or_default();
        let mut list = TopicPartitionList::new();
        for source in assigned.iter().filter(|source| pauses.contains(source)) {
            list.add_partition(&source.topic, source.partition);
        }
        if let Err(error) = self.consumer.pause(&list) {
            tracing::warn!(group = self.shared.group, %error, "cannot pause a halted partition");
        }
    }

    fn reclaim(&self) {
        let reclaims = std::mem::take(&mut lock(&self.shared.requests).reclaims);
        if reclaims.is_empty() {
            return;
        }
        let assigned: HashSet<_> =
            self.consumer.assignment().map(|list| sources(&list)).unwrap_or_default().into_iter().collect();
        for source in reclaims.into_iter().filter(|source| assigned.contains(source)) {
            let Some(claim) = self.shared.claim(&self.consumer, &source, &None) else { continue };
            tracing::info!(group = self.shared.group, partition = %source, offset = claim.next_offset,
                epoch = claim.epoch, "partition claimed again");
            let offset = Offset::Offset(claim.next_offset);
            if let Err(error) = self.consumer.seek(&source.topic, source.partition, offset, REQUEST_WAIT) {
                tracing::warn!(group = self.shared.group, partition = %source, %error, "seek failed; trying again");
                self.shared.mailbox(&source).revoke(&source);
                lock(&self.shared.requests).reclaims.insert(source);
                continue;
            }
            self.shared.mailbox(&source).grant(source, claim);
        }
    }

    fn commit(&mut self, mode: CommitMode) {
        self.last_commit = Instant::now();
        let commits = take_commits(&self.shared, |_| true);
        if commits.count() > 0
            && let Err(error) = self.consumer.commit(&commits, mode)
        {
            // Kafka only follows: the next commit carries the newer offset anyway.
            tracing::debug!(group = self.shared.group, %error, "offset commit");
        }
    }

    fn on_error(&self, error: &ClientError) -> Result<(), KafkaError> {
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            return Err(KafkaError::Fatal(format!(
                "the consumer of group {} cannot go on: {reason} ({code})",
                self.shared.group
            )));
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset) => self.halt_expired(),
            _ => tracing::warn!(group = self.shared.group, %error, "consume"),
        }
        Ok(())
    }

    /// The client does not say which partition's offset is gone, so each claim is held against what
    /// Kafka keeps.
    fn halt_expired(&self) {
        for mailbox in &self.shared.mailboxes {
            for (source, claim) in mailbox.claims() {
                let Ok((first, next)) = self.consumer.fetch_watermarks(&source.topic, source.partition, REQUEST_WAIT)
                else {
                    continue;
                };
                if claim.next_offset < first || claim.next_offset > next {
                    self.shared.halt(
                        &source,
                        format!(
                            "offset {} is not there any more: Kafka keeps {first} to {next}. Records were dropped by \
                             retention, or the topic was created again.",
                            claim.next_offset
                        ),
                    );
                }
            }
        }
    }
}

fn take_commits(shared: &Shared, wanted: impl Fn(&TopicPartition) -> bool) -> TopicPartitionList {
    let mut requests = lock(&shared.requests);
    let mut list = TopicPartitionList::new();
    requests.commits.retain(|source, (offset, metadata)| {
        if !wanted(source) {
            return true;
        }
        let mut element = list.add_partition(&source.topic, source.partition);
        if element.set_offset(Offset::Offset(*offset)).is_ok() {
            element.set_metadata(metadata.as_str());
        }
        false
    });
    list
}

fn sources(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let element = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| TopicPartition {
        topic: element.topic().into(),
        partition: element.partition(),
    };
    list.elements().iter().map(element).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
