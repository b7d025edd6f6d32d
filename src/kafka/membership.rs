//! What a consumer of a group is made of, and what its handle, its thread and its callbacks share.
//!
//! PostgreSQL is authoritative for who may act: here is only what this process believes of its partitions. Knows
//! neither the thread ([`super::poller`]) nor who claims ([`super::claiming`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;

use super::claims::Claims;
use super::mailbox::{Claim, Mailbox};
use super::owner::PartitionOwner;
use super::record::TopicPartition;
use super::tended::Tended;
use crate::health::{Heartbeat, Partitions};

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

impl ConsumerOptions {
    pub(super) fn group(&self) -> &str {
        self.config.get("group.id").unwrap_or_default()
    }
}

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

/// The client's context: what it calls back is in [`super::rebalance`].
pub(super) struct Rebalancer(pub(super) Arc<Membership>);

/// The client of a group.
pub(super) type Client = Tended<BaseConsumer<Rebalancer>>;

/// Shared by the handle, the thread and the rebalance callbacks.
pub(super) struct Membership {
    pub(super) group: String,
    pub(super) owner: Box<dyn PartitionOwner>,
    pub(super) mailboxes: Vec<Arc<Mailbox>>,
    pub(super) read_committed_offsets: bool,
    pub(super) partitions: Partitions,
    pub(super) heartbeat: Heartbeat,
    /// Partitions that are assigned and not claimed, those that stand among them.
    pub(super) claims: Claims,
    halt_retry: Duration,
    client: OnceLock<Weak<Client>>,
    pub(super) requests: Mutex<Requests>,
    /// Revoked since the thread last looked: what it fetched of them before is stale, even if they
    /// were granted again meanwhile.
    pub(super) revoked: Mutex<HashSet<TopicPartition>>,
    /// A rebalance that could not be answered: the group would wait for ever, so the thread ends.
    failure: Mutex<Option<String>>,
    phase: Mutex<Phase>,
    phase_changed: Condvar,
}

impl Membership {
    pub(super) fn new(options: &ConsumerOptions, owner: impl PartitionOwner) -> Self {
        let mailbox = || Arc::new(Mailbox::new(options.queue_records_max, options.queue_bytes_max));
        Self {
            group: options.group().to_owned(),
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
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Makes the client known. Nobody else sets it.
    pub(super) fn is_of(&self, client: &Arc<Client>) {
        let _ = self.client.set(Arc::downgrade(client));
    }

    /// The client; none once the thread has given it up.
    pub(super) fn client(&self) -> Option<Arc<Client>> {
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
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
