//! The consumer's thread: polls, hands over, and serves what workers ask of it.
//!
//! Back-pressure is a full mailbox: the thread stops polling, and past a bound pauses its
//! partitions and polls on, so that rebalances are answered and the group keeps its member.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::{Message, TopicPartitionList};

use super::membership::{Client, Membership, Phase, lock};
use super::rebalance::{begin, held, sources, take_commits};
use super::record::{Record, TopicPartition};
use super::stalls::Stalls;
use super::{KafkaError, claiming, voice};
use crate::panics;

/// Polls in a row before what was fetched is handed over.
const POLL_RECORDS_MAX: usize = 500;
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Kafka's committed offsets follow at least this often.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
/// A mailbox that stays full for longer while others have room pauses its partitions. A worker that is only
/// busy makes room sooner; a pause throws away what was fetched ahead.
const PAUSE_ONE_AFTER: Duration = Duration::from_millis(500);
/// The same when all are full: a stuck worker must not hold up the whole group.
const PAUSE_ALL_AFTER: Duration = Duration::from_secs(3);
/// A partition that stood and has nothing to do is taken for well after this long.
const PROBATION: Duration = Duration::from_secs(5);
/// At the end claims at work are waited for this long.
const CLAIMS_END: Duration = Duration::from_secs(5);

/// The thread's state.
pub(super) struct Poller {
    consumer: Arc<Client>,
    membership: Arc<Membership>,
    topics: HashMap<String, Arc<str>>,
    last_commit: Instant,
    /// By worker: its mailbox stayed full, and its partitions are paused.
    full: Vec<bool>,
    /// Partitions that stood and were claimed anew: from which offset, and until when they prove well.
    probation: HashMap<TopicPartition, (i64, Instant)>,
    stalls: Stalls,
}

impl Poller {
    pub(super) fn new(consumer: Arc<Client>, membership: Arc<Membership>) -> Self {
        Self {
            consumer,
            topics: HashMap::new(),
            last_commit: Instant::now(),
            full: vec![false; membership.mailboxes.len()],
            probation: HashMap::new(),
            stalls: Stalls::new(),
            membership,
        }
    }

    pub(super) fn run(mut self) -> Result<(), KafkaError> {
        let mut outcome = Ok(());
        while self.membership.is_running() {
            outcome = panics::contain(|| self.turn()).unwrap_or_else(|panic| {
                Err(KafkaError::Fatal(format!("the consumer of group {} panicked: {panic}", self.membership.group)))
            });
            if let Err(error) = &outcome {
                tracing::error!(group = self.membership.group, %error, "consumer ends");
                break;
            }
        }
        for mailbox in &self.membership.mailboxes {
            mailbox.close();
        }
        if outcome.is_ok() {
            // Workers finish what they hold; heartbeats go on, nothing is revoked without a poll.
            self.membership.wait_to_leave();
        }
        self.commit(CommitMode::Sync);
        // Claims hold the client as well, and what they are granted now only costs the next owner a claim.
        self.membership.enter(Phase::Leaving);
        self.membership.claims.wait_idle(CLAIMS_END);
        let ours = sources(&self.held(|_| true));
        // Dropping the consumer leaves the group; the revocation callback runs in there.
        drop(self.consumer);
        ours.iter().chain(&self.membership.claims.all()).for_each(|source| self.membership.lose(source));
        self.membership.heartbeat.retire();
        outcome
    }

