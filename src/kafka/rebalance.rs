//! What the consumer does when the group changes: claim what it is given, drop what it loses.
//!
//! The callbacks run inside `poll`, on the consumer's thread, where blocking is allowed; heartbeats
//! go on in the client's own threads. A partition is handed to its worker only after PostgreSQL
//! granted the claim.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::consumer::{CLAIM_RETRY_WAIT, Committed, REQUEST_WAIT, Shared, lock};
use super::mailbox::Claim;
use super::record::TopicPartition;

/// Answers to a member that the group has given up.
const FENCED: [RDKafkaErrorCode; 3] =
    [RDKafkaErrorCode::UnknownMemberId, RDKafkaErrorCode::IllegalGeneration, RDKafkaErrorCode::FencedInstanceId];
/// Partitions claimed at once when several are assigned.
const CLAIMS_AT_ONCE_MAX: usize = 4;

/// The client's callbacks.
pub(super) struct Rebalancer {
    shared: Arc<Shared>,
}

impl Rebalancer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
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
            // Left unanswered, the group would wait for us for ever: the poll loop sees it and ends.
            *lock(&self.shared.failure) = Some(format!("a rebalance could not be answered: {error}"));
        }
    }
}

impl Rebalancer {
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Result<(), ClientError> {
        let committed = if self.shared.read_committed_offsets && list.count() > 0 {
            self.named_commits(consumer, list)
        } else {
            Some(HashMap::new())
        };
        let (mut idle, mut claimed) = (TopicPartitionList::new(), TopicPartitionList::new());
        let assigned = sources(list);
        let claims = match &committed {
            Some(committed) => self.claim_all(consumer, &assigned, committed),
            None => vec![None; assigned.len()],
        };
        for (source, claim) in assigned.into_iter().zip(claims) {
            let offset = match claim {
                Some(claim) => {
                    tracing::info!(group = self.shared.group, partition = %source, offset = claim.next_offset,
                        epoch = claim.epoch, "partition claimed");
                    let offset = Offset::Offset(claim.next_offset);
                    lock(&self.shared.halted).remove(&source);
                    claimed.add_partition(&source.topic, source.partition);
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
        // The client keeps a pause beyond a revocation: one that was idle before would stay so. Ended before
        // the assignment, whose start of fetching runs in the client's own thread: when both met, what was
        // fetched counted as outdated and was dropped, and the partition stood still for good.
        if claimed.count() > 0 {
            consumer.resume(&claimed)?;
        }
        consumer.incremental_assign(list)?;
        if idle.count() > 0 {
            consumer.pause(&idle)?;
        }
        Ok(())
    }

    /// Claims several partitions at a time: each waits for Kafka and PostgreSQL in turn, and none is
    /// consumed before the last is claimed.
    fn claim_all(
        &self,
        consumer: &BaseConsumer<Self>,
        assigned: &[TopicPartition],
        committed: &HashMap<TopicPartition, Committed>,
    ) -> Vec<Option<Claim>> {
        let share = assigned.len().div_ceil(CLAIMS_AT_ONCE_MAX).max(1);
        std::thread::scope(|scope| {
            let claim = |source: &TopicPartition| {
                let held = committed.get(source).cloned().flatten();
                self.shared.claim(consumer, source, &held)
            };
            let threads: Vec<_> = assigned
                .chunks(share)
                .map(|some| (some.len(), scope.spawn(move || some.iter().map(claim).collect::<Vec<_>>())))
                .collect();
            // A claim that panicked is a partition that stays idle, as after any refusal.
            threads
                .into_iter()
                .flat_map(|(count, thread)| thread.join().unwrap_or_else(|_| vec![None; count]))
                .collect()
        })
    }

    /// What Kafka holds, with the names that the owner wants; none once the assignment is not ours.
    fn named_commits(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Option<HashMap<TopicPartition, Committed>> {
        let epochs = loop {
            match self.shared.owner.epochs() {
                Ok(epochs) => break epochs,
                Err(error) => {
                    tracing::warn!(group = self.shared.group, %error, "cannot read epochs; trying again");
                    self.try_again(consumer)?;
                }
            }
        };
        let committed = self.committed_offsets(consumer, list)?;
        self.named(consumer, committed, &epochs)
    }

    /// Waits; none when there is nothing to try again for.
    fn try_again(&self, consumer: &BaseConsumer<Self>) -> Option<()> {
        if !self.shared.is_running() || consumer.assignment_lost() {
            return None;
        }
        std::thread::sleep(CLAIM_RETRY_WAIT);
        Some(())
    }

    /// What Kafka holds; none once the assignment is not ours any more.
    fn committed_offsets(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Option<HashMap<TopicPartition, Committed>> {
        loop {
            match consumer.committed_offsets(list.clone(), REQUEST_WAIT) {
                Ok(committed) => {
                    let pair = |element: &TopicPartitionListElem<'_>| {
                        let offset = match element.offset() {
                            Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
                            _ => None,
                        };
                        (TopicPartition { topic: element.topic().into(), partition: element.partition() }, offset)
                    };
                    return Some(committed.elements().iter().map(pair).collect());
                }
                // Guessing here could overlook an operator's reset.
                Err(error) => {
                    tracing::warn!(group = self.shared.group, %error, "cannot read committed offsets; trying again");
                    self.try_again(consumer)?;
                }
            }
        }
    }

    /// Gives the commits of others the names that the owner wants, in Kafka first: the broker takes
    /// them from members of the group's present generation, so what a later owner reads is already
    /// named. None once the assignment is not ours any more.
    fn named(
        &self,
        consumer: &BaseConsumer<Self>,
        mut committed: HashMap<TopicPartition, Committed>,
        epochs: &HashMap<i32, i64>,
    ) -> Option<HashMap<TopicPartition, Committed>> {
        let mut renamed = TopicPartitionList::new();
        for (source, held) in &mut committed {
            let Some((offset, metadata)) = held else { continue };
            let epoch = epochs.get(&source.partition).copied().unwrap_or_default();
            let Some(name) = self.shared.owner.name_for(metadata, epoch) else { continue };
            let mut element = renamed.add_partition(&source.topic, source.partition);
            element.set_offset(Offset::Offset(*offset)).ok()?;
            element.set_metadata(name.as_str());
            *metadata = name;
        }
        crate::crash_point!("consumer.before_naming");
        while renamed.count() > 0 {
            match consumer.commit(&renamed, CommitMode::Sync) {
                Ok(()) => {
                    tracing::info!(group = self.shared.group, commits = ?renamed, "operators' resets named");
                    break;
                }
                Err(error) if error.rdkafka_error_code().is_some_and(|code| FENCED.contains(&code)) => {
                    // The client learns it only after this callback: until then nothing is claimed.
                    tracing::warn!(group = self.shared.group, %error, "not a member any more; claiming nothing");
                    return None;
                }
                Err(error) => {
                    tracing::warn!(group = self.shared.group, %error, "cannot name a reset; trying again");
                    self.try_again(consumer)?;
                }
            }
        }
        Some(committed)
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), ClientError> {
        let lost = consumer.assignment_lost();
        let revoked = sources(list);
        for source in &revoked {
            self.shared.mailbox(source).revoke(source);
            lock(&self.shared.halted).remove(source);
        }
        lock(&self.shared.revoked).extend(revoked.iter().cloned());
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

/// Takes the commits asked for those partitions that are `wanted`, and leaves the others.
pub(super) fn take_commits(shared: &Shared, wanted: impl Fn(&TopicPartition) -> bool) -> TopicPartitionList {
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

pub(super) fn sources(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let element = |element: &TopicPartitionListElem<'_>| TopicPartition {
        topic: element.topic().into(),
        partition: element.partition(),
    };
    list.elements().iter().map(element).collect()
}
