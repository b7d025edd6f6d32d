//! One batch until nothing of it is left to do, whatever stands in its way.
//!
//! What is the world's is waited out for ever. What is too much, or what the database will not take, is halved; what it
//! will not take of one record alone is parked. Only PostgreSQL's commit settles anything.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Managed;
use super::checkpoint::Checkpoint;
use super::read::{self, Body, Fault, Reading};
use super::transact::{self, Attempt, Done};
use crate::engine::ProcessManager;
use crate::health::{Heartbeat, Told};
use crate::kafka::{Batch, Claim, Consumer, Mailbox, TopicPartition};
use crate::store::{Blame, Extent, Line, StoreError};

/// Tries of one record that fails for its extent, before its partition makes way for others.
const TRIES_ALONE: u32 = 3;
const CURE: &str = "None needed if it passes: it is tried again by itself. If it stays, look in pg_stat_activity for what \
                    holds locks on throughline.process_instances.";
const HOLE_CURE: &str = "`throughline events republish` gives the topic its history back.";

/// Handles batches, on a connection of its own.
pub(super) struct Applier<P: ProcessManager> {
    pub managed: Arc<Managed<P>>,
    pub consumer: Arc<Consumer>,
    pub mailbox: Arc<Mailbox>,
    pub heartbeat: Heartbeat,
    pub shutdown: CancellationToken,
    /// Notified when there are commands to send.
    pub wake: Arc<Notify>,
    pub line: Option<Line>,
    pub extent: Extent,
    pub breaks: Told,
}

/// What is left to do of one batch.
struct Work {
    ranges: Vec<Range<usize>>,
    /// Checkpoints as this batch stands; a partition missing here is dropped from the batch.
    held: HashMap<TopicPartition, Checkpoint>,
    tries: u32,
}

impl<P: ProcessManager> Applier<P> {
    /// Handles a batch, or what can be handled of it. Returns early on shutdown: the checkpoints tell where to go on.
    pub async fn process(&mut self, batch: Batch) {
        let checkpoint =
            |claim: &Claim| Checkpoint { next_offset: claim.next_offset, seq: claim.seq, epoch: claim.epoch };
        let held = batch.claims.iter().map(|(source, claim)| (source.clone(), checkpoint(claim))).collect();
        let mut reading = read::read(&self.managed.feeds, batch);
        let whole = 0..reading.items.len();
        let mut work = Work { ranges: Vec::from([whole]), held, tries: 0 };
        while let Some(range) = work.ranges.pop() {
            if self.shutdown.is_cancelled() {
                return;
            }
            self.heartbeat.beat();
            let heartbeat = self.heartbeat.clone();
            match heartbeat.while_waiting("a batch", self.attempt(&reading, range.clone(), &work)).await {
                Ok(Attempt::Done(done)) => self.done(&mut work, &done, range.len()),
                Ok(Attempt::Lost(lost)) => {
                    for source in lost {
                        let Some(held) = work.held.remove(&source) else { continue };
                        tracing::warn!(process = P::NAME, %source, epoch = held.epoch, "another owner holds this partition");
                        self.consumer.reclaim(&source, held.epoch);
                    }
                    work.ranges.push(range);
                }
                Err(error) => self.failed(&mut work, &mut reading, range, &error).await,
            }
        }
        for (source, reason) in reading.halts {
            if work.held.contains_key(&source) {
                self.consumer.halt(&source, &reason, HOLE_CURE);
            }
        }
    }

    async fn attempt(
        &mut self,
        reading: &Reading<P::Event>,
        range: Range<usize>,
        work: &Work,
    ) -> Result<Attempt, StoreError> {
        let items: Vec<_> =
            reading.items[range].iter().filter(|item| work.held.contains_key(&item.record.source)).collect();
        let moves = transact::moves(&items, &work.held);
        if moves.is_empty() {
            return Ok(Attempt::Done(Done::default()));
        }
        let mut line = match self.line.take().filter(|line| !line.is_closed()) {
            Some(line) => line,
            None => self.managed.connect().await?,
        };
        let attempt = transact::transact(&self.managed, &mut line, &items, moves).await;
        // After a failure the connection may be busy with what was given up.
        if attempt.is_ok() {
            self.line = Some(line);
        }
        attempt
    }

    fn done(&mut self, work: &mut Work, done: &Done, records: usize) {
        work.tries = 0;
        self.heartbeat.ready();
        self.breaks.well();
        self.extent.grow(records);
        for moved in &done.moves {
            let checkpoint = Checkpoint { next_offset: moved.next_offset, seq: moved.seq, epoch: moved.from.epoch };
            let claim = Claim { epoch: checkpoint.epoch, next_offset: checkpoint.next_offset, seq: checkpoint.seq };
            self.mailbox.advance(&moved.source, &claim);
            self.consumer.commit(&moved.source, claim.next_offset, format!("e={}", claim.epoch));
            work.held.insert(moved.source.clone(), checkpoint);
        }
        metrics::counter!("throughline_process_inputs_total", "process" => P::NAME).increment(done.inputs as u64);
        metrics::counter!("throughline_process_parked_total", "process" => P::NAME).increment(done.parked as u64);
        if done.commands > 0 {
            self.wake.notify_one();
        }
    }

    async fn failed(
        &mut self,
        work: &mut Work,
        reading: &mut Reading<P::Event>,
        range: Range<usize>,
        error: &StoreError,
    ) {
        work.tries += 1;
        let blame = error.blame();
        self.heartbeat.not_ready(error.to_string());
        self.breaks.failed(&error.to_string());
        if blame == Blame::Data && range.len() == 1 {
            let item = &mut reading.items[range.start];
            let instance = match &item.body {
                Body::Told(told) => Some(told.instance),
                _ => None,
            };
            item.body = Body::Poison(Fault::new("REFUSED_BY_DATABASE", error.to_string()), instance);
            work.ranges.push(range);
            return;
        }
        if blame == Blame::Extent && range.len() == 1 && work.tries > TRIES_ALONE {
            work.tries = 0;
            let source = reading.items[range.start].record.source.clone();
            work.held.remove(&source);
            self.consumer.halt(&source, &error.to_string(), CURE);
            return;
        }
        if blame != Blame::Data {
            self.wait(work.tries).await;
        }
        if blame == Blame::World || range.len() == 1 || error.is_locked() {
            work.ranges.push(range);
        } else {
            self.extent.shrink(range.len());
            let middle = range.start + range.len() / 2;
            work.ranges.extend([middle..range.end, range.start..middle]);
        }
        // Revoked meanwhile: whoever owns them now goes on from the checkpoint.
        work.held.retain(|source, held| self.mailbox.holds(source, held.epoch));
    }

    async fn wait(&self, tries: u32) {
        let settings = &self.managed.settings.process;
        let wait = settings.retry_wait_ms.saturating_mul(1 << tries.saturating_sub(1).min(16));
        let wait = Duration::from_millis(wait.min(settings.retry_wait_max_ms));
        self.shutdown.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}