    fn turn(&mut self) -> Result<(), KafkaError> {
        self.membership.heartbeat.ready();
        self.pause_wanted();
        claiming::ask(&self.membership);
        self.take_over();
        self.end_probation();
        self.stalls.look(&self.membership);
        if self.last_commit.elapsed() >= COMMIT_INTERVAL {
            self.commit(CommitMode::Async);
        }
        self.wait_for_room();
        lock(&self.membership.revoked).clear();
        let mut fetched: Vec<Vec<Record>> = vec![Vec::new(); self.membership.mailboxes.len()];
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
                    fetched[self.membership.worker_of(&record.source)].push(record);
                }
                Some(Err(error)) => self.on_error(&error)?,
            }
            wait = Duration::ZERO;
        }
        if let Some(reason) = self.membership.take_failure() {
            return Err(KafkaError::Fatal(format!("the consumer of group {}: {reason}", self.membership.group)));
        }
        let revoked = std::mem::take(&mut *lock(&self.membership.revoked));
        self.stalls.forget(&revoked);
        for (mailbox, mut records) in self.membership.mailboxes.iter().zip(fetched) {
            if !revoked.is_empty() {
                // Granted again within this turn, they would stand behind a gap.
                records.retain(|record| !revoked.contains(&record.source));
            }
            if !records.is_empty() {
                for run in records.chunk_by(|a, b| a.source == b.source) {
                    self.stalls.handed(&run[0].source, run[run.len() - 1].offset + 1);
                }
                mailbox.push(records);
            }
        }
        Ok(())
    }

    /// Waits while no mailbox has room. One that stays full while others have room must not hold those up,
    /// and all of them together must not hold up the group: its partitions are paused, and polling goes on.
    fn wait_for_room(&mut self) {
        let waiting_since = Instant::now();
        while self.membership.is_running() {
            self.resume_drained();
            let full: Vec<usize> = (0..self.full.len())
                .filter(|&index| !self.full[index] && !self.membership.mailboxes[index].wait_for_room(Duration::ZERO))
                .collect();
            let Some(&first) = full.first() else { return };
            let is_alone = full.len() < self.full.len();
            let patience = if is_alone { PAUSE_ONE_AFTER } else { PAUSE_ALL_AFTER };
            if waiting_since.elapsed() < patience {
                self.membership.mailboxes[first].wait_for_room(POLL_WAIT.min(patience));
                self.membership.heartbeat.beat();
                continue;
            }
            tracing::debug!(group = self.membership.group, ?full, "mailboxes stay full; their partitions are paused");
            for index in full {
                self.full[index] = true;
            }
            self.pause(|poller, source| poller.full[poller.membership.worker_of(source)]);
            return;
        }
    }

    /// Goes on with the partitions of mailboxes that have room again.
    fn resume_drained(&mut self) {
        let drained =
            |index: &usize| self.full[*index] && self.membership.mailboxes[*index].wait_for_room(Duration::ZERO);
        let drained: HashSet<usize> = (0..self.full.len()).filter(drained).collect();
        if drained.is_empty() {
            return;
        }
        for &index in &drained {
            self.full[index] = false;
        }
        let list = self.held(|source| {
            drained.contains(&self.membership.worker_of(source)) && !self.membership.claims.wants(source)
        });
        if list.count() > 0
            && let Err(error) = self.consumer.resume(&list)
        {
            tracing::warn!(group = self.membership.group, %error, "cannot resume after a pause");
        }
    }

    fn held(&self, wanted: impl Fn(&TopicPartition) -> bool) -> TopicPartitionList {
        held(&self.consumer, wanted).unwrap_or_default()
    }

    fn pause(&self, wanted: impl Fn(&Self, &TopicPartition) -> bool) {
        let list = self.held(|source| wanted(self, source));
        if list.count() > 0
            && let Err(error) = self.consumer.pause(&list)
        {
            tracing::warn!(group = self.membership.group, %error, "cannot pause partitions");
        }
    }

    /// Partitions that stopped, or are claimed anew, are not fetched meanwhile.
    fn pause_wanted(&self) {
        let pauses = std::mem::take(&mut lock(&self.membership.requests).pauses);
        if !pauses.is_empty() {
            self.pause(|_, source| pauses.contains(source));
        }
    }

    /// Goes on with the partitions whose claims were granted since the last turn. One whose mailbox stays full
    /// waits until it has room.
    fn take_over(&mut self) {
        let granted = self.membership.claims.take_granted(|source| !self.full[self.membership.worker_of(source)]);
        if granted.is_empty() {
            return;
        }
        let begun = begin(&self.consumer, &granted);
        for (source, claim) in granted {
            if let Err(error) = &begun {
                tracing::debug!(group = self.membership.group, partition = %source, %error, "cannot take over yet");
                self.membership.partitions.pending(&source.topic, source.partition, Some(&error.to_string()));
                self.membership.claims.want_later(&source);
                continue;
            }
            if self.membership.claims.has_halted(&source) {
                self.probation.insert(source.clone(), (claim.next_offset, Instant::now() + PROBATION));
            }
            self.stalls.handed(&source, claim.next_offset);
            self.membership.grant(&source, claim);
        }
    }

    /// A partition that stood runs again once it got further, or has not stopped for a while.
    fn end_probation(&mut self) {
        let (membership, now) = (&self.membership, Instant::now());
        self.probation.retain(|source, (from, until)| {
            let Some(claim) = membership.mailbox(source).claims().remove(source) else { return false };
            if claim.next_offset == *from && now < *until {
                return true;
            }
            membership.claims.is_well(source);
            membership.partitions.running(&source.topic, source.partition);
            false
        });
    }

    fn commit(&mut self, mode: CommitMode) {
        self.last_commit = Instant::now();
        // A commit for a partition that moved on would put its new owner's offset back.
        lock(&self.membership.requests)
            .commits
            .retain(|source, _| self.membership.mailbox(source).claims_partition(source));
        let commits = take_commits(&self.membership, |_| true);
        if commits.count() > 0
            && let Err(error) = self.consumer.commit(&commits, mode)
        {
            // Kafka only follows: the next commit carries the newer offset anyway.
            tracing::debug!(group = self.membership.group, %error, "offset commit");
        }
    }

    fn on_error(&self, error: &ClientError) -> Result<(), KafkaError> {
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            return Err(KafkaError::Fatal(format!(
                "the consumer of group {} cannot go on: {reason} ({code})",
                self.membership.group
            )));
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset) => self.reclaim_all(error),
            // All clients of the process meet them: said once.
            Some(
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve,
            ) => voice::error(error, ""),
            _ => voice::complain(&format!("the consumer of group {} goes on trying: {error}", self.membership.group)),
        }
        Ok(())
    }

    /// An offset is not there any more. The client does not say which partition's and has stopped
    /// fetching it, so all are claimed anew: the owner judges each against what Kafka keeps.
    fn reclaim_all(&self, error: &ClientError) {
        tracing::warn!(group = self.membership.group, %error, "an offset is out of range; claiming all partitions anew");
        for mailbox in &self.membership.mailboxes {
            for source in mailbox.claims().into_keys() {
                mailbox.revoke(&source);
                lock(&self.membership.revoked).insert(source.clone());
                self.membership.want(&source);
            }
        }
    }
}
