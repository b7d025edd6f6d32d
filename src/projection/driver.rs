//! A projection driven by hand: the claims and batches of the loop, with nobody's group and nobody's topic.
//!
//! For whoever has to walk through sequences of operations faster than a group joins. What it calls is
//! what the loop calls; it decides nothing itself, and knows no Kafka.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::claim::{CheckpointOwner, TopicView};
use super::state::{self, Readiness};
use super::{ProjectionLoopError, Projector, reset, run};
use crate::health::{Health, PartitionState};
use crate::kafka::consumer::Committed;
use crate::kafka::{Claim, Consumer, Mailbox, Record, TopicPartition};

/// Nobody asks whether it is alive.
const SILENCE_MAX: Duration = Duration::MAX;

/// One projection, one member.
pub struct Driver<E: Send + Sync + 'static> {
    owner: CheckpointOwner<E>,
    applier: Applier<E>,
    consumer: Arc<Consumer>,
    mailbox: Arc<Mailbox>,
    health: Arc<Health>,
    topic: Arc<str>,
}

impl<E: Send + Sync + 'static> Driver<E> {
    /// A member that has claimed nothing yet.
    pub fn new(projector: Projector<E>) -> Self {
        let health = Health::new(SILENCE_MAX);
        let heartbeat = health.register(projector.name());
        let options = run::consumer_options(&projector, &heartbeat, &health.partitions(projector.name()));
        let owner = CheckpointOwner { projector: projector.clone() };
        let consumer = Arc::new(Consumer::by_hand(&options, owner));
        let mailbox = consumer.mailboxes()[0].clone();
        let applier =
            Applier::new(projector.clone(), consumer.clone(), mailbox.clone(), heartbeat, CancellationToken::new());
        let topic = projector.topic.as_str().into();
        Self { owner: CheckpointOwner { projector }, applier, consumer, mailbox, health, topic }
    }

    /// Claims a partition, as when Kafka assigns it. `committed` is what the group's commit says, named
    /// already (`name_for`).
    pub async fn claim(
        &self,
        partition: i32,
        committed: &Committed,
        view: &TopicView<'_>,
    ) -> Result<Claim, ProjectionLoopError> {
        let held = self.owner.claim_checkpoint(partition, committed, view).await?;
        let claim = Claim { epoch: held.epoch, next_offset: held.next_offset, seq: held.seq };
        self.consumer.grant(&self.source(partition), claim.clone());
        Ok(claim)
    }

    /// The name that a commit of the group is given before a claim acts on it; none where it has one.
    pub fn name_for(metadata: &str, epoch: i64) -> Option<String> {
        reset::name_for(metadata, epoch)
    }

    /// What a commit of ours carries.
    pub fn metadata(claim: &Claim) -> String {
        reset::metadata(claim.epoch)
    }

    /// The claim on a partition, unless it was lost, given back or stopped.
    pub fn held(&self, partition: i32) -> Option<Claim> {
        self.mailbox.claims().remove(&self.source(partition))
    }

    /// Gives a claim back, as when Kafka keeps the offset no more: it is claimed anew.
    pub fn give_back(&self, partition: i32) {
        if let Some(claim) = self.held(partition) {
            self.consumer.reclaim(&self.source(partition), claim.epoch);
        }
    }

    /// Why a partition stopped; none while it goes on.
    pub fn stands(&self, partition: i32) -> Option<String> {
        let reports = self.health.partition_reports();
        let ours = reports.into_iter().find(|report| report.partition == partition)?;
        ours.reason.filter(|_| ours.state == PartitionState::Standing)
    }

    /// The loop's regular look: whether it may go on. Claims that are another's by now are given back.
    pub async fn look(&mut self) -> Result<bool, ProjectionLoopError> {
        Ok(state::sample(&mut self.applier).await? == Readiness::Ready)
    }

    /// Applies records of claimed partitions, in batches.
    pub async fn apply(&mut self, records: Vec<Record>) {
        self.consumer.feed(records);
        let settings = self.owner.projector.settings.clone();
        let limits = &settings.projection;
        while let Some(batch) = self.mailbox.try_take(limits.batch_events_max, limits.batch_bytes_max) {
            self.applier.process(batch).await;
        }
    }

    fn source(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition }
    }
}
