//! One batch: rows and checkpoints in one transaction, and what happens when that fails.
//!
//! A failing batch is halved until the failing event stands alone, so that its neighbours are
//! applied meanwhile; then retries, then the policy. Order within a partition is never changed.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Transaction};
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, Checkpoint, Move};
use super::decode::{self, Body, Decoded, Item};
use super::handler::{self, Failure};
use super::{LIVE, Projector, park, reset};
use crate::engine::Recorded;
use crate::health::Heartbeat;
use crate::kafka::{Batch, Claim, Consumer, Mailbox, TopicPartition};
use crate::settings::FailurePolicy;
use crate::store::{DeadLetter, StoreError};

/// Applies batches, on a connection of its own.
pub(super) struct Applier<E: Send + Sync + 'static> {
    pub projector: Projector<E>,
    pub consumer: Arc<Consumer>,
    pub mailbox: Arc<Mailbox>,
    pub heartbeat: Heartbeat,
    pub shutdown: CancellationToken,
    /// Whether parked rows may be open: then each batch asks which of its keys are concerned.
    pub parked_open: bool,
    pub client: Option<Client>,
    /// Epochs seen per partition: a fresh claim may come with rows parked by its last owner.
    pub epochs: HashMap<i32, i64>,
}

enum Attempt {
    Applied(Vec<Move>),
    /// Another owner holds these partitions.
    Lost(HashSet<i32>),
}

/// What is left to do of one batch.
struct Work {
    ranges: Vec<Range<usize>>,
    /// Checkpoints as this batch stands; a partition missing here is dropped from the batch.
    held: HashMap<i32, Checkpoint>,
    sources: HashMap<i32, TopicPartition>,
    tries: u32,
}

