//! One batch: rows and checkpoints in one transaction.
//!
//! A failing batch is halved until the failing event stands alone, so that its neighbours are applied
//! meanwhile; what then happens to it is [`super::setback`]'s matter. PostgreSQL is authoritative.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::checkpoint::{Checkpoint, Move};
use super::decode::{self, Body, Decoded, Item};
use super::handler::{self, ApplyFailure};
use super::transact::{self, Attempt};
use super::{LIVE, Projector, park, reset};
use crate::health::Heartbeat;
use crate::kafka::{Batch, Claim, Consumer, Mailbox, TopicPartition};
use crate::store::{Extent, Line, StoreError, bounded};

/// Applies batches, on a connection of its own.
pub(super) struct Applier<E: Send + Sync + 'static> {
    pub projector: Projector<E>,
    pub consumer: Arc<Consumer>,
    pub mailbox: Arc<Mailbox>,
    pub heartbeat: Heartbeat,
    pub shutdown: CancellationToken,
    /// Whether parked rows may be open: then each batch asks which of its keys are concerned.
    pub parked_open: bool,
    pub client: Option<Line>,
    /// Epochs seen per partition: a fresh claim may come with rows parked by its last owner.
    pub epochs: HashMap<i32, i64>,
    /// Seqs that operators discarded and that come again under the claims held, by partition.
    pub discarded: HashMap<i32, HashSet<i64>>,
    /// Events of one transaction: fewer while so many cannot finish in time.
    pub extent: Extent,
}

/// What is left to do of one batch.
pub(super) struct Work {
    pub ranges: Vec<Range<usize>>,
    /// Checkpoints as this batch stands; a partition missing here is dropped from the batch.
    pub held: HashMap<i32, Checkpoint>,
    pub sources: HashMap<i32, TopicPartition>,
    pub tries: u32,
    /// The last reason that was logged.
    pub told: String,
}

