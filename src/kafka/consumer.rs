//! The handle of a group consumer: its options, its mailboxes, and what workers ask of its thread.
//!
//! States of a partition: assigned by Kafka -> claimed in PostgreSQL (epoch, offset) -> fetched ->
//! revoked or lost; one that stands is claimed anew. PostgreSQL is authoritative for where to start and
//! who may act; Kafka's committed offset only follows. The thread itself is in [`super::poller`], what it
//! does when the group changes in [`super::rebalance`], who claims when in [`super::claims`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::KafkaError;
use super::claims::Claims;
use super::mailbox::{Claim, Mailbox};
use super::poller::Poller;
use super::rebalance::Rebalancer;
use super::record::{Record, TopicPartition};
use crate::health::{Heartbeat, Partitions};

/// What Kafka holds as committed for a partition: offset and metadata; none when nothing is.
pub type Committed = Option<(i64, String)>;

/// Decides where an assigned partition starts, and takes it over in PostgreSQL.
///
/// Called on threads made for claims, where blocking is allowed.
pub trait PartitionOwner: Send + Sync + 'static {
    /// The epoch of each partition now; asked before Kafka is asked for its commits.
    fn epochs(&self) -> Result<HashMap<i32, i64>, ClaimError> {
        Ok(HashMap::new())
    }

    /// Metadata that a commit found at Kafka is to carry before anybody acts on it; none leaves it.
    /// Equal commits of others cannot be told apart, a name of its own can. `epoch` was the
    /// partition's before the commit was read.
    fn name_for(&self, _metadata: &str, _epoch: i64) -> Option<String> {
        None
    }

    /// Claims `source`. `committed` is what Kafka holds; `watermarks` are the first offset kept and
    /// the next one to be written, read before the claim: an owner that is still at work may have
    /// gone past their end meanwhile. A claim outside fresh watermarks halts the partition.
    fn claim(&self, source: &TopicPartition, committed: Committed, watermarks: (i64, i64))
    -> Result<Claim, ClaimError>;
}

/// A claim that was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Try again: the database is away.
    #[error("{0}")]
    Transient(String),
    /// This partition stands, loudly, and is looked at again; the others go on. `cure` is the next step.
    #[error("{reason} {cure}")]
    Halt { reason: String, cure: String },
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
    /// Where the states of its partitions are told.
    pub partitions: Partitions,
    /// Of its thread, which beats at each turn.
    pub heartbeat: Heartbeat,
    /// A partition that stands is claimed anew after this long, at most.
    pub halt_retry: Duration,
}

/// Leaving the group, once the workers are done, is waited for this long.
const LEAVE_WAIT: Duration = Duration::from_secs(15);

/// What workers asked of the thread since its last turn.
#[derive(Default)]
pub(super) struct Requests {
    pub(super) commits: HashMap<TopicPartition, (i64, String)>,
    pub(super) pauses: HashSet<TopicPartition>,
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// No polling; workers finish what they hold, the group still counts us in.
    Draining,
    /// Commit what is left and leave the group.
    Leaving,
}

