//! The consumer's thread: polls, hands over, and serves what workers ask of it.
//!
//! Back-pressure is a full mailbox: the thread stops polling, and past a bound pauses its
//! partitions and polls on, so that rebalances are answered and the group keeps its member.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::KafkaError;
use super::consumer::{REQUEST_WAIT, Shared, lock};
use super::rebalance::{Rebalancer, sources, take_commits};
use super::record::Record;

/// Polls in a row before what was fetched is handed over.
const POLL_RECORDS_MAX: usize = 500;
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Kafka's committed offsets follow at least this often.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
/// A mailbox that stays full for longer pauses its partitions, so that rebalances are still
/// answered: a stuck worker must not hold up the whole group.
const PAUSE_AFTER: Duration = Duration::from_secs(3);

/// The thread's state.
pub(super) struct Poller {
    consumer: BaseConsumer<Rebalancer>,
    shared: Arc<Shared>,
    topics: HashMap<String, Arc<str>>,
    last_commit: Instant,
}

impl Poller {
    pub(super) fn new(consumer: BaseConsumer<Rebalancer>, shared: Arc<Shared>) -> Self {
        Self { consumer, shared, topics: HashMap::new(), last_commit: Instant::now() }
    }

    pub(super) fn run(mut self) -> Result<(), KafkaError> {
        let mut outcome = Ok(());
        while self.shared.is_running() {
            outcome = self.turn();
            if let Err(error) = &outcome {
                tracing::error!(group = self.shared.group, %error, "consumer ends");
                break;
            }
        }
        for mailbox in &self.shared.mailboxes {
            mailbox.close();
        }
        if outcome.is_ok() {
            // Workers finish what they hold; heartbeats go on, nothing is revoked without a poll.
            self.shared.wait_to_leave();
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
        lock(&self.shared.revoked).clear();
        let mut fetched: Vec<Vec<Record>> = vec![Vec::new(); self.shared.mailboxes.len()];
        let mut wait = POLL_WAIT;
        for _ in 0..POLL_RECORDS_MAX {
            // None also follows a served rebalance: the turn ends, and what it made stale is dropped.
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
        if let Some(reason) = lock(&self.shared.failure).take() {
            return Err(KafkaError::Fatal(format!("the consumer of group {}: {reason}", self.shared.group)));
        }
        let revoked = std::mem::take(&mut *lock(&self.shared.revoked));
        for (mailbox, mut records) in self.shared.mailboxes.iter().zip(fetched) {
            if !revoked.is_empty() {
                // Granted again within this turn, they would stand behind a gap.
                records.retain(|record| !revoked.contains(&record.source));
            }
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
            while !mailbox.wait_for_room(POLL_WAIT) && self.shared.is_running() {
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
                    if let Err(error) = self.consumer.seek(&topic, partition, offset, REQUEST_WAIT) {
                        *lock(&self.shared.failure) = Some(format!("cannot step back to a record of {topic}: {error}"));
                    }
                    paused = self.consumer.assignment().ok().filter(|all| self.consumer.pause(all).is_ok());
                }
            }
        }
        if paused.is_some() {
            self.resume();
        }
    }

    fn resume(&self) {
        let Ok(all) = self.consumer.assignment() else { return };
        let halted = lock(&self.shared.halted);
        let mut resumed = TopicPartitionList::new();
        for source in sources(&all).iter().filter(|source| !halted.contains_key(source)) {
            resumed.add_partition(&source.topic, source.partition);
        }
        if let Err(error) = self.consumer.resume(&resumed) {
            tracing::warn!(group = self.shared.group, %error, "cannot resume after a pause");
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
        // A commit for a partition that moved on would put its new owner's offset back.
        lock(&self.shared.requests).commits.retain(|source, _| self.shared.mailbox(source).claims_partition(source));
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
            Some(RDKafkaErrorCode::AutoOffsetReset) => self.reclaim_all(error),
            _ => tracing::warn!(group = self.shared.group, %error, "consume"),
        }
        Ok(())
    }

    /// An offset is not there any more. The client does not say which partition's and has stopped
    /// fetching it, so all are claimed anew: the owner judges each against what Kafka keeps.
    fn reclaim_all(&self, error: &ClientError) {
        tracing::warn!(group = self.shared.group, %error, "an offset is out of range; claiming all partitions anew");
        let mut requests = lock(&self.shared.requests);
        for mailbox in &self.shared.mailboxes {
            for source in mailbox.claims().into_keys() {
                mailbox.revoke(&source);
                lock(&self.shared.revoked).insert(source.clone());
                requests.reclaims.insert(source);
            }
        }
    }
}
