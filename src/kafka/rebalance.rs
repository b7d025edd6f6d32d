//! What the consumer does when the group changes: claim what it is given, drop what it loses.
//!
//! The callbacks run inside `poll`, on the consumer's thread, and wait for a moment at most; heartbeats go on
//! in the client's own threads. A partition is handed to its worker only after PostgreSQL granted the claim.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::claims;
use super::consumer::{Shared, lock};
use super::mailbox::Claim;
use super::record::TopicPartition;
use super::voice;

/// An assignment waits this long for its claims, at most. What takes longer (a refill after a reset, a
/// partition without a leader, a database that is away) is taken over later.
const CLAIM_GRACE: Duration = Duration::from_secs(2);

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
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        voice::log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        voice::error(&error, reason);
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
            self.shared.fail(format!("a rebalance could not be answered: {error}"));
        }
    }
}

impl Rebalancer {
    /// What is granted within a moment is consumed from the start of its assignment. The rest is assigned
    /// idle, and taken over when its claim is granted: the group is not kept waiting.
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Result<(), ClientError> {
        let assigned = sources(list);
        for source in &assigned {
            self.shared.partitions.pending(&source.topic, source.partition, None);
            self.shared.claims.want(source);
        }
        claims::ask(&self.shared);
        self.shared.claims.wait_for(&assigned, CLAIM_GRACE);
        let granted = self.shared.claims.take_granted(|source| assigned.contains(source));
        let granted: HashMap<TopicPartition, Claim> = granted.into_iter().collect();
        let (mut idle, mut claimed) = (TopicPartitionList::new(), TopicPartitionList::new());
        for source in &assigned {
            let (some, offset) = match granted.get(source) {
                Some(claim) => (&mut claimed, Offset::Offset(claim.next_offset)),
                None => (&mut idle, Offset::End),
            };
            some.add_partition(&source.topic, source.partition);
            list.set_partition_offset(&source.topic, source.partition, offset)?;
        }
        if !assigned.is_empty() {
            let (claimed, pending) = (claimed.count(), idle.count());
            tracing::info!(group = self.shared.group, claimed, pending, "partitions assigned");
        }
        granted.into_iter().for_each(|(source, claim)| self.shared.grant(&source, claim));
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

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), ClientError> {
        let lost = consumer.assignment_lost();
        let revoked = sources(list);
        revoked.iter().for_each(|source| self.shared.lose(source));
        lock(&self.shared.revoked).extend(revoked.iter().cloned());
        if !revoked.is_empty() {
            tracing::info!(group = self.shared.group, partitions = revoked.len(), lost, "partitions revoked");
        }
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