/// Shared by the handle, the thread and the rebalance callbacks.
pub(super) struct Shared {
    pub(super) group: String,
    pub(super) owner: Box<dyn PartitionOwner>,
    pub(super) mailboxes: Vec<Arc<Mailbox>>,
    pub(super) read_committed_offsets: bool,
    pub(super) partitions: Partitions,
    pub(super) heartbeat: Heartbeat,
    /// Partitions that are assigned and not claimed, those that stand among them.
    pub(super) claims: Claims,
    halt_retry: Duration,
    client: OnceLock<Weak<BaseConsumer<Rebalancer>>>,
    pub(super) requests: Mutex<Requests>,
    /// Revoked since the thread last looked: what it fetched of them before is stale, even if they
    /// were granted again meanwhile.
    pub(super) revoked: Mutex<HashSet<TopicPartition>>,
    /// A rebalance that could not be answered: the group would wait for ever, so the thread ends.
    failure: Mutex<Option<String>>,
    phase: Mutex<Phase>,
    phase_changed: Condvar,
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
        let shared = Arc::new(Shared::new(&options, owner));
        let consumer: BaseConsumer<Rebalancer> = options
            .config
            .create_with_context(Rebalancer::new(shared.clone()))
            .map_err(|error| KafkaError::Settings(error.to_string()))?;
        let topics: Vec<&str> = options.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(KafkaError::at("subscribe"))?;
        let consumer = Arc::new(consumer);
        // Nobody else sets it.
        let _ = shared.client.set(Arc::downgrade(&consumer));
        let poller = Poller::new(consumer, shared.clone());
        let thread = std::thread::Builder::new()
            .name(format!("consumer {group}"))
            .spawn(move || poller.run())
            .map_err(|error| KafkaError::Fatal(format!("cannot start the consumer thread: {error}")))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// A consumer without a thread and a group: whoever made it grants the claims and feeds the records.
    pub fn by_hand(options: &ConsumerOptions, owner: impl PartitionOwner) -> Self {
        Self { shared: Arc::new(Shared::new(options, owner)), thread: Mutex::new(None) }
    }

    /// Grants a claim, as the thread does.
    pub fn grant(&self, source: &TopicPartition, claim: Claim) {
        self.shared.claims.forget(source);
        self.shared.grant(source, claim);
    }

    /// Hands records over, as the thread does after a fetch.
    pub fn feed(&self, records: Vec<Record>) {
        for record in records {
            self.shared.mailbox(&record.source).push(vec![record]);
        }
    }

    /// One mailbox a worker.
    pub fn mailboxes(&self) -> &[Arc<Mailbox>] {
        &self.shared.mailboxes
    }

    /// Lets Kafka's committed offset follow; the latest call for a partition wins. Dropped when the
    /// partition is no longer claimed: its new owner commits for it.
    pub fn commit(&self, source: &TopicPartition, next_offset: i64, metadata: String) {
        lock(&self.shared.requests).commits.insert(source.clone(), (next_offset, metadata));
    }

    /// Drops the claim of `epoch` and claims anew, after a compare-and-set was lost while Kafka may
    /// still assign the partition to us. Ignored when another claim took that one's place.
    pub fn reclaim(&self, source: &TopicPartition, epoch: i64) {
        if self.shared.mailbox(source).revoke_epoch(source, epoch) {
            self.shared.want(source);
        }
    }

    /// Stops one partition and tells why; the others go on. It stays assigned, so that no other member
    /// runs into the same trouble, and is claimed anew after a while.
    pub fn halt(&self, source: &TopicPartition, reason: &str, cure: &str) {
        self.shared.halt(source, reason, cure);
    }

    /// Whether the thread has ended (by itself: a fatal client error).
    pub fn is_finished(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Stops polling and closes the mailboxes, so that workers finish what they hold. Does not
    /// wait, and does not leave the group yet: offsets of that last work can still be committed.
    pub fn begin_stop(&self) {
        self.shared.enter(Phase::Draining);
        for mailbox in &self.shared.mailboxes {
            mailbox.close();
        }
    }

    /// Commits what is left, leaves the group and ends the thread. Call after the workers ended.
    ///
    /// # Errors
    /// The reason, where the thread ended by itself.
    pub async fn stop(&self) -> Result<(), KafkaError> {
        self.begin_stop();
        self.shared.enter(Phase::Leaving);
        let Some(thread) = lock(&self.thread).take() else { return Ok(()) };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let Ok(joined) = tokio::time::timeout(LEAVE_WAIT, joined).await else {
            // Nothing is lost by it: the broker ends the membership after the session timeout.
            tracing::warn!(
                group = self.shared.group,
                "the client does not leave its group; it is left to end by itself"
            );
            return Ok(());
        };
        joined
            .map_err(|error| KafkaError::Fatal(error.to_string()))?
            .unwrap_or_else(|_| Err(KafkaError::Fatal("the consumer thread panicked".into())))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.begin_stop();
        self.shared.enter(Phase::Leaving);
    }
}

impl Shared {
    fn new(options: &ConsumerOptions, owner: impl PartitionOwner) -> Self {
        let mailbox = || Arc::new(Mailbox::new(options.queue_records_max, options.queue_bytes_max));
        Self {
            group: options.config.get("group.id").unwrap_or_default().to_owned(),
            owner: Box::new(owner),
            mailboxes: std::iter::repeat_with(mailbox).take(options.workers.max(1)).collect(),
            read_committed_offsets: options.read_committed_offsets,
            partitions: options.partitions.clone(),
            heartbeat: options.heartbeat.clone(),
            claims: Claims::default(),
            halt_retry: options.halt_retry,
            client: OnceLock::new(),
            requests: Mutex::default(),
            revoked: Mutex::default(),
            failure: Mutex::default(),
            phase: Mutex::new(Phase::Running),
            phase_changed: Condvar::new(),
        }
    }

