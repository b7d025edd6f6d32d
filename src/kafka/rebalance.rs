//! What the consumer does when the group changes: claim what it is given, drop what it loses.
//!
//! The callbacks run inside `poll`, on the consumer's thread, and wait for a moment at most; heartbeats go on
//! in the client's own threads. The client is told of a partition only after PostgreSQL granted its claim: what
//! the group assigns and what the client consumes are two things.

use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::claiming;
use super::mailbox::Claim;
use super::membership::{Membership, Rebalancer, lock};
use super::record::TopicPartition;
use super::voice;

/// An assignment waits this long for its claims, at most. What takes longer (a refill after a reset, a
/// partition without a leader, a database that is away) is taken over later.
const CLAIM_GRACE: Duration = Duration::from_secs(2);

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
        metrics::counter!("throughline_rebalances_total", "group" => self.0.group.clone()).increment(1);
        let result = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, list),
            _ => self.revoke(consumer, list),
        };
        if let Err(error) = result {
            // Left unanswered, the group would wait for us for ever: the poll loop sees it and ends.
            self.0.fail(format!("a rebalance could not be answered: {error}"));
        }
    }
}

impl Rebalancer {
    /// What is granted within a moment is consumed from the start. The rest is taken over when its claim is
    /// granted: the group is not kept waiting, and the client knows nothing of it until then.
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), ClientError> {
        let assigned = sources(list);
        for source in &assigned {
            self.0.partitions.pending(&source.topic, source.partition, None);
            self.0.claims.want(source);
        }
        claiming::ask(&self.0);
        self.0.claims.wait_for(&assigned, CLAIM_GRACE);
        let has_room = |source: &TopicPartition| self.0.mailbox(source).wait_for_room(Duration::ZERO);
        let granted = self.0.claims.take_granted(|source| assigned.contains(source) && has_room(source));
        if !assigned.is_empty() {
            let (claimed, pending) = (granted.len(), assigned.len() - granted.len());
            tracing::info!(group = self.0.group, claimed, pending, "partitions assigned");
        }
        begin(consumer, &granted)?;
        granted.into_iter().for_each(|(source, claim)| self.0.grant(&source, claim));
        Ok(())
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), ClientError> {
        let lost = consumer.assignment_lost();
        let revoked = sources(list);
        revoked.iter().for_each(|source| self.0.lose(source));
        lock(&self.0.revoked).extend(revoked.iter().cloned());
        if !revoked.is_empty() {
            tracing::info!(group = self.0.group, partitions = revoked.len(), lost, "partitions revoked");
        }
        let commits = take_commits(&self.0, |source| revoked.contains(source));
        if !lost && commits.count() > 0 {
            // Best effort: PostgreSQL holds the truth, the next owner starts from there.
            if let Err(error) = consumer.commit(&commits, CommitMode::Sync) {
                tracing::debug!(group = self.0.group, %error, "commit before revocation");
            }
        }
        consumer.incremental_unassign(&held(consumer, |source| revoked.contains(source))?)
    }
}

/// Consumes each of `granted` from the offset of its claim, whatever the client did with it before.
///
/// That offset is all that the client is ever told. Begun at an end that must be asked for, and then moved, a
/// partition goes to that end when the answer comes late; moved while it starts, it does not start. Both were
/// seen as a partition that waits for ever, without a word.
pub(super) fn begin(
    consumer: &BaseConsumer<Rebalancer>,
    granted: &[(TopicPartition, Claim)],
) -> Result<(), ClientError> {
    let mut list = TopicPartitionList::new();
    for (source, claim) in granted {
        list.add_partition_offset(&source.topic, source.partition, Offset::Offset(claim.next_offset))?;
    }
    let begun = held(consumer, |source| granted.iter().any(|(other, _)| other == source))?;
    if list.count() > 0 {
        // The client keeps a pause beyond the end of an assignment. Ended first of all, while nothing starts.
        consumer.resume(&list)?;
    }
    if begun.count() > 0 {
        consumer.incremental_unassign(&begun)?;
    }
    // None as well: it answers the group.
    consumer.incremental_assign(&list)
}

/// The partitions that the client consumes: those that are claimed, and those that stand.
pub(super) fn held(
    consumer: &BaseConsumer<Rebalancer>,
    wanted: impl Fn(&TopicPartition) -> bool,
) -> Result<TopicPartitionList, ClientError> {
    let mut list = TopicPartitionList::new();
    for source in sources(&consumer.assignment()?).iter().filter(|source| wanted(source)) {
        list.add_partition(&source.topic, source.partition);
    }
    Ok(list)
}

/// Takes the commits asked for those partitions that are `wanted`, and leaves the others.
pub(super) fn take_commits(membership: &Membership, wanted: impl Fn(&TopicPartition) -> bool) -> TopicPartitionList {
    let mut requests = lock(&membership.requests);
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