impl<E: Send + Sync + 'static> Applier<E> {
    pub(super) fn new(
        projector: Projector<E>,
        consumer: Arc<Consumer>,
        mailbox: Arc<Mailbox>,
        heartbeat: Heartbeat,
        shutdown: CancellationToken,
    ) -> Self {
        let extent = Extent::new(projector.settings.projection.batch_events_max);
        Self {
            projector,
            consumer,
            mailbox,
            heartbeat,
            shutdown,
            parked_open: true,
            client: None,
            epochs: HashMap::new(),
            discarded: HashMap::new(),
            extent,
        }
    }

    /// Applies a batch, or what can be applied of it. Returns early on shutdown: nothing is lost,
    /// since the checkpoint tells where to go on.
    pub(super) async fn process(&mut self, batch: Batch) {
        let mut work = Work::new(&batch);
        self.learn(&mut work).await;
        let mut decoded = decode::decode(&self.projector, batch, &self.discarded);
        metrics::counter!("throughline_projection_duplicates_total", "projection" => self.projector.name())
            .increment(decoded.duplicates);
        work.ranges.push(0..decoded.items.len());
        while let Some(range) = work.ranges.pop() {
            if self.shutdown.is_cancelled() {
                return;
            }
            let started = Instant::now();
            self.heartbeat.beat();
            let heartbeat = self.heartbeat.clone();
            match heartbeat.while_waiting("a batch", self.attempt(&decoded, range.clone(), &work.held)).await {
                Ok(Attempt::Applied(moves)) => self.applied(&mut work, &moves, &decoded, range, started),
                Ok(Attempt::Lost(lost)) => {
                    self.lost(&mut work, &lost);
                    work.ranges.push(range);
                }
                Err(ApplyFailure::World(error)) => self.wait_out(&mut work, range, &error).await,
                Err(ApplyFailure::Extent(error)) => self.narrow(&mut work, &decoded, range, &error).await,
                Err(ApplyFailure::Handler { code, reason }) => {
                    self.failed(&mut work, &mut decoded, range, code, reason).await;
                }
            }
        }
        for (source, reason) in decoded.halts {
            if work.held.contains_key(&source.partition) {
                self.consumer.halt(&source, &reason, &self.cure());
            }
        }
    }

    /// What a fresh claim comes with: rows parked by its last owner, and discarded events that come again.
    async fn learn(&mut self, work: &mut Work) {
        loop {
            let fresh: Vec<Checkpoint> = work
                .held
                .values()
                .filter(|held| self.epochs.get(&held.partition) != Some(&held.epoch))
                .copied()
                .collect();
            if fresh.is_empty() || self.shutdown.is_cancelled() {
                return;
            }
            let heartbeat = self.heartbeat.clone();
            match heartbeat.while_waiting("discarded events", self.discarded_ahead(&fresh)).await {
                Ok(mut found) => {
                    self.parked_open = true;
                    for Checkpoint { partition, epoch, .. } in fresh {
                        self.discarded.insert(partition, found.remove(&partition).unwrap_or_default());
                        self.epochs.insert(partition, epoch);
                    }
                }
                Err(error) => self.wait_out(work, 0..0, &error).await,
            }
        }
    }

    async fn discarded_ahead(&mut self, fresh: &[Checkpoint]) -> Result<HashMap<i32, HashSet<i64>>, StoreError> {
        let client = self.take_client().await?;
        let (partitions, seqs): (Vec<i32>, Vec<i64>) = fresh.iter().map(|held| (held.partition, held.seq)).unzip();
        let limit = self.projector.settings.database.round_trip();
        let asked = park::discarded_ahead(&*client, &self.projector.group, &partitions, &seqs);
        let found = bounded(limit, "look for discarded events", asked).await?;
        self.client = Some(client);
        Ok(found)
    }

    async fn attempt(
        &mut self,
        decoded: &Decoded<E>,
        range: Range<usize>,
        held: &HashMap<i32, Checkpoint>,
    ) -> Result<Attempt, ApplyFailure> {
        let items: Vec<&Item> =
            decoded.items[range].iter().filter(|item| held.contains_key(&item.record.source.partition)).collect();
        let moves = transact::moves(&items, &decoded.events, held);
        if moves.is_empty() {
            return Ok(Attempt::Applied(moves));
        }
        let projector = self.projector.clone();
        let mut client = self.take_client().await.map_err(ApplyFailure::World)?;
        let ask =
            self.parked_open || items.iter().any(|item| matches!(item.body, Body::Poison { .. } | Body::Discarded));
        let outcome = transact::transact(&projector, &mut client, &items, &decoded.events, &moves, ask).await;
        // After a failure the connection may be busy with what was given up; an answer that names the data is one.
        if outcome.is_ok() || matches!(outcome, Err(ApplyFailure::Handler { code: handler::REFUSED, .. })) {
            self.client = Some(client);
        }
        let (attempt, parked) = outcome?;
        self.parked_open |= parked;
        Ok(attempt)
    }

    async fn take_client(&mut self) -> Result<Line, StoreError> {
        match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => self.projector.connect(LIVE).await,
        }
    }

    fn applied(
        &mut self,
        work: &mut Work,
        moves: &[Move],
        decoded: &Decoded<E>,
        range: Range<usize>,
        started: Instant,
    ) {
        work.tries = 0;
        self.heartbeat.ready();
        if !std::mem::take(&mut work.told).is_empty() {
            tracing::info!(projection = self.projector.name(), "batches are applied again");
        }
        for moved in moves {
            let partition = moved.from.partition;
            let checkpoint = Checkpoint { next_offset: moved.next_offset, seq: moved.seq, ..moved.from };
            work.held.insert(partition, checkpoint);
            let source = &work.sources[&partition];
            let claim = Claim { epoch: checkpoint.epoch, next_offset: checkpoint.next_offset, seq: checkpoint.seq };
            self.mailbox.advance(source, &claim);
            self.consumer.commit(source, claim.next_offset, reset::metadata(claim.epoch));
        }
        let name = self.projector.name();
        let now = jiff::Timestamp::now();
        let mut events = 0u32;
        for item in &decoded.items[range] {
            if let Body::Event(index) = item.body {
                events += 1;
                let delay = decoded.events[index].recorded_at.duration_until(now).as_secs_f64();
                metrics::histogram!("throughline_projection_delay_seconds", "projection" => name).record(delay);
            }
        }
        self.extent.grow(events as usize);
        metrics::counter!("throughline_projection_events_total", "projection" => name).increment(u64::from(events));
        metrics::histogram!("throughline_projection_batch_events", "projection" => name).record(f64::from(events));
        metrics::histogram!("throughline_projection_batch_seconds", "projection" => name)
            .record(started.elapsed().as_secs_f64());
    }

    fn lost(&self, work: &mut Work, lost: &HashSet<i32>) {
        for partition in lost {
            let Some(held) = work.held.remove(partition) else { continue };
            tracing::warn!(
                projection = self.projector.name(),
                partition,
                epoch = held.epoch,
                "another owner holds this partition; nothing of it was applied"
            );
            metrics::counter!("throughline_projection_fenced_total", "projection" => self.projector.name())
                .increment(1);
            self.consumer.reclaim(&work.sources[partition], held.epoch);
        }
    }
}

impl Work {
    fn new(batch: &Batch) -> Self {
        let checkpoint = |(source, claim): (&TopicPartition, &Claim)| {
            let partition = source.partition;
            (partition, Checkpoint { partition, next_offset: claim.next_offset, seq: claim.seq, epoch: claim.epoch })
        };
        Self {
            ranges: Vec::new(),
            held: batch.claims.iter().map(checkpoint).collect(),
            sources: batch.claims.keys().map(|source| (source.partition, source.clone())).collect(),
            tries: 0,
            told: String::new(),
        }
    }
}