    /// The worker, and mailbox, that a partition goes to.
    pub(super) fn worker_of(&self, source: &TopicPartition) -> usize {
        source.partition.unsigned_abs() as usize % self.mailboxes.len()
    }

    pub(super) fn mailbox(&self, source: &TopicPartition) -> &Arc<Mailbox> {
        &self.mailboxes[self.worker_of(source)]
    }

    pub(super) fn is_running(&self) -> bool {
        *lock(&self.phase) == Phase::Running
    }

    pub(super) fn enter(&self, phase: Phase) {
        let mut current = lock(&self.phase);
        if phase > *current {
            *current = phase;
        }
        drop(current);
        self.phase_changed.notify_all();
    }

    /// Waits until the workers are done and the handle lets the thread leave.
    pub(super) fn wait_to_leave(&self) {
        let phase = lock(&self.phase);
        drop(
            self.phase_changed
                .wait_while(phase, |phase| *phase < Phase::Leaving)
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
    }

    /// The client; none once the thread has given it up.
    pub(super) fn client(&self) -> Option<Arc<BaseConsumer<Rebalancer>>> {
        self.client.get().and_then(Weak::upgrade)
    }

    /// The group would wait for us for ever, or nothing would be fetched: the thread ends.
    pub(super) fn fail(&self, reason: String) {
        *lock(&self.failure) = Some(reason);
    }

    pub(super) fn take_failure(&self) -> Option<String> {
        lock(&self.failure).take()
    }

    /// Claims a partition anew that is not consumed meanwhile.
    pub(super) fn want(&self, source: &TopicPartition) {
        self.claims.want(source);
        lock(&self.requests).pauses.insert(source.clone());
    }

    pub(super) fn halt(&self, source: &TopicPartition, reason: &str, cure: &str) {
        if !self.claims.has_halted(source) {
            metrics::counter!("throughline_partitions_halted_total", "group" => self.group.clone()).increment(1);
        }
        self.mailbox(source).revoke(source);
        self.claims.want_halted(source, self.halt_retry);
        self.partitions.standing(&source.topic, source.partition, reason, Some(cure));
        lock(&self.requests).pauses.insert(source.clone());
    }

    /// Another's now, or nobody's.
    pub(super) fn lose(&self, source: &TopicPartition) {
        self.mailbox(source).revoke(source);
        self.claims.forget(source);
        self.partitions.gone(&source.topic, source.partition);
    }

    /// Goes on from `claim`. One that stood is told to run once it is seen to.
    pub(super) fn grant(&self, source: &TopicPartition, claim: Claim) {
        tracing::debug!(group = self.group, partition = %source, offset = claim.next_offset, epoch = claim.epoch,
            "partition claimed");
        if !self.claims.has_halted(source) {
            self.partitions.running(&source.topic, source.partition);
        }
        self.mailbox(source).grant(source.clone(), claim);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
