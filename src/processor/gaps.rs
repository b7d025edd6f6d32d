//! Offsets without a record behind a claim: markers of transactions, and what was aborted.
//!
//! Readers pass over them and move nothing. Once retention has removed them too, nobody can tell them from
//! commands that were never handled. So the stored offset is moved past them while they can still be looked
//! at: soon after an idle partition's end ran ahead of it, and when the processor stops.

use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::BoundedContext;
use crate::kafka::{Claim, Consumer, KafkaError, Peek, TopicPartition};
use crate::store::{Database, StoreError};

use super::worker::Worker;

/// Moves a claim that did nothing meanwhile. $1 partition, $2 topic, $3 group, $4 epoch, $5 offset expected,
/// $6 offset.
const PASS: &str = "
    update throughline.offsets set next_offset = $6, updated_at = now()
    where partition = $1 and source_topic = $2 and group_id = $3 and epoch = $4 and next_offset = $5";

/// A claim and the end of what stands behind it without a record.
pub(super) struct Gap {
    pub source: TopicPartition,
    pub claim: Claim,
    pub end: i64,
}

/// The claims among `claims` behind which stand offsets and no record. Blocks.
pub(super) fn find(peek: &Peek, mut claims: HashMap<TopicPartition, Claim>) -> Result<Vec<Gap>, KafkaError> {
    let positions: Vec<_> = claims.iter().map(|(source, claim)| (source.clone(), claim.next_offset)).collect();
    let bare = peek.bare_ends(&positions)?;
    let gap = |(source, end)| claims.remove(&source).map(|claim| Gap { source, claim, end });
    Ok(bare.into_iter().filter_map(gap).collect())
}

/// Moves the idle claims of consumers that have ended their work, before their partitions are given up.
pub(super) async fn pass_before_the_end(
    peek: &Arc<Peek>,
    database: &Database,
    consumers: &[Consumer],
    groups: &[String],
) -> Result<(), KafkaError> {
    for (consumer, group) in consumers.iter().zip(groups) {
        let claims = consumer.mailboxes().iter().flat_map(|mailbox| mailbox.claims()).collect();
        let peek = peek.clone();
        let found = tokio::task::spawn_blocking(move || find(&peek, claims)).await;
        for gap in found.map_err(|error| KafkaError::Fatal(error.to_string()))?? {
            let topic: &str = &gap.source.topic;
            let Claim { epoch, next_offset, .. } = gap.claim;
            let moved = async {
                let client = database.client().await?;
                client
                    .execute(PASS, &[&gap.source.partition, &topic, group, &epoch, &next_offset, &gap.end])
                    .await
                    .map_err(StoreError::at("pass offsets without a record"))
            };
            if let Err(error) = moved.await {
                tracing::debug!(partition = %gap.source, %error, "the offset stays before what is no record");
                return Ok(());
            }
        }
    }
    Ok(())
}

impl<C: BoundedContext> Worker<C> {
    /// Moves idle claims past what holds no record. What cannot be moved now is found again; a batch that
    /// expects the old offset cannot be under way, since this worker is the one that draws it.
    pub(super) async fn pass_gaps(&self) {
        for (lane, mailbox) in self.lanes.mailboxes.iter().enumerate() {
            for (source, (claim, end)) in mailbox.take_passed() {
                let Some(session) = self.session.as_ref().filter(|_| self.drawn.is_none()) else { continue };
                let (topic, group): (&str, _) = (&source.topic, &self.scope.groups[lane]);
                let Claim { epoch, next_offset, .. } = claim;
                let moved =
                    session.client.execute(PASS, &[&source.partition, &topic, group, &epoch, &next_offset, &end]).await;
                match moved {
                    Ok(1) => mailbox.advance(&source, &Claim { next_offset: end, ..claim }),
                    // The next batch finds out whose the partition is.
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(partition = %source, %error, "the offset stays before what is no record");
                    }
                }
            }
        }
    }
}
