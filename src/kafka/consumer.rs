//! The handle of a group consumer: its options, its mailboxes, and what workers ask of its thread.
//!
//! States of a partition: assigned by Kafka -> claimed in PostgreSQL (epoch, offset) -> fetched ->
//! revoked or lost; one that stands is claimed anew. PostgreSQL is authoritative for where to start and
//! who may act; Kafka's committed offset only follows. The thread itself is in [`super::poller`], what it
//! does when the group changes in [`super::rebalance`], who claims when in [`super::claims`].

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::consumer::Consumer as _;

use super::KafkaError;
use super::mailbox::{Claim, Mailbox};
pub use super::membership::ConsumerOptions;
use super::membership::{Client, Membership, Phase, Rebalancer, lock};
pub use super::owner::{ClaimError, Committed, PartitionOwner};
use super::poller::Poller;
use super::record::{Record, TopicPartition};
use super::tended::Tended;

/// Leaving the group, once the workers are done, is waited for this long.
const LEAVE_WAIT: Duration = Duration::from_secs(15);

/// The handle of a running consumer thread.
pub struct Consumer {
    membership: Arc<Membership>,
    thread: Mutex<Option<std::thread::JoinHandle<Result<(), KafkaError>>>>,
}

impl Consumer {
    /// Subscribes and starts the thread.
    pub fn start(options: ConsumerOptions, owner: impl PartitionOwner) -> Result<Self, KafkaError> {
        let membership = Arc::new(Membership::new(&options, owner));
        let consumer: Client = Tended::consumer(&options.config, Rebalancer(membership.clone()))?;
        let topics: Vec<&str> = options.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(KafkaError::at("subscribe"))?;
        let consumer = Arc::new(consumer);
        membership.is_of(&consumer);
        let poller = Poller::new(consumer, membership.clone());
        let thread = std::thread::Builder::new()
            .name(format!("consumer {}", membership.group))
            .spawn(move || poller.run())
            .map_err(|error| KafkaError::Fatal(format!("cannot start the consumer thread: {error}")))?;
        Ok(Self { membership, thread: Mutex::new(Some(thread)) })
    }

    /// A consumer without a thread and a group: whoever made it grants the claims and feeds the records.
    pub fn by_hand(options: &ConsumerOptions, owner: impl PartitionOwner) -> Self {
        Self { membership: Arc::new(Membership::new(options, owner)), thread: Mutex::new(None) }
    }

    /// Grants a claim, as the thread does.
    pub fn grant(&self, source: &TopicPartition, claim: Claim) {
        self.membership.claims.forget(source);
        self.membership.grant(source, claim);
    }

    /// Hands records over, as the thread does after a fetch.
    pub fn feed(&self, records: Vec<Record>) {
        for record in records {
            self.membership.mailbox(&record.source).push(vec![record]);
        }
    }

    /// One mailbox a worker.
    pub fn mailboxes(&self) -> &[Arc<Mailbox>] {
        &self.membership.mailboxes
    }

    /// Lets Kafka's committed offset follow; the latest call for a partition wins. Dropped when the
    /// partition is no longer claimed: its new owner commits for it.
    pub fn commit(&self, source: &TopicPartition, next_offset: i64, metadata: String) {
        lock(&self.membership.requests).commits.insert(source.clone(), (next_offset, metadata));
    }

    /// Drops the claim of `epoch` and claims anew, after a compare-and-set was lost while Kafka may
    /// still assign the partition to us. Ignored when another claim took that one's place.
    pub fn reclaim(&self, source: &TopicPartition, epoch: i64) {
        if self.membership.mailbox(source).revoke_epoch(source, epoch) {
            self.membership.want(source);
        }
    }

    /// Stops one partition and tells why; the others go on. It stays assigned, so that no other member
    /// runs into the same trouble, and is claimed anew after a while.
    pub fn halt(&self, source: &TopicPartition, reason: &str, cure: &str) {
        self.membership.halt(source, reason, cure);
    }

    /// Whether the thread has ended (by itself: a fatal client error).
    pub fn is_finished(&self) -> bool {
        lock(&self.thread).as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Stops polling and closes the mailboxes, so that workers finish what they hold. Does not
    /// wait, and does not leave the group yet: offsets of that last work can still be committed.
    pub fn begin_stop(&self) {
        self.membership.enter(Phase::Draining);
        for mailbox in &self.membership.mailboxes {
            mailbox.close();
        }
    }

    /// Commits what is left, leaves the group and ends the thread. Call after the workers ended.
    ///
    /// # Errors
    /// The reason, where the thread ended by itself.
    pub async fn stop(&self) -> Result<(), KafkaError> {
        self.begin_stop();
        self.membership.enter(Phase::Leaving);
        let Some(thread) = lock(&self.thread).take() else { return Ok(()) };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let Ok(joined) = tokio::time::timeout(LEAVE_WAIT, joined).await else {
            // Nothing is lost by it: the broker ends the membership after the session timeout.
            tracing::warn!(
                group = self.membership.group,
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
        self.membership.enter(Phase::Leaving);
    }
}
