//! Where each commands partition stands, and who may move it: rows of `throughline.offsets`.
//!
//! A claim raises the epoch, so whoever held the partition before loses its next compare-and-set.
//! PostgreSQL is authoritative; Kafka is only asked what it still keeps. An offset that is not there
//! any more, or a topic that was created again, is never passed over in silence.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use tokio::runtime::Handle;

use crate::kafka::client::Inquirer;
use crate::kafka::consumer::{ClaimError, Committed};
use crate::kafka::{Claim, PartitionOwner, TopicPartition, topic_id};
use crate::settings::LostOffsets;
use crate::store::{Database, Pooled, StoreError};

/// Takes a partition over, or enters a new one at the first offset kept. $1 partition, $2 topic,
/// $3 group, $4 first offset kept, $5 owner, $6 Kafka's id of the topic (null: unknown).
const CLAIM: &str = "
    insert into throughline.offsets as o (partition, source_topic, group_id, next_offset, epoch, owner, topic_uuid)
    values ($1, $2, $3, $4, 1, $5, $6)
    on conflict (partition, source_topic, group_id) do update
        set epoch = o.epoch + 1, owner = excluded.owner, updated_at = now(),
            topic_uuid = coalesce(o.topic_uuid, excluded.topic_uuid)
    returning next_offset, epoch, topic_uuid";

/// Accepts a loss: the claim just made goes on at the first offset kept. $1 partition, $2 topic,
/// $3 group, $4 epoch, $5 offset, $6 Kafka's id of the topic.
const START_OVER: &str = "
    update throughline.offsets set next_offset = $5, topic_uuid = coalesce($6, topic_uuid), updated_at = now()
    where partition = $1 and source_topic = $2 and group_id = $3 and epoch = $4";

/// Kafka's ids of the commands topics, as the claims found them.
#[derive(Debug, Default)]
pub(super) struct TopicIds {
    ids: Mutex<HashMap<String, String>>,
}

impl TopicIds {
    /// What stands for a topic in the ids of commands that carry none. Offsets begin anew in a topic
    /// that was created again, so its name alone would give new commands the ids of old ones.
    pub fn namespace(&self, topic: &str) -> String {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.get(topic).map_or_else(|| topic.to_owned(), |id| format!("{topic}@{id}"))
    }

    /// The id that the last claim found.
    pub fn get(&self, topic: &str) -> Option<String> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    fn note(&self, topic: &str, id: &str) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned(), id.to_owned());
    }
}

/// Claims the partitions of one lane.
pub(super) struct OffsetsOwner {
    pub database: Database,
    /// Runs the claims: they are made on the consumer's own thread.
    pub runtime: Handle,
    pub group: String,
    /// Who holds the claim, for people.
    pub owner: String,
    pub on_lost: LostOffsets,
    pub topic_ids: Arc<TopicIds>,
    /// Asks for ids and watermarks beside the group's own client.
    pub kafka: Inquirer,
    pub request_wait: Duration,
}

/// A partition's row, right after the claim.
struct Row {
    next_offset: i64,
    epoch: i64,
    topic_id: Option<String>,
}

impl PartitionOwner for OffsetsOwner {
    fn claim(
        &self,
        source: &TopicPartition,
        _committed: Committed,
        watermarks: (i64, i64),
    ) -> Result<Claim, ClaimError> {
        let topic_id = topic_id::topic_id(self.kafka.client(), &source.topic, self.request_wait)
            .map_err(|error| ClaimError::Transient(error.to_string()))?;
        let row = self.runtime.block_on(self.take_over(source, watermarks.0, topic_id.as_deref()))?;
        let loss = match self.loss(source, &row, topic_id.as_deref())? {
            None => None,
            Some((reason, first)) if self.on_lost == LostOffsets::Earliest => Some((reason, first)),
            Some((reason, first)) => {
                return Err(ClaimError::Halt {
                    reason: format!("{reason} Nothing is skipped in silence."),
                    cure: format!(
                        "To accept the loss and go on at offset {first}, restart once with \
                         THROUGHLINE__PROCESSOR__ON_LOST_OFFSETS=earliest."
                    ),
                });
            }
        };
        let mut next_offset = row.next_offset;
        if let Some((reason, first)) = loss {
            tracing::warn!(group = self.group, partition = %source, reason, first,
                "loss accepted by processor.on_lost_offsets; going on at the first offset kept");
            metrics::counter!("throughline_offsets_lost_total", "group" => self.group.clone()).increment(1);
            self.runtime.block_on(self.start_over(source, row.epoch, first, topic_id.as_deref()))?;
            next_offset = first;
        }
        if let Some(id) = &topic_id {
            self.topic_ids.note(&source.topic, id);
        }
        Ok(Claim { epoch: row.epoch, next_offset, seq: 0 })
    }
}

impl OffsetsOwner {
    async fn take_over(&self, source: &TopicPartition, first: i64, topic_id: Option<&str>) -> Result<Row, ClaimError> {
        let client = self.database.client().await.map_err(claim_error)?;
        let topic: &str = &source.topic;
        let claimed =
            client.query_one(CLAIM, &[&source.partition, &topic, &self.group, &first, &self.owner, &topic_id]).await;
        let row = kept(client, claimed, "claim a partition")?;
        Ok(Row { next_offset: row.get(0), epoch: row.get(1), topic_id: row.get(2) })
    }

    /// Why the stored offset cannot be resumed, and the first offset kept; none when it can.
    fn loss(
        &self,
        source: &TopicPartition,
        row: &Row,
        topic_id: Option<&str>,
    ) -> Result<Option<(String, i64)>, ClaimError> {
        // Asked after the claim: until then the previous owner may have gone on.
        let (first, next) = self
            .kafka
            .fetch_watermarks(&source.topic, source.partition, self.request_wait)
            .map_err(|error| ClaimError::Transient(format!("cannot read the offsets kept: {error}")))?;
        let stored = row.next_offset;
        let reason = match (row.topic_id.as_deref(), topic_id) {
            (Some(old), Some(new)) if old != new => format!(
                "Topic {} was created again (its id was {old}, it is {new}): offset {stored} of {source} meant a record of the \
                 old one.",
                source.topic
            ),
            _ if stored < first => format!(
                "Offset {stored} of {source} has expired: Kafka keeps {first} to {next}, so up to {} commands were dropped \
                 by retention before they were handled.",
                first - stored
            ),
            _ if stored > next => format!(
                "Offset {stored} of {source} is beyond the end: Kafka keeps {first} to {next}. The partition was \
                 truncated, or the topic was created again."
            ),
            _ => return Ok(None),
        };
        Ok(Some((reason, first)))
    }

    async fn start_over(
        &self,
        source: &TopicPartition,
        epoch: i64,
        first: i64,
        topic_id: Option<&str>,
    ) -> Result<(), ClaimError> {
        let client = self.database.client().await.map_err(claim_error)?;
        let topic: &str = &source.topic;
        let moved =
            client.execute(START_OVER, &[&source.partition, &topic, &self.group, &epoch, &first, &topic_id]).await;
        kept(client, moved, "start a partition over").map(drop)
    }
}

/// An answer, and its connection back into the pool; or the failure, and the connection ended with it.
fn kept<T>(client: Pooled, answer: Result<T, tokio_postgres::Error>, step: &'static str) -> Result<T, ClaimError> {
    answer.map_err(|source| {
        client.discard();
        claim_error(StoreError::Statement { step, source })
    })
}

fn claim_error(error: StoreError) -> ClaimError {
    // A claim carries no data: whatever refuses it is the world's.
    ClaimError::Transient(error.to_string())
}