impl<E: Send + Sync + 'static> Applier<E> {
    /// Applies a batch, or what can be applied of it. Returns early on shutdown: nothing is lost,
    /// since the checkpoint tells where to go on.
    pub(super) async fn process(&mut self, batch: Batch) {
        let mut work = Work::new(&batch);
        for held in work.held.values() {
            self.parked_open |= self.epochs.insert(held.partition, held.epoch) != Some(held.epoch);
        }
        let mut decoded = decode::decode(&self.projector, batch);
        metrics::counter!("throughline_projection_duplicates_total", "projection" => self.projector.name())
            .increment(decoded.duplicates);
        work.ranges.push(0..decoded.items.len());
        while let Some(range) = work.ranges.pop() {
            if self.shutdown.is_cancelled() {
                return;
            }
            let started = Instant::now();
            self.heartbeat.beat();
            match self.attempt(&decoded, range.clone(), &work.held).await {
                Ok(Attempt::Applied(moves)) => self.applied(&mut work, &moves, &decoded, range, started),
                Ok(Attempt::Lost(lost)) => {
                    self.lost(&mut work, &lost);
                    work.ranges.push(range);
                }
                Err(Failure::Transient(error)) => self.transient(&mut work, range, &error).await,
                Err(Failure::Handler { code, reason }) => {
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

    async fn attempt(
        &mut self,
        decoded: &Decoded<E>,
        range: Range<usize>,
        held: &HashMap<i32, Checkpoint>,
    ) -> Result<Attempt, Failure> {
        let items: Vec<&Item> =
            decoded.items[range].iter().filter(|item| held.contains_key(&item.record.source.partition)).collect();
        let moves = moves(&items, &decoded.events, held);
        if moves.is_empty() {
            return Ok(Attempt::Applied(moves));
        }
        let (projector, mut client) = (self.projector.clone(), self.take_client().await?);
        let ask = self.parked_open || items.iter().any(|item| matches!(item.body, Body::Poison { .. }));
        let outcome = transact(&projector, &mut client, &items, &decoded.events, &moves, ask).await;
        // After a failure the connection may be busy with what was given up.
        if outcome.is_ok() {
            self.client = Some(client);
        }
        let (attempt, parked) = outcome?;
        self.parked_open |= parked;
        Ok(attempt)
    }

    async fn take_client(&mut self) -> Result<Client, StoreError> {
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

    async fn transient(&self, work: &mut Work, range: Range<usize>, error: &StoreError) {
        work.tries += 1;
        self.heartbeat.not_ready(error.to_string());
        tracing::warn!(projection = self.projector.name(), tries = work.tries, %error, "batch not applied; trying again");
        self.wait(work.tries).await;
        // Revoked meanwhile: whoever owns them now goes on from the checkpoint.
        let (mailbox, sources) = (&self.mailbox, &work.sources);
        work.held.retain(|partition, held| mailbox.holds(&sources[partition], held.epoch));
        work.ranges.push(range);
    }

    async fn failed(
        &mut self,
        work: &mut Work,
        decoded: &mut Decoded<E>,
        range: Range<usize>,
        code: &'static str,
        reason: String,
    ) {
        if range.len() > 1 {
            let middle = range.start + range.len() / 2;
            work.ranges.push(middle..range.end);
            work.ranges.push(range.start..middle);
            return;
        }
        work.tries += 1;
        let item = &mut decoded.items[range.start];
        let (partition, seq) = (item.record.source.partition, item.seq);
        let name = self.projector.name();
        if work.tries <= self.projector.settings.projection.retries_max {
            tracing::warn!(
                projection = name,
                partition,
                seq,
                code,
                reason,
                tries = work.tries,
                "event not applied; trying again"
            );
            self.wait(work.tries).await;
            work.ranges.push(range);
            return;
        }
        work.tries = 0;
        match self.projector.policy() {
            FailurePolicy::Halt => {
                work.held.remove(&partition);
                let at = format!("seq {seq} (offset {}) cannot be applied ({code}): {reason}", item.record.offset);
                self.consumer.halt(&work.sources[&partition], &at, &self.cure());
            }
            FailurePolicy::Park => {
                tracing::error!(projection = name, partition, seq, code, reason, "event parked with its key");
                item.body = Body::Poison { code, reason };
                work.ranges.push(range);
            }
        }
    }

    fn cure(&self) -> String {
        format!(
            "Mend the cause and it goes on; or `throughline dlq list` and projection.on_failure=park for {}.",
            self.projector.name()
        )
    }

    async fn wait(&self, tries: u32) {
        let settings = &self.projector.settings.projection;
        let wait = settings.retry_wait_ms.saturating_mul(1 << tries.saturating_sub(1).min(16));
        let wait = Duration::from_millis(wait.min(settings.retry_wait_max_ms));
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
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
        }
    }
}

fn moves<E>(items: &[&Item], events: &[Recorded<E>], held: &HashMap<i32, Checkpoint>) -> Vec<Move> {
    let mut moves: HashMap<i32, Move> = HashMap::new();
    for item in items {
        let from = held[&item.record.source.partition];
        let moved = moves.entry(from.partition).or_insert(Move {
            from,
            next_offset: from.next_offset,
            seq: from.seq,
            last_event_at: None,
        });
        moved.next_offset = item.record.offset + 1;
        moved.seq = item.seq;
        if let Body::Event(index) = item.body {
            moved.last_event_at = Some(events[index].recorded_at);
        }
    }
    let mut moves: Vec<Move> = moves.into_values().collect();
    moves.sort_by_key(|moved| moved.from.partition);
    moves
}

/// The transaction. Also tells whether something was found or left parked.
async fn transact<E: Send + Sync>(
    projector: &Projector<E>,
    client: &mut Client,
    items: &[&Item],
    events: &[Recorded<E>],
    moves: &[Move],
    ask: bool,
) -> Result<(Attempt, bool), Failure> {
    let tx = client.transaction().await.map_err(Failure::ours("begin a batch"))?;
    let advance = checkpoint::advance(&tx, projector.name(), moves);
    let (moved, applied, parked) = if ask {
        let moved = advance.await;
        let split = split_parked(projector, &tx, items).await?;
        let count = split.letters.len() as u64;
        let applied = apply_runs(projector, &tx, events, &split.runs).await;
        park::park_named(projector, &tx, split.letters).await?;
        metrics::counter!("throughline_projection_parked_total", "projection" => projector.name()).increment(count);
        (moved, applied, count > 0)
    } else {
        // Sent together: the compare-and-set reaches the server first and costs no round trip.
        let runs = runs(items.iter().filter_map(|item| event_of(item)));
        let (moved, applied) = futures_util::join!(advance, apply_runs(projector, &tx, events, &runs));
        (moved, applied, false)
    };
    let moved = moved.map_err(Failure::ours("move checkpoints"))?;
    let lost: HashSet<i32> =
        moves.iter().map(|wanted| wanted.from.partition).filter(|partition| !moved.contains(partition)).collect();
    if !lost.is_empty() {
        return Ok((Attempt::Lost(lost), false));
    }
    applied?;
    crate::crash_point!("projection.before_commit");
    tx.commit().await.map_err(Failure::ours("commit a batch"))?;
    crate::crash_point!("projection.after_commit");
    Ok((Attempt::Applied(moves.to_vec()), parked))
}

struct Split {
    runs: Vec<Range<usize>>,
    letters: Vec<DeadLetter>,
}

/// Sorts out what has to be parked: poison, and events behind parked ones of their key.
async fn split_parked<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    items: &[&Item],
) -> Result<Split, Failure> {
    let keys: Vec<&[u8]> = items.iter().filter_map(|item| item.record.key.as_deref()).collect();
    let mut parked =
        park::open_keys(tx, &projector.group, &keys).await.map_err(Failure::ours("look for parked keys"))?;
    let mut letters = Vec::new();
    let mut apply = Vec::new();
    for item in items {
        let key = item.record.key.as_ref();
        match &item.body {
            Body::Duplicate => {}
            Body::Poison { code, reason } => {
                let numbered = *code != "FOREIGN_RECORD";
                letters.push(park::letter(&projector.group, item, numbered, code, reason));
                parked.extend(key.filter(|_| numbered).cloned());
            }
            Body::Event(index) if key.is_some_and(|key| parked.contains(key)) => {
                let _ = index;
                let reason = "an earlier event of the same key is parked";
                letters.push(park::letter(&projector.group, item, true, "BEHIND_PARKED", reason));
            }
            Body::Event(index) => apply.push(*index),
        }
    }
    Ok(Split { runs: runs(apply.into_iter()), letters })
}

fn event_of(item: &Item) -> Option<usize> {
    match item.body {
        Body::Event(index) => Some(index),
        _ => None,
    }
}

/// Ascending indices as ranges without gaps.
fn runs(indices: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in indices {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

async fn apply_runs<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    events: &[Recorded<E>],
    runs: &[Range<usize>],
) -> Result<(), Failure> {
    for run in runs {
        handler::apply(projector, tx, &events[run.clone()]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_gather_to_runs() {
        assert_eq!(runs([0, 1, 2, 5, 7, 8].into_iter()), vec![0..3, 5..6, 7..9]);
        assert!(runs(std::iter::empty()).is_empty());
    }
}
